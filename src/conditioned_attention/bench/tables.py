"""Makes tables from the rows of the CSV files: of one case for the terminal, and those of docs/cost.md."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from conditioned_attention.bench.blocks import BlocksRow
from conditioned_attention.bench.cases import in_order
from conditioned_attention.bench.contestants import PLAIN
from conditioned_attention.bench.monitor import MonitorRow
from conditioned_attention.bench.operator import OperatorRow
from conditioned_attention.bench.results import read_about, read_rows
from conditioned_attention.bench.spectra import SpectraRow
from conditioned_attention.bench.step import StepRow
from conditioned_attention.profiling.clock import PairedRatio
from conditioned_attention.storage.files import write_text

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
NOT_MEASURED = "Not measured yet."

# What a user chooses between; the CSV has the rest.
_SHOWN = ("three lines", "rms_norm", "composed", "lean", "plain, compiled", "three lines, compiled", "ours, compiled")
_MEMORY = ("composed", "lean")


def print_case(rows: Sequence[OperatorRow]) -> None:
    """Prints one case: each contestant's time in every mode, its errors, and its memory."""
    modes = list(dict.fromkeys(row.mode for row in rows))
    header = ["", *(f"{mode} ×" for mode in modes), f"{modes[-1]}, ms", "error", "gradient error"]
    header += ["held ×", "floats a row", "peak ×", ""]
    lines = []
    for name in dict.fromkeys(row.contestant for row in rows):
        mine = [row for row in rows if row.contestant == name]
        last = mine[-1]
        line = [name, *(_ratio(row) for row in mine), milliseconds(last.milliseconds)]
        line += [number(last.output_error, ".1e"), number(last.gradient_error, ".1e")]
        line += [number(last.held_ratio, ".3f"), number(last.extra_floats_a_row, "+.3g")]
        lines.append([*line, number(last.peak_ratio, ".3f"), last.note])
    print_table(f"{rows[0].case}: {rows[0].shape}", header, lines)


def print_steps(rows: Sequence[StepRow]) -> None:
    """Prints one model: the time and memory of a training step with each variant."""
    header = ["", "step ×", "ms", "peak ×", "held ×", "held, MiB", ""]
    lines = []
    for row in rows:
        memory = [f"{row.peak_ratio:.4f}", f"{row.held_ratio:.4f}", f"{row.held_bytes / 2**20:.1f}"]
        lines.append([row.variant, _ratio(row), milliseconds(row.milliseconds), *memory, row.note])
    print_table(f"{rows[0].model}: {rows[0].shape}", header, lines)


def print_spectra(rows: Sequence[SpectraRow]) -> None:
    """Prints one shape and κ: the time and error of each route."""
    lines = [[row.route, _ratio(row), f"{row.milliseconds:.3g}", f"{row.error:.1e}"] for row in rows]
    print_table(f"{rows[0].shape}, κ = {rows[0].kappa:g}", ["", "time ×", "ms a matrix", "error of κ"], lines)


def print_blocks(rows: Sequence[BlocksRow]) -> None:
    """Prints one kernel in one case: each block shape, the fastest first and those that could not be timed last."""
    lines = []
    for row in sorted(rows, key=lambda row: row.ratio or math.inf):
        shape = f"{row.queries} × {row.keys}, {row.warps} warps, {row.stages} stages"
        lines.append([shape, _ratio(row), milliseconds(row.milliseconds), row.note])
    print_table(f"{rows[0].case}, {rows[0].kernel}", ["queries × keys", "time × the table's", "ms", ""], lines)


def print_monitor(row: MonitorRow, every: int) -> None:
    """Prints one model: the time and memory of a measurement, beside those of a training step."""
    header = ["", "ms", "peak, MiB", f"share of {every} steps"]
    share = f"{row.share:.2%} ({row.p20:.2%}–{row.p80:.2%})"
    step = ["training step", milliseconds(row.step_milliseconds), f"{row.step_peak_bytes / 2**20:.0f}", ""]
    of_heads = [f"measurement of {row.heads} heads", milliseconds(row.measurement_milliseconds)]
    measurement = [*of_heads, f"{row.measurement_peak_bytes / 2**20:.0f}", share]
    print_table(f"{row.model}: {row.shape}", header, [step, measurement])


def markdown_table(csv: Path) -> str:
    """The table in docs/cost.md for an ``operator.csv`` or a ``step.csv``, with a line on how it was measured."""
    if csv.stem == "step":
        return _markdown_of_steps(read_rows(csv, StepRow), read_about(csv))
    return _markdown_of_cases(read_rows(csv, OperatorRow), read_about(csv))


