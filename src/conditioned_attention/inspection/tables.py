"""Prints an inspection on a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from conditioned_attention.inspection.heads import change_in_words, worst_heads
from conditioned_attention.inspection.inspect import Inspection, InspectionRow
from conditioned_attention.measure.monitoring.records import HeadRecord

_COLUMNS = ("module", "class", "heads", "conversion", "log10 κ", "after C", "largest C")
_PROJECTION_COLUMNS = ("projection", "shape", "‖W‖", "κ(W)", "σ_min(W)", "κ(W + C)", "σ_min(W + C)")
_HEAD_COLUMNS = ("head", "log10 κ", "after C", "effective rank", "row spread", "largest C")
_FLOAT32 = 1e9  # no head of float32 numbers resolves such a κ
_WORST = 8  # heads that are named
_PIPED = 160  # columns where the output is no terminal


def print_inspection(inspection: Inspection, source: str, weights: str, advice: Sequence[str] = ()) -> None:
    """Prints a table with one line for each attention module, and below it the reasons against conversion.

    ``source`` says what the condition numbers were measured on, and ``weights`` which weights the model has; ``advice``
    comes last.
    """
    table = Table(*_COLUMNS)
    table.columns[0].no_wrap = True
    table.columns[0].min_width = max((len(row.name) for row in inspection.rows), default=0)
    for row in inspection.rows:
        table.add_row(*(escape(cell) for cell in _cells(row)))
    console = Console()
    if not console.is_terminal:
        console.width = _PIPED
    say = partial(console.print, markup=False, highlight=False)
    if inspection.rows:
        console.print(table)
    reasons: dict[str, list[str]] = {}
    for row in inspection.rows:
        if row.reason:
            reasons.setdefault(row.reason, []).append(row.name or "(the model)")
    for reason, names in reasons.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        say(f"{names[0]}{more}: {reason}")
    say(_summary(inspection, source, weights))
    if inspection.heads:
        _print_heads(console, inspection)
    if inspection.self_logit is not None:
        say(inspection.self_logit.sentence())
    if inspection.projections:
        how = "as they are corrected" if inspection.strength is None else f"with λ I, λ = {inspection.strength_shown}"
        grid = Table(*_PROJECTION_COLUMNS, title=f"projections, and {how}", title_justify="left")
        for p in inspection.projections:
            numbers = (p.norm, p.kappa, p.smallest, p.kappa_corrected, p.smallest_corrected)
            name = f"{p.module or '(the model)'}, {p.role}"
            grid.add_row(escape(name), "×".join(map(str, p.shape)), *(f"{number:.3g}" for number in numbers))
        console.print(grid)
    for line in advice:
        say(line)


def _print_heads(console: Console, inspection: Inspection) -> None:
    """Prints the worst heads, and what C and λ I would change in all heads."""
    corrected = {(record.layer, record.head): record.kappa_before for record in inspection.heads_corrected}
    columns = [*_HEAD_COLUMNS[:3], *(["with λ I"] if corrected else []), *_HEAD_COLUMNS[3:]]
    grid = Table(*columns, title="the worst heads", title_justify="left")
    grid.columns[0].overflow = "fold"
    for record in worst_heads(inspection.heads, _WORST):
        where = f"{record.module or '(the model)'}, head {record.head}"
        cells = [where, _log10(record.kappa_before), _log10(record.kappa_after)]
        cells += [_log10(corrected[record.layer, record.head])] if corrected else []
        cells += [f"{record.effective_rank_before:.1f} of {min(record.rows, record.columns)}"]
        cells += [f"{record.row_spread_before:.3g}", f"{record.largest_scale:.3g}"]
        grid.add_row(*map(escape, cells))
    console.print(grid)
    floor = sum(record.floor_before > 0.5 for record in inspection.heads)
    if floor > len(inspection.heads) / 2 and inspection.heads[0].resolution < _FLOAT32:
        count = f"{floor} of {len(inspection.heads)} heads"
        console.print(f"{count} are at the floor of float32; --precision float64 tells them apart", highlight=False)
    changes: dict[str, Callable[[HeadRecord], float]] = {"C": lambda record: record.kappa_after}
    if corrected:
        changes[f"λ I, λ = {inspection.strength_shown}"] = lambda record: corrected[record.layer, record.head]
    for what, after in changes.items():
        console.print(change_in_words(what, inspection.heads, after), markup=False, highlight=False)


def _cells(row: InspectionRow) -> tuple[str, ...]:
    heads = "?" if row.heads is None else str(row.heads)
    largest = "" if row.largest_scale is None else f"{row.largest_scale:.3g}"
    conversion = row.mechanism if row.conversion == "converts" else row.conversion
    name = row.name or "(the model)"
    return name, row.class_name, heads, conversion, _log10(row.kappa), _log10(row.kappa_after), largest


def _log10(kappa: float | None) -> str:
    if kappa is None:
        return ""
    return "floor" if math.isinf(kappa) else f"{math.log10(kappa):.2f}"


def _summary(inspection: Inspection, source: str, weights: str) -> str:
    words = {"converts": "would be converted", "on request": "converted on request"}
    words |= {kind: kind for kind in ("already conditioned", "refused", "no attention")}
    conversions = [row.conversion for row in inspection.rows]
    found = ", ".join(f"{n} {word}" for kind, word in words.items() if (n := conversions.count(kind)))
    line = f"{inspection.parameters / 1e6:.1f} million parameters; attention modules: {found or 'none'}"
    if inspection.not_measured:
        return f"{line}\nno condition numbers: {inspection.not_measured}"
    what = "κ: the condition number of a head's output softmax(q kᵀ) v, above as its median over the module's heads"
    return f"{line}\nweights: {weights}\ninput: {source}\n{what}"
