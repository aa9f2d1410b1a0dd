"""Plots of the singular values of head outputs, before and after C."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from conditioned_attention.measure.numbers.spectra import spectrum
from conditioned_attention.measure.plots.style import (
    ThemeName,
    find_theme,
    legend_above,
    named_on_the_first,
    new_axes,
    panels,
    room_for_legend,
)
from conditioned_attention.measure.probing.probe import HeadOutputs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_QUANTILES = (0.1, 0.5, 0.9)  # the band, and the line in it
_DOTS = 32  # singular values up to which each gets a dot


def plot_spectra(
    before: Tensor, after: Tensor | None = None, ax: Axes | None = None, *, theme: ThemeName = "light"
) -> Axes:
    """Plots singular values divided by the largest, σ_i / σ₁, over i / k with k = min(n, d): the line ends at 1 / κ.

    Lines are medians over the matrices, bands reach from the 10 % to the 90 % quantile.  Below the dotted line a
    singular value cannot be distinguished from rounding error.  Matrices that are zero or not finite are left out.

    Args:
        before: (..., n, d), floating point: one matrix per sample.
        after: the same matrices after C; default none.
        ax: where to draw; default a new figure.
        theme: ``"light"`` or ``"dark"``.

    Raises:
        TypeError: not floating-point tensors.
        ValueError: tensors that hold no matrices, no matrix that is finite and not zero, or an unknown theme.

    >>> import torch
    >>> from conditioned_attention.measure.plots import plot_spectra
    >>> ax = plot_spectra(torch.diag(torch.tensor([4.0, 2.0, 1.0])))
    >>> ax.get_lines()[0].get_ydata().tolist()
    [1.0, 0.5, 0.25]
    """
    given, ax = ax, new_axes(ax, theme, (4.8, 3.6))
    _draw(ax, before, after, theme)
    legend_above(ax)
    if given is None:
        room_for_legend(ax)
    return ax


def plot_head_spectra(
    outputs: Sequence[HeadOutputs],
    heads: Sequence[tuple[int, int]],
    axes: Sequence[Axes] | None = None,
    *,
    theme: ThemeName = "light",
) -> list[Axes]:
    """Draws `plot_spectra` for chosen heads side by side, on the same scale.

    Args:
        outputs: what `conditioned_attention.measure.probing.probe.head_outputs` found in a model.
        heads: (layer, head) of each panel, from 0; raises ValueError if empty, or for a head that does not exist.
        axes: where to draw, one per head (any other number raises ValueError); default a new figure.
        theme: as for `plot_spectra`.

    >>> import torch
    >>> from conditioned_attention.measure.plots import plot_head_spectra
    >>> from conditioned_attention.measure.probing.probe import head_outputs
    >>> outputs = head_outputs(torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), torch.randn(2, 5, 32))
    >>> [ax.get_title() for ax in plot_head_spectra(outputs, [(0, 0), (0, 3)])]
    ['layer 0, head 0', 'layer 0, head 3']
    """
    if not heads:
        raise ValueError("heads must name at least one (layer, head), got none")
    chosen = [_head(outputs, layer, head) for layer, head in heads]
    drawn = panels(axes, len(heads), theme, (0.8 + 2.6 * len(heads), 3.4))
    for ax, (layer, head), (before, after) in zip(drawn, heads, chosen):
        _draw(ax, before, after, theme)
        ax.set_title(f"layer {layer}, head {head}", fontsize="medium")
    bottom = min(ax.get_ylim()[0] for ax in drawn)
    for ax in drawn:
        ax.set_ylim(bottom=bottom)
    named_on_the_first(drawn)
    text = find_theme(theme).text
    if axes is None:
        drawn[0].figure.legend(
            *drawn[0].get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False, labelcolor=text
        )
    else:
        drawn[0].legend(frameon=False, labelcolor=text, fontsize="small")
    return drawn


def _head(outputs: Sequence[HeadOutputs], layer: int, head: int) -> tuple[Tensor, Tensor]:
    if not 0 <= layer < len(outputs) or not 0 <= head < outputs[layer].before.shape[-3]:
        sizes = [output.before.shape[-3] for output in outputs]
        raise ValueError(f"heads must be (layer, head) among layers of {sizes} heads, got {(layer, head)}")
    return outputs[layer].before[..., head, :, :], outputs[layer].after[..., head, :, :]


def _draw(ax: Axes, before: Tensor, after: Tensor | None, theme: ThemeName) -> None:
    colours = find_theme(theme)
    lines = [("before C", before, colours.colours[0], "-")]
    lines += [("after C", after, colours.colours[1], "--")] if after is not None else []
    ends: list[float] = []
    for label, matrices, colour, line in lines:
        low, middle, high, floor = _normalised(label, matrices)
        k = len(middle)
        places = [(i + 1) / k for i in range(k)]
        ax.plot(
            places, middle, color=colour, linestyle=line, label=label, linewidth=1.6,
            marker="o" if k <= _DOTS else "", markersize=4,
        )  # fmt: skip
        ax.fill_between(places, low, high, color=colour, alpha=colours.band, linewidth=0)
        ends += [floor / 5, middle[-1] / 2 if middle[-1] > floor else floor / 5]
    ax.axhline(floor, color=colours.faint, linestyle=":", linewidth=1.6, label="numerical floor")
    ax.set_yscale("log")
    ax.set_ylim(min(ends), 1.6)
    ax.set_xlim(0, 1.04)
    ax.set_xticks([0.25, 0.5, 0.75, 1])  # a label at 0 would lie on one of the other axis
    ax.set_xlabel("index / number of singular values")
    ax.set_ylabel("singular value / largest")


def _normalised(name: str, matrices: Tensor) -> tuple[list[float], list[float], list[float], float]:
    """Low quantile, median and high quantile over the samples of σ_i / σ₁, each of k numbers; and the floor."""
    found = spectrum(matrices)
    k = found.singular_values.shape[-1]
    ratios = (found.singular_values / found.sigma_max[..., None]).reshape(-1, k)
    ratios = ratios[ratios.isfinite().all(-1)]
    if not len(ratios):
        raise ValueError(f"the matrices {name} must have one that is finite and not zero")
    levels = torch.tensor(_QUANTILES, dtype=ratios.dtype, device=ratios.device)
    low, middle, high = ratios.quantile(levels, dim=0).tolist()
    return low, middle, high, 1 / found.resolution