def readme_text(folder: Path) -> str:
    """The text between the two marks of docs/cost.md: the tables of the files that ``folder`` holds."""
    files = [file for name in ("operator.csv", "step.csv") if (file := folder / name).exists()]
    return "\n\n".join(markdown_table(file) for file in files) or NOT_MEASURED


def put_between_marks(file: Path, text: str) -> None:
    """Replaces the text between `BEGIN` and `END` in a Markdown file; raises as `split_at_marks` does."""
    before, middle, after = split_at_marks(file)
    if middle != text:
        write_text(file, f"{before}{BEGIN}\n{text}\n{END}{after}")


def split_at_marks(file: Path) -> tuple[str, str, str]:
    """The text before, between and after the marks; raises ValueError unless each is there once, in this order."""
    content = file.read_text()
    before, _, rest = content.partition(BEGIN)
    middle, _, after = rest.partition(END)
    if content.count(BEGIN) != 1 or content.count(END) != 1 or END not in rest:
        raise ValueError(f"{file} must have {BEGIN} and, below it, {END}, once each")
    return before, middle.strip("\n"), after


def _markdown_of_cases(rows: Sequence[OperatorRow], about: dict[str, Any]) -> str:
    """One line per case, of the mode that covers most: both, or whichever was measured."""
    mode = max((row.mode for row in rows), key=["backward", "forward", "both"].index)
    cells = {(row.case, row.contestant): row for row in rows if row.mode == mode}
    shown = [name for name in _SHOWN if any(contestant == name for _, contestant in cells)]
    kept = [name for name in _MEMORY if name in shown]
    header = ["attention (B×H×N×D)", "plain, ms", *shown, *(f"floats, {name}" for name in kept)]
    lines = []
    for case in in_order(row.case for row in rows):
        plain = cells[case, PLAIN]
        line = [f"{case}: {plain.shape}", milliseconds(plain.milliseconds)]
        line += [_ratio(cells.get((case, name)), 2) for name in shown]
        memory = [cells.get((case, name)) for name in kept]
        lines.append([*line, *("-" if row is None else number(row.extra_floats_a_row, "+.3g") for row in memory)])
    words = {"forward": "Forward", "backward": "Backward", "both": "Forward and backward"}[mode]
    return (
        f"{words}, time over plain attention: median (20th–80th percentile) of {how(about)}. Floats: what is "
        f"held for backward beyond plain attention, for each row of each head.\n\n{markdown(header, lines)}"
    )


def _markdown_of_steps(rows: Sequence[StepRow], about: dict[str, Any]) -> str:
    """One line for each variant of each model but its first, which is the baseline."""
    header = ["training step", "baseline, ms", "variant", "time ×", "peak memory ×", "held for backward ×"]
    lines, baselines = [], dict[str, StepRow]()
    for row in rows:
        baseline = baselines.setdefault(row.model, row)
        if row is baseline:
            continue
        line = [f"{row.model}: {row.shape}", milliseconds(baseline.milliseconds), row.variant, _ratio(row)]
        lines.append([*line, f"{row.peak_ratio:.4f}", f"{row.held_ratio:.4f}"])
    words = f"Whole training steps, over the baseline's: median (20th–80th percentile) of {how(about)}."
    return f"{words}\n\n{markdown(header, lines)}"


def _ratio(row: OperatorRow | StepRow | SpectraRow | BlocksRow | None, digits: int = 3) -> str:
    """Time over the baseline's, as text; exactly 1 for the baseline, and the status of what was not timed."""
    if row is None:
        return "-"
    if row.ratio is None or row.p20 is None or row.p80 is None:
        return str(getattr(row, "status", "-"))
    if row.ratio == row.p20 == row.p80 == 1:
        return "1"
    return spread(PairedRatio(row.ratio, row.p20, row.p80), digits)


def milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def spread(ratio: PairedRatio, digits: int = 3) -> str:
    return f"{ratio.median:.{digits}f} ({ratio.p20:.{digits}f}–{ratio.p80:.{digits}f})"


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def print_table(title: str, header: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    grid = Table(title=escape(title), title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in header:
        grid.add_column(escape(name))
    for line in lines:
        grid.add_row(*map(escape, line))
    Console(width=None if Console().is_terminal else 200).print(grid)


def how(about: dict[str, Any]) -> str:
    settings, where = about["settings"], about["environment"]
    machine = (
        where["machine"]
        if settings["device"] == "cpu"
        else next((d for d in where["devices"] if "cuda" in d), settings["device"])
    )
    threads = f"{settings['threads']} thread{'s' * (settings['threads'] > 1)}"
    rounds = f"{settings['rounds']} interleaved round{'s' * (settings['rounds'] > 1)}"
    return f"{rounds}, {settings['dtype']}, {threads}, {machine}, torch {where['torch']}"
