"""What the kernels share: their options, loads and stores, and who may attend to whom."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LARGEST = tl.constexpr(3.4028234663852886e38)  # of float32
# Arguments by whose value no kernel is compiled anew: Triton would compile one for sizes of 1, one for multiples of 16
# and one for the others.
SIZES = (
    "B", "H", "N", "M", "MASK_BATCH", "MASK_HEADS", "SPLITS", "longest", "window", "parts", "part_keys",
)  # fmt: skip
_ROUNDS = tl.constexpr(7)  # of Philox; the fewest that pass every statistical test (Salmon et al. 2011)


@dataclass(frozen=True, eq=False)  # compared by identity, which launches do often; the launcher keeps one of each
class Options:
    """What a kernel is compiled for.

    Attributes:
        D, E, BLOCK_D, BLOCK_E: widths, and the powers of two that hold them.
        BLOCK_N, BLOCK_M: queries and keys of a block.
        CAUSAL, WINDOWED: query n attends to keys m ≤ n; only to keys with |n - m| < window.
        MASK: "none"; "bool", bytes that are not 0 where the query may attend; or "additive".  A dimension along which
            a mask is broadcast has stride 0.
        PER_QUERY: the mask differs between the queries of a block.
        DROPOUT: weights are dropped.
        WEIGHTS: C comes from the rows of the weights and not of the output.
        THROUGH: the gradient goes through C.
        FOLD: C is worked into the log-sum-exp; see `backward`.
        SCALED: logits are scaled before their maximum is taken and not after: a mask is added, or the scale not
            positive.
        PACKED: sequences of different lengths, one after the other.
        PRECISION: of the products of float32, "ieee" or "tf32".
        INTERPRETED: products are NumPy's, in Triton's interpreter.
    """

    D: int
    E: int
    BLOCK_D: int
    BLOCK_E: int
    BLOCK_N: int
    BLOCK_M: int
    CAUSAL: bool
    WINDOWED: bool
    MASK: str
    PER_QUERY: bool
    DROPOUT: bool
    WEIGHTS: bool
    THROUGH: bool
    FOLD: bool
    SCALED: bool
    PACKED: bool
    PRECISION: str
    INTERPRETED: bool

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # Triton's compiler takes no other numbers than its own
            object.__setattr__(self, field.name, tl.constexpr(getattr(self, field.name)))


@triton.jit
def sequence(firsts, b, count, OPT: tl.constexpr):
    """(first token, number of tokens) of sequence b."""
    if OPT.PACKED:
        first = tl.load(firsts + b)
        return first, tl.load(firsts + b + 1) - first
    else:
        return 0, count


@triton.jit
def head_of(pointer, strides, b, h, first):
    """Where head h of batch b begins, or in it the sequence whose first token is ``first``."""
    start = tl.cast(b, tl.int64) * strides[0] + tl.cast(h, tl.int64) * strides[1]
    return pointer + start + tl.cast(first, tl.int64) * strides[2]


@triton.jit
def first_row(b, h, first, H, N, OPT: tl.constexpr):
    """The number of a sequence's first query among all rows of all heads, as 1/C and the log-sum-exp lie."""
    if OPT.PACKED:
        return tl.cast(h, tl.int64) * N + first
    else:
        return (tl.cast(b, tl.int64) * H + h) * N


@triton.jit
def _pointers(head, strides, start, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    i, j = start + tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    return head + tl.cast(i, tl.int64) * strides[2] + tl.cast(j, tl.int64) * strides[3]


@triton.jit
def load(
    head, strides, start, count, ROWS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, GUARDED: tl.constexpr
):
    """Rows ``start`` to ``start + ROWS`` of a head, zero beyond its WIDTH; GUARDED: beyond ``count`` rows as well."""
    pointers = _pointers(head, strides, start, ROWS, COLUMNS)
    i, j = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    if GUARDED:
        if WIDTH == COLUMNS:
            return tl.load(pointers, mask=i < count - start, other=0.0)
        else:
            return tl.load(pointers, mask=(i < count - start) & (j < WIDTH), other=0.0)
    else:
        if WIDTH == COLUMNS:
            return tl.load(pointers)
        else:
            return tl.load(pointers, mask=j < WIDTH, other=0.0)


@triton.jit
def store(head, strides, start, count, rows, width):
    """The inverse of `load`, in the dtype of the memory."""
    i, j = tl.arange(0, rows.shape[0])[:, None], tl.arange(0, rows.shape[1])[None, :]
    pointers = _pointers(head, strides, start, rows.shape[0], rows.shape[1])
    tl.store(pointers, rows.to(head.dtype.element_ty), mask=(i < count - start) & (j < width))


@triton.jit
def dot(a, b, OPT: tl.constexpr):
    """The product in float32."""
    if OPT.INTERPRETED:  # which takes the bits of bfloat16 for integers
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision=OPT.PRECISION)
    else:
        return tl.dot(a, b, input_precision=OPT.PRECISION)


