"""Spectra of the attention weights of chosen layers of a model.

Shapes: B samples, H heads, N queries, M keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from conditioned_attention.measure.numbers.spectra import Spectrum, resolution, spectrum
from conditioned_attention.measure.probing.probe import Passing, call, undisturbed, watch_heads
from conditioned_attention.sites import Site, find_sites, install, unwrap


@dataclass(frozen=True)
class LayerWeights:
    """The attention weights of one call of attention.

    Attributes:
        layer: position of the call in the forward pass, from 0.
        module: name of the attention module.
        spectrum: of softmax(q kᵀ), (B, H) matrices of N × M.
    """

    layer: int
    module: str
    spectrum: Spectrum


def attention_weights_spectra(model: nn.Module, probe: Any, layers: Sequence[int]) -> list[LayerWeights]:
    """Singular values of softmax(q kᵀ) in chosen attention calls, with masks and biases as the model has them.

    Fused attention never builds these matrices, B · H · N · M numbers per layer.  Here they are built, for one layer at
    a time, and decomposed one head after another.  For long sequences there is
    `conditioned_attention.measure.numbers.attention_weights.attention_spectrum`, which needs queries and keys only.

    The model is called with ``probe`` and left as it was; ``layers`` are positions of the calls, from 0.  Raises
    ValueError for one that does not exist, or for attention whose weights cannot be obtained, with the reason.

    >>> import torch
    >>> layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    >>> found, = attention_weights_spectra(layer, torch.randn(2, 10, 32), [0])
    >>> found.module, found.spectrum.singular_values.shape
    ('self_attn', torch.Size([2, 4, 10]))
    """
    model = unwrap(model)
    names: list[str] = []
    watch_heads(model, probe, lambda _, outputs: names.append(outputs.module))
    if wrong := [layer for layer in layers if not 0 <= layer < len(names)]:
        raise ValueError(f"layers={wrong}: the forward pass has {len(names)} attention calls, from 0")
    modules = {names[layer] for layer in layers}
    positions = {name: [i for i, n in enumerate(names) if n == name] for name in modules}
    found: dict[int, LayerWeights] = {}

    def take(module: str, weights: Tensor) -> None:
        layer = positions[module].pop(0)
        if layer in layers:
            heads = weights.detach().flatten(0, -4)
            values = [spectrum(head).singular_values.cpu() for head in heads.flatten(0, 1)]  # one after the other
            together = torch.stack(values).unflatten(0, heads.shape[:2])
            found[layer] = LayerWeights(layer, module, Spectrum(together, resolution(weights)))

    sites = [site for site in find_sites(model) if site.reachable and site.name in modules]
    with ExitStack() as stack:
        stack.enter_context(undisturbed(model))
        stack.callback(install(sites, lambda site: _Reading(site, take)))
        call(model, probe)
    return [found[layer] for layer in sorted(found)]


class _Reading(Passing, recorded=False):
    """Reads the attention weights while the module runs as before."""

    kind = "reading weights"
    needs_weights, norms_suffice = True, False

    def __init__(self, site: Site, take: Callable[[str, Tensor], None]) -> None:
        super().__init__(site)
        self.take = take

    def __call__(self, output: Tensor, weights: Tensor | None = None) -> Tensor:
        assert weights is not None
        self.take(self.site.name, weights)
        return super().__call__(output, weights)
