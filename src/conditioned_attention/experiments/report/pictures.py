"""Draws κ of a comparison from long logs, and turns drawings into PNG files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from conditioned_attention.experiments.report.columns import Heads, average_kappa
from conditioned_attention.measure.plots.curves import finish_axes, floor_note, plot_band
from conditioned_attention.measure.plots.files import png
from conditioned_attention.measure.plots.style import legend_height, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_kappa(heads: Mapping[str, Sequence[Heads]], ax: Axes) -> Axes:
    """Draws the same as `plot_condition_numbers`, but from the arrays that long logs are read into."""
    everything = [h for runs in heads.values() for h in runs]
    for style, (variant, runs) in zip(styles(), heads.items()):
        curves = [dict(zip(h.steps.tolist(), average_kappa(h).tolist())) for h in runs]
        plot_band(ax, curves, variant + floor_note(_share_at_floor(runs)), style)
    finite = any(np.isfinite(h.used).any() for h in everything)
    at_floor = any(np.isinf(h.used).any() for h in everything)
    finish_axes(ax, finite, at_floor, sorted({h.resolution for h in everything if math.isfinite(h.resolution)}))
    return ax


def _share_at_floor(runs: Sequence[Heads]) -> float:
    measured = sum(int((~np.isnan(h.used)).sum()) for h in runs)
    return sum(int(np.isinf(h.used).sum()) for h in runs) / measured if measured else math.nan


def picture(draw: Callable[[Axes], Any]) -> bytes:
    """A PNG file of what ``draw`` draws."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.4, 3.6), layout="constrained")
    figure.set_figheight(3.6 + legend_height(draw(figure.add_subplot())))
    return png(figure)
