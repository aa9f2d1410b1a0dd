"""Plots of κ during training, with one curve per variant."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from conditioned_attention.measure.monitoring.records import HeadRecord
from conditioned_attention.measure.plots.style import (
    ThemeName,
    find_theme,
    legend_above,
    new_axes,
    room_for_legend,
    styles,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Edges = Mapping[Any, tuple[float, float]]


def average_condition_number(records: Iterable[HeadRecord]) -> dict[int, float]:
    """Averages κ at every step as in figure 3 of arXiv 2603.27153: over the heads of a layer, then over the layers.

    It is κ of the matrix that the model uses (after C where it is conditioned).  Heads at the numerical floor have no κ
    and are left out; a step at which every head is at the floor gets ``inf``.

    >>> from conditioned_attention.measure import HeadRecord
    >>> from conditioned_attention.measure.plots import average_condition_number
    >>> of = lambda head, kappa: HeadRecord(100, 0, "attn", head, False, kappa, 8.0, 3.0, 2.0, 0.0, 0.0, 1.5)
    >>> average_condition_number([of(0, 10.0), of(1, 30.0), of(2, float("inf"))])
    {100: 20.0}
    """
    layers: dict[int, dict[int, list[float]]] = {}
    for record in records:
        values = layers.setdefault(record.step, {}).setdefault(record.layer, [])
        if math.isfinite(record.kappa):
            values.append(record.kappa)
    return {step: _mean([_mean(v) for v in by_layer.values() if v]) for step, by_layer in sorted(layers.items())}


def share_at_floor(records: Iterable[HeadRecord]) -> float:
    """Share of the records whose κ cannot be distinguished from infinity at the data's precision; NaN without records.

    Records without a κ, because the head was not finite, do not count.

    >>> from conditioned_attention.measure import HeadRecord
    >>> from conditioned_attention.measure.plots import share_at_floor
    >>> of = lambda head, kappa: HeadRecord(100, 0, "attn", head, False, kappa, 8.0, 3.0, 2.0, 0.0, 0.0, 1.5)
    >>> share_at_floor([of(0, 10.0), of(1, float("inf"))])
    0.5
    """
    kappas = [record.kappa for record in records if not math.isnan(record.kappa)]
    return sum(map(math.isinf, kappas)) / len(kappas) if kappas else math.nan


def plot_condition_numbers(
    runs: Mapping[str, Sequence[Sequence[HeadRecord]]],
    ax: Axes | None = None,
    *,
    quantiles: tuple[float, float] | None = None,
    theme: ThemeName = "light",
) -> Axes:
    """Plots average κ during training with one line per variant, as in figure 3 of arXiv 2603.27153.

    The line leaves out heads at the numerical floor, whose share is in the legend; a dashed line shows the largest κ
    that can be distinguished from infinity, unless the records are of an older version that did not store it.

    Args:
        runs: for each label the records of its runs (one list per seed); the line is the mean over seeds.
        ax: where to draw; default a new figure.
        quantiles: None for a band from the lowest to the highest seed; two numbers in 0..1 for a band between these
            quantiles over all heads of all seeds.  A quantile among heads at the floor is drawn at the floor or, if
            that is not known, at the largest κ of the runs.  A few very large κ can lift the mean above the band.
        theme: ``"light"`` or ``"dark"``.

    Raises:
        ValueError: ``quantiles`` or ``theme`` is invalid.

    >>> from conditioned_attention.measure import HeadRecord
    >>> from conditioned_attention.measure.plots import plot_condition_numbers
    >>> record = HeadRecord(0, 0, "attn", 0, False, 9.0, 8.0, 3.0, 2.0, 0.0, 0.0, 1.5)
    >>> ax = plot_condition_numbers({"baseline": [[record]]}, theme="dark")
    >>> ax.get_ylabel()
    'average condition number'
    """
    if quantiles is not None and not 0 <= quantiles[0] < quantiles[1] <= 1:
        raise ValueError(f"quantiles must be two numbers, 0 ≤ low < high ≤ 1, got {quantiles}")
    given, ax = ax, new_axes(ax, theme)
    everything = [record for seeds in runs.values() for records in seeds for record in records]
    for style, (label, seeds) in zip(styles(theme), runs.items()):
        _draw(ax, label, seeds, style, quantiles, _ceiling(everything), theme)
    _finish(ax, everything, theme)
    if given is None:
        room_for_legend(ax)
    return ax


def plot_runs_apart(runs: Mapping[str, Sequence[HeadRecord]], axes: Sequence[Axes], theme: ThemeName) -> None:
    """`plot_condition_numbers` with one run per panel, in the colours they would have in one, and with equal limits."""
    everything = [record for records in runs.values() for record in records]
    for ax, style, (label, records) in zip(axes, styles(theme), runs.items()):
        _draw(ax, label, [records], style, (0.1, 0.9), _ceiling(everything), theme)
        _finish(ax, records, theme)
    logarithmic = [ax for ax in axes if ax.get_yscale() == "log"]
    limits = [ax.get_ylim() for ax in logarithmic]
    for ax in logarithmic:
        ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def _draw(
    ax: Axes,
    label: str,
    seeds: Sequence[Sequence[HeadRecord]],
    style: tuple[str, str],
    quantiles: tuple[float, float] | None,
    ceiling: float,
    theme: ThemeName,
) -> None:
    curves = [average_condition_number(records) for records in seeds]
    heads = [record for records in seeds for record in records]
    edges: Edges | None = None
    if quantiles is not None:
        by_step: dict[int, list[float]] = {}
        for record in heads:
            if not math.isnan(record.kappa):
                by_step.setdefault(record.step, []).append(min(record.kappa, ceiling))
        low, high = quantiles
        edges = {step: (quantile(values, low), quantile(values, high)) for step, values in by_step.items()}
    plot_band(ax, curves, label + floor_note(share_at_floor(heads)), style, edges=edges, opacity=find_theme(theme).band)


def _finish(ax: Axes, records: Sequence[HeadRecord], theme: ThemeName) -> None:
    finite = any(math.isfinite(record.kappa) for record in records)
    at_floor = any(math.isinf(record.kappa) for record in records)
    finish_axes(ax, finite, at_floor, _resolutions(records), theme)


def floor_note(share: float) -> str:
    """What the legend says about the share of heads that a line leaves out; empty if there are none."""
    shown = "under 1%" if 0 < share < 0.005 else f"{share:.0%}"
    return f" ({shown} at the floor)" if share > 0 else ""


def finish_axes(ax: Axes, finite: bool, at_floor: bool, floors: Sequence[float], theme: ThemeName = "light") -> None:
    """Adds labels and legend to an ``ax`` with curves, and a logarithmic axis with the numerical ``floors``, ascending.

    If no head has a ``finite`` κ, a text says why there is nothing to draw: all are ``at_floor``, or none was measured.
    """
    colours = find_theme(theme)
    if finite:
        ax.set_yscale("log")
    else:  # matplotlib has no logarithmic axis without numbers
        what = "every head is at the numerical floor" if at_floor else "nothing was measured"
        ax.text(0.5, 0.5, what, ha="center", transform=ax.transAxes, color=colours.text)
    if finite and floors:
        for floor in floors:
            ax.axhline(floor, color=colours.faint, linestyle="--", linewidth=1.0)
        # Nothing is drawn above the highest, so the text covers no curve, and room is made for it.
        ax.annotate(
            limit_of(floors[-1]), (1.0, floors[-1]), (-4, 2), xycoords=("axes fraction", "data"), ha="right",
            textcoords="offset points", fontsize="small", color=colours.text,
        )  # fmt: skip
        low, high = ax.get_ylim()
        ax.set_ylim(low, max(high, floors[-1] * (floors[-1] / low) ** 0.1))
    _plain_ticks(ax)
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("average condition number")
    legend_above(ax)


def limit_of(resolution: float) -> str:
    """The name of the precision that cannot distinguish a larger κ from infinity.

    >>> limit_of(4.9e5), limit_of(2.3e13)
    ('limit of float32', 'limit of float64')
    """
    return f"limit of float{32 if resolution < 1e9 else 64}"


def _plain_ticks(ax: Axes) -> None:
    """Writes 1, 2, 5, 10 and so on instead of 2 × 10⁰ where a logarithmic axis has few powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = ax.get_ylim()
    if ax.get_yscale() == "log" and high < 100 * low:
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())


