"""Draws operator.csv: time over plain attention, case by case."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from conditioned_attention.bench.cases import in_order
from conditioned_attention.bench.contestants import PLAIN
from conditioned_attention.bench.operator import OperatorRow
from conditioned_attention.bench.results import read_rows
from conditioned_attention.measure.plots import COLOURS
from conditioned_attention.measure.plots.files import png
from conditioned_attention.storage.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COMPILED = ", compiled"
# A compiled contestant has the colour of what is compiled, and an open mark.
_SAME = {"ours": "auto"}
# A call of microseconds may take several times plain attention's time; its scale would hide all other differences.
_LIMIT = 1.6


def write_plot(csv: Path) -> Path:
    """Draws a CSV as a PNG beside it with the same name, which replaces an earlier one."""
    from matplotlib.figure import Figure

    rows = [row for row in read_rows(csv, OperatorRow) if row.contestant != PLAIN and row.ratio is not None]
    modes = list(dict.fromkeys(row.mode for row in rows)) or ["nothing was measured"]
    cases = in_order(row.case for row in rows)
    figure = Figure(figsize=(4.0 * len(modes) + 1.5, 0.62 * len(cases) + 1.6), layout="constrained")
    panels = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
    styles = _styles(list(dict.fromkeys(row.contestant for row in rows)))
    for ax, mode in zip(panels, modes):
        _panel(ax, mode, [row for row in rows if row.mode == mode], cases, styles)
    if rows:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    picture = csv.with_suffix(".png")
    write_bytes(picture, png(figure))
    return picture


def _styles(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and face of each contestant's mark; black is plain attention's line."""
    own = [name for name in names if not name.endswith(_COMPILED)]
    colours = dict(zip(own, cycle(COLOURS[1:])))
    styles = {name: (colour, colour) for name, colour in colours.items()}
    for name in names:
        if name.endswith(_COMPILED):
            base = name.removesuffix(_COMPILED)
            styles[name] = (colours.get(_SAME.get(base, base), COLOURS[0]), "white")
    return styles


def _panel(
    ax: Axes, mode: str, rows: Sequence[OperatorRow], cases: Sequence[str], styles: dict[str, tuple[str, str]]
) -> None:
    ax.axvline(1.0, color=COLOURS[0], linewidth=1.0)
    for place, (name, (colour, face)) in enumerate(styles.items()):
        mine = [row for row in rows if row.contestant == name]
        heights = [cases.index(row.case) + 0.8 * ((place + 0.5) / len(styles) - 0.5) for row in mine]
        for row, height in zip(mine, heights):
            ratio, p20, p80 = (min(value or 0.0, _LIMIT) for value in (row.ratio, row.p20, row.p80))
            ax.hlines(height, p20, p80, color=colour, linewidth=1.4)
            mark = "o" if ratio < _LIMIT else ">"
            ax.plot(ratio, height, mark, color=colour, markerfacecolor=face, markersize=4.5, clip_on=False)
        ax.plot([], [], "o", color=colour, markerfacecolor=face, markersize=4.5, label=name)
    ax.set_title(mode)
    ax.set_xlim(right=min(ax.get_xlim()[1], _LIMIT))
    ax.set_xlabel(f"time / plain attention's (►: {_LIMIT} or more)")
    ax.set_yticks(range(len(cases)), cases)
    ax.set_ylim(len(cases) - 0.4, -0.6)
    ax.grid(axis="x", alpha=0.3)
