"""Plots of measurements: functions take records or tensors and return matplotlib Axes; nothing is written to disk.

Every plotting function takes ``theme="light"`` or ``"dark"``, in which it paints the whole figure.  It draws into the
axes that it is given (``ax=`` or ``axes=``) or into a new figure, and works without a display:
``ax.figure.savefig("picture.png")``.
"""

from conditioned_attention.measure.plots.curves import average_condition_number, plot_condition_numbers, share_at_floor
from conditioned_attention.measure.plots.heat_maps import (
    FIELDS,
    plot_before_after,
    plot_heat_map,
    plot_heat_maps,
    plot_layers,
)
from conditioned_attention.measure.plots.side_by_side import side_by_side
from conditioned_attention.measure.plots.spectra import plot_head_spectra, plot_spectra
from conditioned_attention.measure.plots.style import COLOURS, THEMES, Theme, ThemeName, legend_above, new_axes

__all__ = [
    "COLOURS", "FIELDS", "THEMES", "Theme", "ThemeName", "average_condition_number", "legend_above", "new_axes",
    "plot_before_after", "plot_condition_numbers", "plot_head_spectra", "plot_heat_map", "plot_heat_maps",
    "plot_layers", "plot_spectra", "share_at_floor", "side_by_side",
]  # fmt: skip
