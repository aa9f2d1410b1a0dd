"""Spectra of attention weights P = softmax(q kᵀ · scale), one head at a time.

P is N × M, and is never built here for more than one head at a time; with ``leading`` it is not built at all: P V and
Pᵀ U are computed in blocks of rows, as in attention itself.

Shapes: B batch, H heads, N queries, M keys, D head width, R leading values, S vectors that are carried along.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from conditioned_attention.measure.numbers.spectra import check_floats

_BESIDE = 8  # vectors carried besides the wanted ones: the last of those converges as fast as the gap behind these
_PASSES = 4


@dataclass(frozen=True)
class WeightsSpectrum:
    """Singular values of the attention weights of a batch of heads.

    Attributes:
        singular_values: (B, H, R), float64, descending: all of them, or the leading ones.
        error: (B, H, R), how far each may be from a singular value of P: the norm of ``Pᵀ u - σ v``, for ``P v = σ u``;
            0 where all were computed.
        stable_rank: (B, H), ``‖P‖_F² / σ₁²``: near 1 where all queries look at the same keys, N where each looks at one
            of its own.
    """

    singular_values: Tensor
    error: Tensor
    stable_rank: Tensor


def attention_spectrum(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    leading: int | None = None,
    block: int = 256,
    seed: int = 0,
) -> WeightsSpectrum:
    """Computes the singular values of ``softmax(q kᵀ · scale)`` for every head.

    σ₁ is at least √(N / M), because rows sum to 1; κ of P can rarely be distinguished from infinity, as its singular
    values fall fast.

    Args:
        query, key: (B, H, N, D) and (B, H, M, D).
        attn_mask: boolean (True: attend) or added to the logits, broadcast to (B, H, N, M).
        is_causal: whether query i sees the keys 0 … i only.
        scale: the factor on the logits, default 1 / √D.
        leading: how many of the largest to estimate, by subspace iteration from a random start; None computes all of
            them and needs N · M numbers for one head.
        block: the number of rows of P that exist at one time with ``leading``.
        seed: the seed of the random start.

    Raises:
        TypeError: not floating-point tensors.
        ValueError: shapes that do not fit, or ``leading`` or ``block`` out of range.

    >>> import torch
    >>> found = attention_spectrum(*torch.randn(2, 1, 4, 300, 16), leading=2)
    >>> found.singular_values.shape, bool((found.error[..., 0] < 1e-3).all())
    (torch.Size([1, 4, 2]), True)
    """
    _check(query, key, leading, block)
    b, h, n, _ = query.shape
    m = key.shape[-2]
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    mask = None if attn_mask is None else attn_mask.expand(b, h, n, m)
    found = []
    for i, j in itertools.product(range(b), range(h)):
        head = _Weights(query[i, j], key[i, j], None if mask is None else mask[i, j], is_causal, scale, block)
        sigma, error, squares = _all(head) if leading is None else _leading(head, leading, seed)
        found.append((sigma, error, squares / sigma[0] ** 2))
    return WeightsSpectrum(*(torch.stack(parts).unflatten(0, (b, h)) for parts in zip(*found)))


@dataclass(frozen=True)
class _Weights:
    """P of one head, by blocks of rows."""

    query: Tensor
    key: Tensor
    mask: Tensor | None
    is_causal: bool
    scale: float
    block: int

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yields P in blocks of rows, (block, M), in float64; the row of a query that may attend to nothing is zero."""
        key = self.key.detach().double()
        for start in range(0, self.query.shape[0], self.block):
            rows = slice(start, min(start + self.block, self.query.shape[0]))
            logits = self.query[rows].detach().double() @ key.mT * self.scale
            if self.mask is not None:
                part = self.mask[rows]
                logits = logits.masked_fill(~part, -math.inf) if part.dtype == torch.bool else logits + part
            if self.is_causal:
                later = torch.ones_like(logits, dtype=torch.bool).triu(rows.start + 1)
                logits = logits.masked_fill(later, -math.inf)
            nothing = (logits == -math.inf).all(-1, keepdim=True)
            yield rows, logits.masked_fill(nothing, 0.0).softmax(-1).masked_fill(nothing, 0.0)

    def times(self, right: Tensor) -> Tensor:
        """P · right, (N, S)."""
        return torch.cat([part @ right for _, part in self.blocks()])

    def transposed_times(self, left: Tensor) -> tuple[Tensor, Tensor]:
        """Pᵀ · left, (M, S), and ‖P‖_F²."""
        product, squares = left.new_zeros(self.key.shape[0], left.shape[1]), left.new_zeros(())
        for rows, part in self.blocks():
            product += part.mT @ left[rows]
            squares += part.square().sum()
        return product, squares


def _all(head: _Weights) -> tuple[Tensor, Tensor, Tensor]:
    whole = torch.cat([part for _, part in head.blocks()])
    sigma = torch.linalg.svdvals(whole)
    return sigma, torch.zeros_like(sigma), whole.square().sum()


def _leading(head: _Weights, wanted: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Subspace iteration from a random start."""
    carried = min(wanted + _BESIDE, head.query.shape[0], head.key.shape[0])
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(head.key.shape[0], carried, dtype=torch.float64, generator=generator)
    right = torch.linalg.qr(start.to(head.key.device)).Q
    for _ in range(_PASSES):
        left = torch.linalg.qr(head.times(right)).Q
        right = torch.linalg.qr(head.transposed_times(left)[0]).Q
    u, sigma, vh = torch.linalg.svd(head.times(right), full_matrices=False)
    v = right @ vh.mT
    # P v = σ u holds by construction, so the other half says how far σ is off, whatever the start was: P + E has the
    # triplet (σ, u, v) exactly for an E of this norm, and moves no singular value by more (Weyl).
    back, squares = head.transposed_times(u)
    error = torch.linalg.vector_norm(back - v * sigma, dim=0)
    return sigma[:wanted], error[:wanted], squares


def _check(query: Tensor, key: Tensor, leading: int | None, block: int) -> None:
    for name, tensor in {"query": query, "key": key}.items():
        check_floats(name, tensor)
        if tensor.dim() != 4 or 0 in tensor.shape:
            raise ValueError(f"{name} must be (B, H, N, D) and not empty, got shape {tuple(tensor.shape)}")
    if query.shape[:2] != key.shape[:2] or query.shape[3] != key.shape[3]:
        raise ValueError(f"query and key must differ in N alone, got {tuple(query.shape)} and {tuple(key.shape)}")
    most = min(query.shape[2], key.shape[2])
    if leading is not None and not 1 <= leading <= most:
        raise ValueError(f"leading must be from 1 to {most}, the smaller of N and M, got {leading}")
    if block < 1:
        raise ValueError(f"block must be at least 1 row, got {block}")
