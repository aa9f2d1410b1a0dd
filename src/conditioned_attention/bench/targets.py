"""The targets of the fused kernels on a GPU, whether they are met, and which implementation is fastest in each case."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from conditioned_attention.bench.cases import GPU_CASES, in_order
from conditioned_attention.bench.contestants import BACKENDS, PLAIN
from conditioned_attention.bench.operator import OperatorRow
from conditioned_attention.bench.step import StepRow
from conditioned_attention.functional import IMPLEMENTATIONS
from conditioned_attention.profiling.clock import PairedRatio, paired_ratio

TIME, FLOATS, STEP_TIME, STEP_MEMORY = 1.02, 1.0, 1.01, 1.002
MODEL = "vit_b"
STEPS = ("preconditioned", "preconditioned, fused")
# Floats per row that are allowed for tensors of a few bytes, such as the seed that flash attention keeps.
_ROUNDING = 0.01


def fastest_backend(rows: Iterable[OperatorRow], case: str, mode: str) -> OperatorRow | None:
    """The backend with the smallest median in a case and mode; plain attention if no backend could run by itself."""
    measured = [row for row in rows if (row.case, row.mode, row.status) == (case, mode, "measured")]
    backends = [row for row in measured if row.contestant in BACKENDS]
    candidates = backends or [row for row in measured if row.contestant == PLAIN]
    return min(candidates, key=lambda row: row.milliseconds or 0.0, default=None)


def over_fastest(row: OperatorRow, rows: Iterable[OperatorRow]) -> PairedRatio | None:
    """Time over that of `fastest_backend` among ``rows``, round by round; None for a row that was not measured."""
    fastest = fastest_backend(rows, row.case, row.mode)
    if fastest is None or row.status != "measured":
        return None
    return paired_ratio(row.rounds_milliseconds, fastest.rounds_milliseconds)


def target_lines(rows: Sequence[OperatorRow], steps: Sequence[StepRow]) -> list[str]:
    """One sentence per target: whether it is met or missed, and the worst case."""
    fused = [row for row in rows if row.contestant == "fused" and row.mode == "both" and row.status == "measured"]
    ratios = {row.case: ratio.median for row in fused if (ratio := over_fastest(row, rows)) is not None}
    floats = {row.case: row.extra_floats_a_row for row in fused if row.extra_floats_a_row is not None}
    step = {row.variant: row for row in steps if row.model == MODEL}
    times = {name: row.ratio for name, row in step.items()}
    peaks = {name: row.peak_ratio for name, row in step.items()}
    return [
        _verdict("fused, forward and backward, time over the fastest SDPA backend", TIME, ratios, GPU_CASES),
        _verdict("fused, floats a row held beyond plain attention", FLOATS, floats, GPU_CASES, _ROUNDING),
        _verdict("ViT-B training step, time over plain", STEP_TIME, times, STEPS),
        _verdict("ViT-B training step, peak memory over plain", STEP_MEMORY, peaks, STEPS),
    ]


def _verdict(
    what: str, limit: float, measured: Mapping[str, float], expected: Iterable[str], rounding: float = 0.0
) -> str:
    found = {name: measured[name] for name in expected if name in measured}
    missing = [name for name in expected if name not in measured]
    words = f"{what}, at most {limit:g}: "
    if found:
        worst = max(found, key=lambda name: found[name])
        kept = sum(value <= limit + rounding for value in found.values())
        word = "missed" if kept < len(found) else "met, as far as measured" if missing else "met"
        words += f"{word}, by {kept} of {len(found)}; the worst is {found[worst]:.4g}, {worst}"
    else:
        words += "not measured"
    return words + (f"; not measured: {', '.join(missing)}" if missing and found else "")


def rule_lines(rows: Sequence[OperatorRow]) -> list[str]:
    """Each case's implementations from the fastest to the slowest, forward and backward: what "auto" should choose."""
    lines = []
    for case in in_order(row.case for row in rows):
        mine = [row for row in rows if row.case == case and row.mode == "both" and row.contestant in IMPLEMENTATIONS]
        times = sorted((row.milliseconds, row.contestant) for row in mine if row.milliseconds is not None)
        parts = [f"{name} {time:.3g} ms ({time / times[0][0]:.2f})" for time, name in times]
        parts += [f"{row.contestant} {row.status}" for row in mine if row.milliseconds is None]
        lines.append(f"{case}: {', '.join(parts)}")
    return lines