@triton.jit
def keys_down(key, query, OPT: tl.constexpr):
    """k qᵀ, to the bit as q kᵀ was in the forward pass.

    Else the weight of a row's only key would not be 1.  A GPU adds up both in one order; NumPy does not.
    """
    if OPT.INTERPRETED:
        return tl.trans(dot(query, tl.trans(key), OPT))
    else:
        return dot(key, tl.trans(query), OPT)


@triton.jit
def restrict(logits, mask, mask_rows, mask_stride, n, m, N, M, window, OPT: tl.constexpr, GUARDED: tl.constexpr):
    """Logits in base 2 with the mask, -inf where a query n may not attend to m; either way round.

    ``mask`` begins where the head's does, ``mask_rows`` where from there each query's does.  GUARDED: some of the
    block lies beyond the last key, in a query's future or out of its window.
    """
    if OPT.MASK != "none":
        if OPT.PER_QUERY:
            offsets = mask_rows + tl.cast(m, tl.int64) * mask_stride
            entries = tl.load(mask + offsets, mask=(n < N) & (m < M), other=0)
        else:  # one row for all queries: padding
            entries = tl.load(mask + tl.cast(m, tl.int64) * mask_stride, mask=m < M, other=0)
        if OPT.MASK == "bool":
            logits = tl.where(entries != 0, logits, float("-inf"))
        else:
            # The smallest number must not become -inf: a row of them attends to all keys alike, as in PyTorch.
            bias = entries.to(tl.float32) * LOG2_E
            bias = tl.where(bias < -LARGEST, -LARGEST, bias)  # a maximum would lose what is no number
            logits = tl.where(entries == float("-inf"), float("-inf"), logits + bias)
    if GUARDED:
        logits = tl.where(m < M, logits, float("-inf"))
        if OPT.CAUSAL:
            logits = tl.where(m <= n, logits, float("-inf"))
        if OPT.WINDOWED:
            logits = tl.where((m - n < window) & (n - m < window), logits, float("-inf"))
    return logits


@triton.jit
def survives(seed, dropout_p, row, m, M):
    """Which weights dropout leaves: the same for the same seed, row among all rows, and key, in any block."""
    return tl.rand(seed, row * M + m, _ROUNDS) >= dropout_p


@triton.jit
def query_block(longest, OPT: tl.constexpr):
    """(batch and head, first query) of this program; under CAUSAL the last queries, with the most keys, come first."""
    blocks = tl.cdiv(longest, OPT.BLOCK_N)
    block = tl.program_id(0) % blocks
    if OPT.CAUSAL:
        block = blocks - 1 - block
    return tl.program_id(0) // blocks, block * OPT.BLOCK_N


@triton.jit
def keys_of(start_n, N, M, window, OPT: tl.constexpr):
    """(first, whole, end): keys from ``first`` on, up to ``whole`` in whole blocks that every query of the block sees,
    from there to ``end`` those that some query of it sees."""
    first, whole, end = 0, M // OPT.BLOCK_M * OPT.BLOCK_M, M
    if OPT.CAUSAL:
        whole, end = tl.minimum(start_n + 1, M) // OPT.BLOCK_M * OPT.BLOCK_M, tl.minimum(start_n + OPT.BLOCK_N, M)
    if OPT.WINDOWED:
        first = tl.maximum(start_n - window + 1, 0) // OPT.BLOCK_M * OPT.BLOCK_M
        end = tl.minimum(end, start_n + OPT.BLOCK_N - 1 + window)
        whole = first
    if OPT.PACKED:  # a block beyond the last query of a short sequence
        here = start_n < N
        first, whole, end = tl.where(here, first, 0), tl.where(here, whole, 0), tl.where(here, end, 0)
    return first, whole, end
