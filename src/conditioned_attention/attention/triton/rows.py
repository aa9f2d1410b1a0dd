"""Applies C to the rows of attention outputs that other kernels computed, in one pass each way."""

from __future__ import annotations

import triton
import triton.language as tl

from conditioned_attention.attention.triton.blocks import LARGEST, SIZES, head_of, load, store


@triton.jit
def _rows(H, N, BLOCK_N: tl.constexpr):
    """(batch, head, first row) of this program."""
    blocks = tl.cdiv(N, BLOCK_N)
    head = tl.program_id(0) // blocks
    return head // H, head % H, tl.program_id(0) % blocks * BLOCK_N


@triton.jit(do_not_specialize=SIZES)
def normalise(
    output, norm, lse, output_strides, norm_strides, lse_strides, eps, H, N,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, FOLD: tl.constexpr,
):  # fmt: skip
    """Scales rows of ``output`` to unit length in place, stores 1/C, and if FOLD takes log C from the natural lse."""
    b, h, start = _rows(H, N, BLOCK_N)
    head = head_of(output, output_strides, b, h, 0)
    rows = load(head, output_strides, start, N, BLOCK_N, D, BLOCK_D, True).to(tl.float32)
    length = tl.sqrt(tl.sum(rows * rows, 1))
    length = tl.where(length == 0.0, 1.0, tl.minimum(tl.maximum(length, eps), LARGEST))
    store(head, output_strides, start, N, rows / length[:, None], D)
    n = start + tl.arange(0, BLOCK_N)
    place = head_of(norm, norm_strides, b, h, 0) + tl.cast(n, tl.int64) * norm_strides[2]
    tl.store(place, length, mask=n < N)
    if FOLD:
        place = head_of(lse, lse_strides, b, h, 0) + tl.cast(n, tl.int64) * lse_strides[2]
        tl.store(place, tl.load(place, mask=n < N, other=0.0) + tl.log(length), mask=n < N)


@triton.jit(do_not_specialize=SIZES)
def rebuild(
    y, norm, upstream, attention, prepared, y_strides, norm_strides, upstream_strides, out_strides, eps, H, N,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, THROUGH: tl.constexpr, FOLD: tl.constexpr,
):  # fmt: skip
    """The attention output y / C; and the upstream gradient as its backward takes it, if that is not the one that was
    given: with THROUGH, without its part along y, except below eps; without FOLD, times C."""
    b, h, start = _rows(H, N, BLOCK_N)
    unit = load(head_of(y, y_strides, b, h, 0), y_strides, start, N, BLOCK_N, D, BLOCK_D, True).to(tl.float32)
    n = start + tl.arange(0, BLOCK_N)
    place = head_of(norm, norm_strides, b, h, 0) + tl.cast(n, tl.int64) * norm_strides[2]
    length = tl.load(place, mask=n < N, other=1.0)
    store(head_of(attention, out_strides, b, h, 0), out_strides, start, N, unit * length[:, None], D)
    if THROUGH or not FOLD:
        gradient = head_of(upstream, upstream_strides, b, h, 0)
        gradient = load(gradient, upstream_strides, start, N, BLOCK_N, D, BLOCK_D, True).to(tl.float32)
        if THROUGH:
            along = tl.where(length > eps, tl.sum(unit * gradient, 1), 0.0)
            gradient -= unit * along[:, None]
        if not FOLD:
            gradient /= length[:, None]
        store(head_of(prepared, out_strides, b, h, 0), out_strides, start, N, gradient, D)
