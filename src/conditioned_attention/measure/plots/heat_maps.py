"""Heat maps of numbers that were measured on heads: layer × head at one step or at several, and layer × step."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from conditioned_attention.measure.monitoring.records import HeadRecord, spread
from conditioned_attention.measure.plots.curves import quantile
from conditioned_attention.measure.plots.style import SCALE, ThemeName, find_theme, named_on_the_first, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STEPS = 4  # panels, if a caller does not say which steps
_CELL = 0.28  # inches
_LABEL = 28  # characters per line
FLOOR = "×: at the numerical floor"


@dataclass(frozen=True)
class Field:
    """A number of a `HeadRecord`: what it is called, and whether its logarithm is drawn."""

    label: str
    logarithmic: bool

    def value(self, number: float) -> float:
        """What is drawn; NaN where there is none."""
        if not self.logarithmic:
            return number if math.isfinite(number) else math.nan
        return math.log10(number) if math.isfinite(number) and number > 0 else math.nan


_BEFORE_AND_AFTER = {
    "kappa": Field("log₁₀ κ", True),
    "log_mu": Field("log μ", False),
    "floor": Field("share of samples at the floor", False),
    "sigma_max": Field("log₁₀ σ₁", True),
    "sigma_min": Field("log₁₀ of the smallest σ", True),
    "stable_rank": Field("stable rank", False),
    "effective_rank": Field("effective rank", False),
    "row_spread": Field("log₁₀ of largest over smallest row", True),
}
FIELDS: Mapping[str, Field] = {
    "kappa": Field("log₁₀ κ", True),
    "largest_scale": Field("log₁₀ of the largest factor on a row", True),
    **{
        f"{name}_{when}": Field(f"{field.label}, {when} C", field.logarithmic)
        for name, field in _BEFORE_AND_AFTER.items()
        for when in ("before", "after")
    },
}


def plot_heat_map(
    records: Iterable[HeadRecord],
    ax: Axes | None = None,
    *,
    step: int | None = None,
    field: str = "kappa",
    theme: ThemeName = "light",
) -> Axes:
    """Draws a number of every head at one step as a heat map: one row per layer, one column per head.

    A cross marks heads at the numerical floor, which have no κ; a cell is empty where the number was not measured, as
    in files of older versions.  "after C" means after the head's own transform, or after C if it has none.

    Args:
        records: the records of one run, or of several seeds: a cell is then the median (the lower one of an even
            number).
        ax: where to draw; default a new figure.
        step: which step; default the last.
        field: one of `FIELDS`: ``"kappa"`` (of the matrix that the model uses), ``"kappa_before"``,
            ``"kappa_after"``, ``"largest_scale"``, ``"effective_rank_before"``, …
        theme: ``"light"`` or ``"dark"``.

    Raises:
        ValueError: no records, or none at this step, or an unknown field or theme.

    >>> from conditioned_attention.measure import HeadRecord
    >>> from conditioned_attention.measure.plots import plot_heat_map
    >>> heads = [HeadRecord(0, 0, "attn", i, False, 10.0**i, 8.0, 3.0, 2.0, 0.0, 0.0, 1.5) for i in range(4)]
    >>> ax = plot_heat_map(heads)
    >>> ax.images[0].get_array().tolist()  # log10 κ
    [[0.0, 1.0, 2.0, 3.0]]
    """
    grid = layers_by_heads(list(records), step, field)
    return draw_multiples([grid], None if ax is None else [ax], theme)[0]


def plot_heat_maps(
    records: Iterable[HeadRecord],
    axes: Sequence[Axes] | None = None,
    *,
    steps: Sequence[int] | None = None,
    field: str = "kappa",
    theme: ThemeName = "light",
) -> list[Axes]:
    """Draws `plot_heat_map` at several steps side by side, in the same colours; arguments and errors as there.

    The default is four steps from the first to the last; raises ValueError unless ``axes`` has one entry per step.

    >>> from conditioned_attention.measure import HeadRecord
    >>> from conditioned_attention.measure.plots import plot_heat_maps
    >>> of = lambda step: HeadRecord(step, 0, "attn", 0, False, 9.0, 8.0, 3.0, 2.0, 0.0, 0.0, 1.5)
    >>> [ax.get_title() for ax in plot_heat_maps([of(0), of(100)])]
    ['step 0', 'step 100']
    """
    records = list(records)
    if steps is None:
        known = _steps(records)
        steps = [known[i] for i in spread(_STEPS, len(known))]
    return draw_multiples([layers_by_heads(records, step, field) for step in steps], axes, theme)


def plot_before_after(
    records: Iterable[HeadRecord],
    axes: Sequence[Axes] | None = None,
    *,
    step: int | None = None,
    field: str = "kappa",
    theme: ThemeName = "light",
) -> list[Axes]:
    """Draws `plot_heat_map` before C and after C side by side on two axes, in the same colours; otherwise as there.

    ``field`` is a number that is recorded for both: ``"kappa"``, ``"log_mu"``, ``"floor"``, ``"sigma_max"``,
    ``"sigma_min"``, ``"stable_rank"``, ``"effective_rank"`` or ``"row_spread"``.

    >>> from conditioned_attention.measure import HeadRecord
    >>> from conditioned_attention.measure.plots import plot_before_after
    >>> record = HeadRecord(0, 0, "attn", 0, False, 9.0, 8.0, 3.0, 2.0, 0.0, 0.0, 1.5)
    >>> [ax.get_title() for ax in plot_before_after([record])]
    ['before C, step 0', 'after C, step 0']
    """
    if field not in _BEFORE_AND_AFTER:
        raise ValueError(f"field must be one of {', '.join(map(repr, _BEFORE_AND_AFTER))}, got {field!r}")
    records = list(records)
    found = {when: layers_by_heads(records, step, f"{field}_{when}") for when in ("before", "after")}
    grids = [replace(grid, title=f"{when} C, {grid.title}") for when, grid in found.items()]
    return draw_multiples(grids, axes, theme, label=_BEFORE_AND_AFTER[field].label)


def plot_layers(
    records: Iterable[HeadRecord], ax: Axes | None = None, *, field: str = "kappa", theme: ThemeName = "light"
) -> Axes:
    """Draws a number of every layer over time, as the median over its heads: a row per layer, a column per measurement.

    The median counts heads at the numerical floor as larger than all others; a cross marks layers with more than half
    of their heads there.  The plot stays readable with any number of heads and of steps.

    Arguments and errors are those of `plot_heat_map`.

    >>> from conditioned_attention.measure import HeadRecord
    >>> from conditioned_attention.measure.plots import plot_layers
    >>> of = lambda step, kappa: HeadRecord(step, 0, "attn", 0, False, kappa, 8.0, 3.0, 2.0, 0.0, 0.0, 1.5)
    >>> plot_layers([of(0, 10.0), of(100, 1000.0)]).images[0].get_array().tolist()  # log10 κ
    [[1.0, 3.0]]
    """
    return draw_multiples([layers_by_steps(list(records), field)], None if ax is None else [ax], theme)[0]


@dataclass(frozen=True)
class Grid:
    """A table of numbers to be drawn as colours.

    Attributes:
        values: by row and column, NaN where there is none.
        marked: (row, column) of what is at the numerical floor.
        columns: what the columns are called on the axis.
        title, label, xlabel: the texts for the panel, for the colours and for the columns.
    """

    values: list[list[float]]
    marked: list[tuple[int, int]]
    columns: list[int]
    title: str
    label: str
    xlabel: str


def layers_by_heads(records: Sequence[HeadRecord], step: int | None, field: str, title: str = "") -> Grid:
    """The grid of `plot_heat_map`."""
    known = _steps(records)
    step = known[-1] if step is None else step
    if step not in known:
        listed = ", ".join(map(str, known if len(known) <= 7 else [*known[:3], "…", *known[-3:]]))
        raise ValueError(f"step must be one that was measured ({listed}), got {step}")
    chosen = [record for record in records if record.step == step]
    heads = list(range(max(record.head for record in chosen) + 1))
    values, marked = _cells(chosen, lambda record: record.head, heads, field)
    return Grid(values, marked, heads, title or f"step {step}", FIELDS[field].label, "head")


def layers_by_steps(records: Sequence[HeadRecord], field: str) -> Grid:
    """The grid of `plot_layers`."""
    steps = _steps(records)
    values, marked = _cells(records, lambda record: record.step, steps, field)
    return Grid(values, marked, steps, "", f"{_find(field).label}, median over heads", "optimizer step")


def _cells(
    records: Iterable[HeadRecord], column_of: Callable[[HeadRecord], Hashable], columns: Sequence[Hashable], field: str
) -> tuple[list[list[float]], list[tuple[int, int]]]:
    """The median of what falls into each cell, and which cells are at the floor."""
    found, of = _find(field), field.rpartition("_")[2]
    kappa_of = f"kappa_{of}" if of in ("before", "after") else "kappa"  # of the matrix that the field is about
    cells: dict[tuple[int, Hashable], list[HeadRecord]] = {}
    for record in records:
        cells.setdefault((record.layer, column_of(record)), []).append(record)
    values = [[math.nan] * len(columns) for _ in range(max(layer for layer, _ in cells) + 1)]
    marked = []
    for (layer, name), inside in cells.items():
        numbers = [number for record in inside if not math.isnan(number := getattr(record, field))]
        column = columns.index(name)
        values[layer][column] = found.value(quantile(numbers, 0.5)) if numbers else math.nan
        kappas = [kappa for record in inside if not math.isnan(kappa := getattr(record, kappa_of))]
        if kappas and math.isinf(quantile(kappas, 0.5)):
            marked.append((layer, column))
    return values, marked


def _find(field: str) -> Field:
    if field not in FIELDS:
        raise ValueError(f"field must be one of {', '.join(map(repr, FIELDS))}, got {field!r}")
    return FIELDS[field]


def _steps(records: Sequence[HeadRecord]) -> list[int]:
    """The steps that were measured, ascending; raises ValueError if there are none."""
    if not records:
        raise ValueError("records must be those of a run that was monitored, got none")
    return sorted({record.step for record in records})


def draw_multiples(
    grids: Sequence[Grid], axes: Sequence[Axes] | None, theme: ThemeName, label: str | None = None
) -> list[Axes]:
    """Draws one panel per grid in the same colours, with one bar that explains them.

    If all panels have the same layers, they are labelled on the first panel only.
    """
    drawn = panels(axes, len(grids), theme, _size(grids))
    numbers = [value for grid in grids for row in grid.values for value in row if math.isfinite(value)]
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    for grid, ax in zip(grids, drawn):
        image = ax.imshow(grid.values, cmap=SCALE, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
        _mark(ax, grid)
        _name(ax, grid)
    if numbers:
        bar = drawn[0].figure.colorbar(image, ax=drawn, pad=0.02)
        text = find_theme(theme).text
        bar.set_label(textwrap.fill(grids[0].label if label is None else label, _LABEL), color=text)
        bar.ax.tick_params(which="both", colors=text)
        bar.outline.set_edgecolor(text)
    else:
        drawn[0].set_title(f"{drawn[0].get_title()} (no number to draw)".strip(), fontsize="medium")
    if len({len(grid.values) for grid in grids}) == 1:
        named_on_the_first(drawn)
    return drawn


def _size(grids: Sequence[Grid]) -> tuple[float, float]:
    """Inches: cells large enough for a cross, panels large enough for their axes."""
    widest = 4.4 if len(grids) < 3 else 2.6
    widths = [min(widest, max(1.7, _CELL * len(grid.columns))) for grid in grids]
    height = min(5.0, max(2.0, _CELL * max(len(grid.values) for grid in grids)))
    return sum(widths) + 0.25 * len(grids) + 1.5, height + 1.0


def _mark(ax: Axes, grid: Grid) -> None:
    """A cross on each cell at the floor: white on black, which shows on every colour."""
    if not grid.marked:
        return
    layers, columns = zip(*grid.marked)
    box = ax.get_window_extent()
    cell = min(box.width / len(grid.columns), box.height / len(grid.values)) * 72 / ax.figure.dpi  # points
    ax.scatter(
        columns, layers, s=min(8.0, 0.6 * cell) ** 2, marker="X", facecolor="white", edgecolor="black", linewidth=0.6
    )


def _name(ax: Axes, grid: Grid) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    inches = ax.get_window_extent().width / ax.figure.dpi
    apart = math.ceil(len(grid.columns) * (0.15 + 0.09 * len(str(grid.columns[-1]))) / inches)  # so labels do not touch
    ax.set_xticks(range(0, len(grid.columns), apart), map(str, grid.columns[::apart]))
    ax.set_ylabel("layer")
    ax.set_xlabel(f"{grid.xlabel}\n{FLOOR}" if grid.marked else grid.xlabel)
    ax.set_title(grid.title, fontsize="medium")
