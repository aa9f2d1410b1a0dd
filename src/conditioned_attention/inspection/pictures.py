"""Draws an inspection as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from conditioned_attention.inspection.inspect import Inspection
from conditioned_attention.measure.plots.heat_maps import draw_multiples, layers_by_heads
from conditioned_attention.measure.plots.style import ThemeName

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_inspection(
    inspection: Inspection, axes: Sequence[Axes] | None = None, *, theme: ThemeName = "light"
) -> list[Axes]:
    """Plots log10 κ of every head as it is, with C, and with λ I if that was requested, in the same colours.

    Each panel is drawn on one of ``axes``; default a new figure.  Raises ValueError, with the reason, if the inspection
    has no condition numbers.

    >>> import torch
    >>> from conditioned_attention.inspection import inspect_model
    >>> layer = torch.nn.TransformerEncoderLayer(32, 4, 64)
    >>> [ax.get_title() for ax in plot_inspection(inspect_model(layer, torch.randn(10, 2, 32)))]
    ['as it is', 'with C']
    """
    if not inspection.heads:
        raise ValueError(f"there are no condition numbers to draw: {inspection.not_measured}")
    already = any(record.conditioned for record in inspection.heads)
    titles = ("before C", "after C") if already else ("as it is", "with C")
    grids = [
        layers_by_heads(inspection.heads, 0, field, title=title)
        for field, title in zip(("kappa_before", "kappa_after"), titles)
    ]
    if inspection.heads_corrected:
        title = f"with λ I, λ = {inspection.strength_shown}"
        grids.append(layers_by_heads(inspection.heads_corrected, 0, "kappa_before", title=title))
    return draw_multiples(grids, axes, theme, label="log₁₀ κ")
