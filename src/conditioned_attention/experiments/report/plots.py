"""Pictures of a comparison: scores during training, and how soon each variant reached the baseline's final score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from conditioned_attention.experiments.evidence.comparison import Comparison
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.evidence.statistics import (
    Clock,
    History,
    clock,
    last_score,
    reached,
    scores,
    times,
)
from conditioned_attention.measure.plots import ThemeName, legend_above, new_axes
from conditioned_attention.measure.plots.curves import plot_band
from conditioned_attention.measure.plots.style import find_theme, room_for_legend, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_scores(comparison: Comparison, ax: Axes | None = None, *, theme: ThemeName = "light") -> Axes:
    """Plots the score by epoch, one line per variant: the mean over seeds, in a band from the lowest to the highest.

    Runs that end within their first epoch are drawn by optimizer steps.

    Args:
        comparison: finished runs; a variant without any is left out.
        ax: where to draw; default a new figure.
        theme: ``"light"`` or ``"dark"``.

    >>> from conditioned_attention.experiments.evidence.comparison import Comparison
    >>> from conditioned_attention.experiments.tasks.task import Metric
    >>> history = [{"epoch": 1, "score": 50.0}, {"epoch": 2, "score": 70.0}]
    >>> ax = plot_scores(Comparison({"baseline": {0: history}}, Metric("accuracy (%)"), environment={}))
    >>> ax.get_ylabel()
    'accuracy (%)'
    """
    given, ax = ax, new_axes(ax, theme, (7.4, 3.6))
    by = clock(comparison.runs)
    for style, (variant, by_seed) in zip(styles(theme), comparison.runs.items()):
        curves = [dict(zip(times(history, by), scores(history))) for history in by_seed.values()]
        if curves:
            label = f"{variant} ({len(curves)} seed{'s' * (len(curves) > 1)})"
            plot_band(ax, curves, label, style, opacity=find_theme(theme).band)
    if ax.get_xlim()[1] > 5:
        ax.locator_params(axis="x", integer=True)
    ax.set_xlabel(by)
    ax.set_ylabel(comparison.metric.name)
    legend_above(ax)
    if given is None:
        room_for_legend(ax)
    return ax


def plot_epochs_to_baseline(comparison: Comparison, ax: Axes | None = None, *, theme: ThemeName = "light") -> Axes:
    """Plots the epoch at which each variant reached the baseline's final score, as figure 2 of arXiv 2603.27153 does.

    Of runs that end within their first epoch it is the optimizer step.

    A bar ends at the epoch at which the mean over seeds reached the final value of the baseline's mean
    (`Summary.reached`).  A dot is one seed, compared with the baseline's run of the same seed; noisy curves reach a
    score early, so the dots show only how much single runs scatter.  The baseline's bar ends where it *first* reached
    its own final score, which can be before the end of training.  If the mean never reached it, the bar is not filled
    and extends to the end of training.

    Args:
        comparison: finished runs; the first variant is the baseline.
        ax: where to draw; default a new figure.
        theme: ``"light"`` or ``"dark"``.

    Raises:
        ValueError: the comparison has no variant, or the theme is unknown.

    >>> from conditioned_attention.experiments.evidence.comparison import Comparison
    >>> from conditioned_attention.experiments.tasks.task import Metric
    >>> runs = {"baseline": [50.0, 70.0], "other": [70.0, 75.0]}
    >>> histories = {name: {0: [{"score": score} for score in scores]} for name, scores in runs.items()}
    >>> ax = plot_epochs_to_baseline(Comparison(histories, Metric("accuracy (%)"), environment={}))
    >>> [float(bar.get_width()) for bar in ax.patches]
    [2.0, 1.0]
    """
    if not comparison.runs:
        raise ValueError("comparison must hold a baseline at least, got no variant")
    ax = new_axes(ax, theme, (7.4, 1.1 + 0.42 * len(comparison.runs)))
    colours = find_theme(theme)
    baseline, *_ = comparison.runs.values()
    by = clock(comparison.runs)
    end = max((times(h, by)[-1] for by_seed in comparison.runs.values() for h in by_seed.values()), default=1.0)
    for place, (row, style) in enumerate(zip(comparison.summary(), styles(theme))):
        colour, time = style[0], row.reached.time
        runs = comparison.runs[row.variant]
        pairs = [(history, last_score(baseline[seed])) for seed, history in runs.items() if seed in baseline]
        if time is not None:
            ax.barh(place, time, height=0.6, color=colour, alpha=0.75)
        elif pairs:
            ax.barh(place, end, height=0.6, facecolor="none", edgecolor=colour, hatch="////")
        _dots(ax, place, pairs, comparison.metric, by, theme)
        ax.annotate(
            str(row.reached) if pairs else "no finished pair", (1.0, place), (6, 0),
            xycoords=("axes fraction", "data"), va="center", textcoords="offset points", color=colours.text,
        )  # fmt: skip
    ax.set_yticks(range(len(comparison.runs)), comparison.runs)
    ax.set_ylim(len(comparison.runs) - 0.5, -0.5)
    ax.set_xlim(0, end)
    ax.locator_params(axis="x", integer=end > 5)
    ax.set_xlabel(f"{by}s until the baseline's final score (bar: mean over seeds, dot: a seed)")
    return ax


def _dots(
    ax: Axes, place: int, pairs: Sequence[tuple[History, float]], metric: Metric, by: Clock, theme: ThemeName
) -> None:
    """Draws a dot for each run that reached its goal, one below the other so that all are visible."""
    for i, (history, goal) in enumerate(pairs):
        time = reached([history], goal, metric, by).time
        if time is not None:
            height = place + 0.5 * ((i + 0.5) / len(pairs) - 0.5)
            ax.plot(
                time, height, "o", markersize=5, color=find_theme(theme).background,
                markeredgecolor=find_theme(theme).text, clip_on=False, zorder=3,
            )  # fmt: skip
