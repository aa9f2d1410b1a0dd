"""Pictures from numbers.  Functions take records and return matplotlib Axes; nothing is written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from conditioned_attention.measure.records import HeadRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by every common kind of colour vision; black stays for the baseline.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LINES = ("-", "--", ":")  # where there are more curves than colours
_LEGEND_COLUMN = 6  # entries


def average_condition_number(records: Iterable[HeadRecord]) -> dict[int, float]:
    """κ by step as in figure 3 of arXiv 2603.27153: mean over the heads of a layer, then over the layers.

    Of the matrix that the model uses (after C where it is conditioned).  Heads at the numerical floor have no κ and
    are left out; a step at which every head is there has ``inf``.
    """
    layers: dict[int, dict[int, list[float]]] = {}
    for record in records:
        values = layers.setdefault(record.step, {}).setdefault(record.layer, [])
        if math.isfinite(record.kappa):
            values.append(record.kappa)
    return {step: _mean([_mean(v) for v in by_layer.values() if v]) for step, by_layer in sorted(layers.items())}


def share_at_floor(records: Iterable[HeadRecord]) -> float:
    """Share of the records whose κ is not told from infinity at the precision of the data."""
    records = list(records)
    return sum(not math.isfinite(record.kappa) for record in records) / len(records) if records else math.nan


def plot_condition_numbers(
    runs: Mapping[str, Sequence[Sequence[HeadRecord]]], ax: Axes | None = None, *, xlabel: str = "optimizer step"
) -> Axes:
    """Figure 3 of the paper: average κ during training, one line a variant.

    Args:
        runs: for each label the records of its runs (one list a seed); the line is the mean over seeds, the band
            spans from the lowest to the highest.
        ax: where to draw; default a new figure.
        xlabel: what the steps are.

    >>> import torch
    >>> from conditioned_attention.measure.records import HeadRecord
    >>> record = HeadRecord(0, 0, "attn", 0, False, 9.0, 8.0, 3.0, 2.0, 0.0, 0.0, 1.5)
    >>> ax = plot_condition_numbers({"baseline": [[record]]})
    >>> ax.get_ylabel()
    'average condition number'
    """
    ax = _axes(ax)
    drawn: list[float] = []
    for style, (label, seeds) in zip(styles(), runs.items()):
        curves = [average_condition_number(records) for records in seeds]
        floor = share_at_floor(record for records in seeds for record in records)
        share = "under 1%" if 0 < floor < 0.005 else f"{floor:.0%}"
        note = f" ({share} at the floor)" if floor > 0 else ""
        plot_band(ax, curves, label + note, style)
        drawn += [value for curve in curves for value in curve.values() if math.isfinite(value)]
    if drawn:
        ax.set_yscale("log")
    else:  # matplotlib has no logarithmic axis without a number on it
        ax.text(0.5, 0.5, "every head is at the numerical floor", ha="center", transform=ax.transAxes)
    ax.set_xlabel(xlabel)
    ax.set_ylabel("average condition number")
    legend_above(ax)
    return ax


def styles() -> Iterator[tuple[str, str]]:
    """Colour and kind of line for one curve after the other."""
    return cycle((colour, line) for line in _LINES for colour in COLOURS)


def plot_band(ax: Axes, curves: Sequence[Mapping[Any, float]], label: str, style: tuple[str, str]) -> None:
    """The mean of several curves over the steps that all have, in a band from the lowest to the highest.

    A step without finite neighbours, which no line would show, is a dot in a range.
    """
    colour, line = style
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    values = [[curve[step] for curve in curves] for step in steps]
    means = [_mean(v) for v in values]
    ax.plot(steps, means, color=colour, linestyle=line, label=label, linewidth=1.6)
    drawn = [False, *(math.isfinite(mean) for mean in means), False]
    for i, step in enumerate(steps):
        if drawn[i + 1] and not drawn[i] and not drawn[i + 2]:
            ax.plot([step], [means[i]], color=colour, marker="o", markersize=4)
            ax.vlines([step], min(values[i]), max(values[i]), color=colour, alpha=0.4)
    if len(curves) > 1:
        ax.fill_between(
            steps, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.15, linewidth=0
        )


def legend_above(ax: Axes) -> None:
    """The legend above the picture, where it covers no curve."""
    columns = _legend_columns(ax)
    size = "medium" if columns == 1 else "small"
    ax.legend(
        frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2, ncols=columns, fontsize=size
    )


def legend_height(ax: Axes) -> float:
    """Inches that the legend above takes."""
    return 0.2 * math.ceil(len(ax.get_legend_handles_labels()[0]) / _legend_columns(ax))


def _legend_columns(ax: Axes) -> int:
    return 1 if len(ax.get_legend_handles_labels()[0]) <= _LEGEND_COLUMN else 2


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    return Figure(figsize=(6.4, 4.0), layout="constrained").add_subplot()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.inf
