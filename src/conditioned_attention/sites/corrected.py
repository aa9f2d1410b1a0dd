"""Lets an attention module compute with W + C, C fixed, while the parameter stays W.

While the module runs, each of its projections shows W + C under the name of its weight, by an entry in its
``__dict__``, which Python looks up before the registered parameters.  So it does not matter whether the module calls
the projection or reads the weight, and parameters, state_dict keys and classes stay what they are.  The gradient
reaches W; weight decay, which acts on the parameter, acts on W alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from conditioned_attention.sites.projections import Projection, Projections, Rows, as_matrix
from conditioned_attention.sites.site import HOOK_KEY
from conditioned_attention.spectral import Spectral, polar_correction

SPECTRAL = "_spectral"  # attribute of an attention module: how it is corrected.  Plain data: no key of the state_dict
_KEY = HOOK_KEY - 1
_SUFFIX = "_correction"  # of the buffer beside a weight whose correction cannot be computed again


def spectral_of(attention: nn.Module) -> Spectral | None:
    """How an attention module is corrected, or None."""
    return attention.__dict__.get(SPECTRAL)


def correct(attention: nn.Module, projections: Projections, spectral: Spectral) -> Callable[[], None]:
    """From now on the module computes with W + C; the function returned takes that back."""
    show = _Show(projections, projections.head_widths(attention))
    if spectral.correction == "polar":
        for projection in projections.weights:
            correction = show.polar(attention, projection, spectral)
            projection.owner(attention).register_buffer(projection.parameter + _SUFFIX, correction)
    attention.__dict__[SPECTRAL] = spectral
    attention._forward_pre_hooks[_KEY] = show
    attention._forward_hooks[_KEY] = _Hide(projections)
    attention._forward_hooks_always_called[_KEY] = True  # also where the forward raises

    def undo() -> None:
        uncorrect(attention)

    return undo


def uncorrect(attention: nn.Module) -> bool:
    """The module computes with W again; whether there was a correction to take off."""
    if attention.__dict__.pop(SPECTRAL, None) is None:
        return False
    show: Any = attention._forward_pre_hooks.pop(_KEY)
    del attention._forward_hooks[_KEY], attention._forward_hooks_always_called[_KEY]
    for projection in show.projections.weights:
        projection.owner(attention)._buffers.pop(projection.parameter + _SUFFIX, None)
    return True


@contextmanager
def shown(attention: nn.Module) -> Iterator[None]:
    """Within the block the projections of a corrected module show W + C, as they do while it runs."""
    show: Any = attention._forward_pre_hooks[_KEY]
    hide: Any = attention._forward_hooks[_KEY]
    show(attention, ())
    try:
        yield
    finally:
        hide(attention, (), None)


@dataclass(frozen=True)
class _Show:
    """Stands before the attention module."""

    projections: Projections
    widths: Mapping[str, int] = field(hash=False)

    def __call__(self, attention: nn.Module, args: tuple[Any, ...]) -> None:
        spectral = attention.__dict__[SPECTRAL]
        for projection in self.projections.weights:
            owner = projection.owner(attention)
            weight = getattr(owner, projection.parameter)
            correction = owner._buffers.get(projection.parameter + _SUFFIX)
            if correction is None:
                correction = self.identity(attention, projection, spectral)
            owner.__dict__[projection.parameter] = weight + _like(correction, weight)

    @torch.no_grad()
    def identity(self, attention: nn.Module, projection: Projection, spectral: Spectral) -> Tensor:
        """λ I_k for every role in a weight, in the weight's shape."""
        owner = projection.owner(attention)
        weight = getattr(owner, projection.parameter)
        correction = torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device)
        matrix = as_matrix(owner, correction)
        for role, rows in projection.rows(attention).items():
            for diagonal in _diagonals(matrix, rows, self.widths[role] if spectral.per_head else None):
                diagonal.fill_(spectral.strength)
        return correction

    @torch.no_grad()
    def polar(self, attention: nn.Module, projection: Projection, spectral: Spectral) -> Tensor:
        """λ σ_max(W) · U Vᵀ for every role in a weight, in the weight's shape."""
        owner = projection.owner(attention)
        weight = getattr(owner, projection.parameter)
        correction = torch.zeros_like(weight, memory_format=torch.contiguous_format)
        source, target = as_matrix(owner, weight), as_matrix(owner, correction)
        for role, rows in projection.rows(attention).items():
            indices = rows.indices()
            width = self.widths[role] if spectral.per_head else rows.count
            blocks = source[indices].unflatten(0, (-1, width))
            target[indices] = polar_correction(blocks, spectral.strength).flatten(0, 1)
        return correction


@dataclass(frozen=True)
class _Hide:
    """Stands behind it."""

    projections: Projections

    def __call__(self, attention: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        for projection in self.projections.weights:
            projection.owner(attention).__dict__.pop(projection.parameter, None)


def _diagonals(matrix: Tensor, rows: Rows, width: int | None) -> list[Tensor]:
    """Views of the entries that are 1 in I_k: one identity over all rows of a role, or one for every ``width`` rows."""
    along, across = matrix.stride()
    start = matrix.storage_offset() + rows.start * along
    columns = matrix.shape[1]
    if width is not None:
        shape = (rows.groups, rows.size // width, min(width, columns))
        return [matrix.as_strided(shape, (rows.step * along, width * along, along + across), start)]
    step = rows.step * along + rows.size * across
    whole, rest = divmod(min(rows.count, columns), rows.size)
    found = [matrix.as_strided((whole, rows.size), (step, along + across), start)]
    if rest:
        found.append(matrix.as_strided((rest,), (along + across,), start + whole * step))
    return found


def _like(correction: Tensor, weight: Tensor) -> Tensor:
    """The correction in the dtype of the weight, and spread over the same devices under tensor parallelism."""
    mesh = getattr(weight, "device_mesh", None)
    if mesh is None:
        return correction.to(weight.dtype)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(weight, DTensor)
    return distribute_tensor(correction.to(weight.dtype), mesh, weight.placements, src_data_rank=None)
