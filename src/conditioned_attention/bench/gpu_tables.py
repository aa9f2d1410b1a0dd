"""Tables of measurements on a GPU: times over the fastest backend's, and achieved rates beside the device's limits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from conditioned_attention.bench.cases import CASES, GPU_CASES, in_order
from conditioned_attention.bench.operator import OperatorRow
from conditioned_attention.bench.results import read_about, read_rows
from conditioned_attention.bench.step import StepRow
from conditioned_attention.bench.tables import how, markdown, markdown_table, milliseconds, number, print_table, spread
from conditioned_attention.bench.targets import fastest_backend, over_fastest, rule_lines, target_lines
from conditioned_attention.bench.work import Limits, flops, least_bytes
from conditioned_attention.storage.files import read_json

ABOUT = "gpu.json"
_GROUPS = {"d = 64": "d64_", "d = 128": "d128_", "other shapes": ""}
_SHOWN = ("three lines", "three lines, compiled", "composed", "lean", "fused", "auto")
_NUMBER = 2  # bytes of a bfloat16


class GpuAbout(TypedDict):
    """The keys of ``gpu.json`` that are read."""

    tests: str
    limits: dict[str, float]
    not_measured: dict[str, str]


def print_gpu_case(rows: Sequence[OperatorRow], limits: Limits) -> None:
    """Prints one case: each contestant's times over plain attention and the fastest backend in every mode, and rates.

    The rates and the columns after them are those of the last mode.
    """
    modes = list(dict.fromkeys(row.mode for row in rows))
    header = ["", *(f"{mode} {over}" for mode in modes for over in ("× plain", "× fastest")), f"{modes[-1]}, ms"]
    header += ["TFLOP/s", "GB/s", "error", "gradient error", "floats a row", "peak ×", ""]
    lines = []
    for name in dict.fromkeys(row.contestant for row in rows if row.status == "measured"):
        mine = [row for row in rows if row.contestant == name]
        last = mine[-1]
        line = [name]
        for row in mine:
            over = over_fastest(row, rows)
            line += [number(row.ratio, ".3f"), "-" if over is None else f"{over.median:.3f}"]
        line += [milliseconds(last.milliseconds), *_rates(last, limits)]
        line += [number(last.output_error, ".1e"), number(last.gradient_error, ".1e")]
        lines.append([*line, number(last.extra_floats_a_row, "+.3g"), number(last.peak_ratio, ".3f"), last.note])
    print_table(f"{rows[0].case}: {rows[0].shape}", header, lines)
    for row in rows:
        if row.mode == modes[0] and row.status != "measured":
            print(f"{row.contestant} {row.status}: {row.note}")


def gpu_page(folder: Path) -> str:
    """Everything that `bench gpu` found, in Markdown: targets, what is missing, tables, and the rule for "auto"."""
    about = read_json(folder / ABOUT, GpuAbout)
    operator, step = folder / "operator.csv", folder / "step.csv"
    rows = read_rows(operator, OperatorRow) if operator.exists() else []
    steps = read_rows(step, StepRow) if step.exists() else []
    parts = [_items("Targets", target_lines(rows, steps)), _items("Run", _about_lines(about))]
    if rows:
        limits = Limits(**about["limits"])
        words = "Forward and backward, over the fastest SDPA backend: median (20th–80th percentile) of "
        parts += [f"{words}{how(read_about(operator))}.", *_tables(rows, limits)]
        parts.append(_items("The fastest first, for the rule of `auto`", rule_lines(rows)))
    if steps:
        parts.append(markdown_table(step))
    return "\n\n".join(parts)


def _about_lines(about: dict[str, Any]) -> list[str]:
    limits, missing = about["limits"], about["not_measured"]
    lines = [f"tests: {about['tests']}"]
    if limits:
        rates = f"{limits['flops_per_second'] / 1e12:.0f} TFLOP/s in a product of matrices, "
        lines.append(f"limits: {rates}{limits['bytes_per_second'] / 1e9:.0f} GB/s in a copy")
    return lines + [f"not measured: {name}: {why}" for name, why in missing.items()]


def _tables(rows: Sequence[OperatorRow], limits: Limits) -> list[str]:
    """A table for each group of cases that has any."""
    left, tables = in_order(row.case for row in rows), []
    for title, start in _GROUPS.items():
        cases = [case for case in left if case.startswith(start)]
        left = [case for case in left if case not in cases]
        if cases:
            tables.append(_table(title, [[row for row in rows if row.case == case] for case in cases], limits))
    return tables


def _table(title: str, cases: Sequence[Sequence[OperatorRow]], limits: Limits) -> str:
    header = [f"{title} (B×H×N×D)", "fastest", "ms", *_SHOWN, "fused, forward", "fused, backward"]
    header += ["fused, TFLOP/s", "fused, GB/s", "floats, fused"]
    lines = []
    for rows in cases:
        cells = {(row.contestant, row.mode): row for row in rows}
        fastest = fastest_backend(rows, rows[0].case, "both")
        line = [f"{rows[0].case}: {rows[0].shape}"]
        line += ["-", "-"] if fastest is None else [fastest.contestant, milliseconds(fastest.milliseconds)]
        line += [_over_fastest(cells.get((shown, "both")), rows) for shown in _SHOWN]
        line += [_over_fastest(cells.get(("fused", mode)), rows) for mode in ("forward", "backward")]
        fused = cells.get(("fused", "both"))
        lines.append(
            [*line, *_rates(fused, limits), "-" if fused is None else number(fused.extra_floats_a_row, "+.3g")]
        )
    return markdown(header, lines)


def _over_fastest(row: OperatorRow | None, rows: Sequence[OperatorRow]) -> str:
    if row is None:
        return "-"
    ratio = over_fastest(row, rows)
    return row.status if ratio is None else spread(ratio)


def _rates(row: OperatorRow | None, limits: Limits) -> list[str]:
    """Achieved TFLOP/s and GB/s with their shares of the limits; "-" where the case or the time is unknown."""
    case = None if row is None else (GPU_CASES | CASES).get(row.case)
    if row is None or case is None or case.shape != row.shape or row.milliseconds is None:
        return ["-", "-"]
    seconds = row.milliseconds / 1000
    rate, traffic = flops(case, row.mode) / seconds, least_bytes(case, row.mode, _NUMBER) / seconds
    return [
        f"{rate / 1e12:.3g} ({rate / limits.flops_per_second:.0%})",
        f"{traffic / 1e9:.3g} ({traffic / limits.bytes_per_second:.0%})",
    ]


def _items(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"{title}:", "", *(f"- {line}" for line in lines)])
