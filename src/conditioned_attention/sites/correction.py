"""C for one weight of an attention module: λ I or the polar factor, in the shape that the weight is kept in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from conditioned_attention.sites.projections import Projection, Projections, Rows, as_matrix, held, whole
from conditioned_attention.sites.site import plain_class
from conditioned_attention.spectral import Spectral, polar_correction

SUFFIX = "_correction"  # of the buffer beside a weight whose correction cannot be computed again


@dataclass(frozen=True)
class Correction:
    """Computes C for one weight, from its settings and from the module that owns the weight at the time.

    Attributes:
        projection: which rows of which weight are queries, keys and values.
        widths: the number of rows of one head, for each role.
        spectral: λ, and what is made with it.
        attention: the class whose forward computes with the weight.
    """

    projection: Projection
    widths: Mapping[str, int] = field(hash=False)
    spectral: Spectral
    attention: type[nn.Module]

    def of(self, owner: nn.Module) -> Tensor:
        """C for the weight as it is now: in its shape, its dtype and on its devices."""
        kept = owner._buffers.get(self.projection.parameter + SUFFIX)
        correction = self.identity(owner) if self.spectral.correction == "identity" else kept
        assert correction is not None
        return _like(correction, self.weight(owner))

    @torch.no_grad()
    def identity(self, owner: nn.Module) -> Tensor:
        """λ I_k for every role in the weight, in the weight's shape."""
        weight = self.weight(owner)
        correction = torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device)
        matrix = as_matrix(owner, correction)
        for role, rows in self._rows(owner):
            for place in _diagonals(matrix, rows, self.widths[role] if self.spectral.per_head else None):
                correction.as_strided(*place).fill_(self.spectral.strength)
        return correction

    @torch.no_grad()
    def polar(self, owner: nn.Module) -> Tensor:
        """λ σ_max(W) · U Vᵀ for every role in the weight, in the weight's shape."""
        weight = whole(self.weight(owner))
        correction = torch.zeros_like(weight, memory_format=torch.contiguous_format)
        source, target = as_matrix(owner, weight), as_matrix(owner, correction)
        for role, rows in self._rows(owner):
            indices = rows.indices()
            width = self.widths[role] if self.spectral.per_head else rows.count
            blocks = source[indices].unflatten(0, (-1, width))
            target[indices] = polar_correction(blocks, self.spectral.strength).flatten(0, 1)
        return correction

    def open(self, owner: nn.Module) -> Tensor:
        """NaN in the weight's shape, until a state_dict brings the numbers."""
        return torch.full_like(whole(self.weight(owner)).detach(), torch.nan, memory_format=torch.contiguous_format)

    def largest(self, owner: nn.Module) -> float:
        """The largest entry of C."""
        if self.spectral.correction == "identity":
            return self.spectral.strength
        kept = owner._buffers[self.projection.parameter + SUFFIX]
        assert kept is not None
        return float(kept.abs().max())

    def weight(self, owner: nn.Module) -> Tensor:
        """W, or the tensor in its place."""
        weight = held(owner, self.projection.parameter)
        assert weight is not None
        return weight

    def _rows(self, owner: nn.Module) -> list[tuple[str, Rows]]:
        return [(role, rows) for role, rows in self.projection.rows_of(owner).items() if role in self.spectral.roles]


def corrections_for(
    attention: nn.Module, projections: Projections, spectral: Spectral
) -> list[tuple[nn.Module, Correction]]:
    """C for every weight of an attention module that holds a role to correct, with the module that owns it."""
    widths, cls = projections.head_widths(attention), plain_class(attention)
    weights = projections.of(spectral.roles).weights
    return [(weight.owner(attention), Correction(weight, widths, spectral, cls)) for weight in weights]


def _diagonals(matrix: Tensor, rows: Rows, width: int | None) -> list[tuple[Any, Any, int]]:
    """Sizes, strides and offsets of the entries that are 1 in I_k.

    There is one identity over all rows of a role, or one for every ``width`` rows.
    """
    along, across = matrix.stride()
    start = rows.start * along  # the matrix is newly allocated, so its memory begins at offset 0
    columns = int(matrix.shape[1])  # torch.jit traces sizes as tensors
    if width is not None:
        shape = (rows.groups, rows.size // width, min(width, columns))
        return [(shape, (rows.step * along, width * along, along + across), start)]
    step = rows.step * along + rows.size * across
    whole, rest = divmod(min(rows.count, columns), rows.size)
    found: list[tuple[Any, Any, int]] = [((whole, rows.size), (step, along + across), start)]
    if rest:
        found.append(((rest,), (along + across,), start + whole * step))
    return found


def _like(correction: Tensor, weight: Tensor) -> Tensor:
    """The correction in the dtype of the weight, and spread over the same devices under tensor parallelism."""
    mesh = getattr(weight, "device_mesh", None)
    if mesh is None:
        return correction.to(weight.dtype)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(weight, DTensor)
    return distribute_tensor(correction.to(weight.dtype), mesh, weight.placements, src_data_rank=None)