def _resolutions(records: Iterable[HeadRecord]) -> list[float]:
    """Where the floor is, ascending: one number unless heads differ in size or dtype; none in older files."""
    return sorted({record.resolution for record in records if math.isfinite(record.resolution)})


def _ceiling(records: Sequence[HeadRecord]) -> float:
    finite = [record.kappa for record in records if math.isfinite(record.kappa)]
    return max([*_resolutions(records)[-1:], *finite], default=math.inf)


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed: one of them, so inf does no harm.

    >>> quantile([1.0, 2.0, 3.0, float("inf")], 0.5)
    2.0
    """
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def plot_band(
    ax: Axes,
    curves: Sequence[Mapping[Any, float]],
    label: str,
    style: tuple[str, str],
    *,
    edges: Edges | None = None,
    opacity: float = 0.15,
) -> None:
    """Draws the mean of several curves over the steps that all have, and a band from lowest to highest, or ``edges``.

    A step without finite neighbours, which no line would show, is drawn as a dot in a range.
    """
    colour, line = style
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    values = [[curve[step] for curve in curves] for step in steps]
    means = [_mean(v) for v in values]
    band = [
        (min(v), max(v)) if edges is None else edges.get(step, (math.nan, math.nan)) for step, v in zip(steps, values)
    ]
    ax.plot(steps, means, color=colour, linestyle=line, label=label, linewidth=1.6)
    drawn = [False, *(math.isfinite(mean) for mean in means), False]
    for i, step in enumerate(steps):
        if drawn[i + 1] and not drawn[i] and not drawn[i + 2]:
            ax.plot([step], [means[i]], color=colour, marker="o", markersize=4)
            ax.vlines([step], *band[i], color=colour, alpha=0.4)
    if band and (len(curves) > 1 or edges is not None):
        low, high = zip(*band)
        ax.fill_between(steps, low, high, color=colour, alpha=opacity, linewidth=0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.inf
