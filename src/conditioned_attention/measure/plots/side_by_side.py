"""Plots several runs side by side, on common scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from conditioned_attention.measure.monitoring.records import HeadRecord
from conditioned_attention.measure.plots.curves import plot_runs_apart
from conditioned_attention.measure.plots.heat_maps import draw_multiples, layers_by_heads, layers_by_steps
from conditioned_attention.measure.plots.style import ThemeName, named_on_the_first, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Picture = Literal["curves", "heads", "layers"]
_PICTURES = ("curves", "heads", "layers")


def side_by_side(
    runs: Mapping[str, Sequence[HeadRecord]],
    axes: Sequence[Axes] | None = None,
    *,
    picture: Picture = "heads",
    field: str = "kappa",
    theme: ThemeName = "light",
) -> list[Axes]:
    """Draws two or more runs side by side, with the same axis limits or the same colours.

    Args:
        runs: the records of each run, by the name that its panel gets.
        axes: where to draw, one for each run; default a new figure.
        picture: ``"curves"``: average κ by step, with a band from the 10 % to the 90 % quantile over heads
            (`plot_condition_numbers`); ``"heads"``: layer × head, each run at its last step (`plot_heat_map`);
            ``"layers"``: layer × step (`plot_layers`).
        field: the number that heat maps show, as for `plot_heat_map`.
        theme: ``"light"`` or ``"dark"``.

    Raises ValueError for no runs, a run without records, an unknown picture, field or theme, or a number of ``axes``
    other than that of the runs.

    >>> from conditioned_attention.measure import HeadRecord
    >>> from conditioned_attention.measure.plots import side_by_side
    >>> record = HeadRecord(0, 0, "attn", 0, False, 9.0, 8.0, 3.0, 2.0, 0.0, 0.0, 1.5)
    >>> [ax.get_title() for ax in side_by_side({"plain": [record], "with C": [record]})]
    ['plain, step 0', 'with C, step 0']
    """
    if picture not in _PICTURES:
        raise ValueError(f"picture must be one of {', '.join(map(repr, _PICTURES))}, got {picture!r}")
    if not runs or not all(runs.values()):
        lengths = {name: len(records) for name, records in runs.items()}
        raise ValueError(f"runs must have records each, got {lengths}")
    if picture == "curves":
        drawn = panels(axes, len(runs), theme, (0.6 + 3.2 * len(runs), 3.6))
        plot_runs_apart(runs, drawn, theme)
        named_on_the_first(drawn, numbers=all(ax.get_yscale() == "log" for ax in drawn))
        return drawn
    if picture == "layers":
        grids = [replace(layers_by_steps(records, field), title=name) for name, records in runs.items()]
    else:
        found = {name: layers_by_heads(records, None, field) for name, records in runs.items()}
        grids = [replace(grid, title=f"{name}, {grid.title}") for name, grid in found.items()]
    return draw_multiples(grids, axes, theme)
