"""κ of a comparison as a picture, out of long logs; and pictures as PNG files."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from conditioned_attention.experiments.columns import Heads, average_kappa
from conditioned_attention.measure.plots import legend_above, legend_height, plot_band, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_kappa(heads: Mapping[str, Sequence[Heads]], ax: Axes) -> Axes:
    """What `plot_condition_numbers` draws of records, of the arrays that long logs are read into."""
    found = False
    for style, (variant, runs) in zip(styles(), heads.items()):
        curves = [dict(zip(h.steps.tolist(), average_kappa(h).tolist())) for h in runs]
        plot_band(ax, curves, variant + floor_note(runs), style)
        found = found or any(math.isfinite(value) for curve in curves for value in curve.values())
    if found:
        ax.set_yscale("log")
    else:  # matplotlib has no logarithmic axis without a number on it
        ax.text(0.5, 0.5, "every head is at the numerical floor", ha="center", transform=ax.transAxes)
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("average condition number")
    legend_above(ax)
    return ax


def floor_note(runs: Sequence[Heads]) -> str:
    """The share of records at the numerical floor, in brackets; empty if there are none."""
    floor = sum(int(np.isinf(h.used).sum()) for h in runs) / sum(int((~np.isnan(h.used)).sum()) for h in runs)
    share = "under 1%" if 0 < floor < 0.005 else f"{floor:.0%}"
    return f" ({share} at the floor)" if floor > 0 else ""


def picture(draw: Callable[[Axes], Any]) -> bytes:
    """A PNG file of what ``draw`` draws."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.4, 3.6), layout="constrained")
    figure.set_figheight(3.6 + legend_height(draw(figure.add_subplot())))
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)  # type: ignore[no-untyped-call]
    return stream.getvalue()
