"""What the kernels share: their options, loads and stores, and which query may attend to which key."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LARGEST = tl.constexpr(3.4028234663852886e38)  # of float32
# Arguments for whose values no kernel is compiled again: otherwise Triton would compile one for sizes of 1, one for
# multiples of 16 and one for the others.
SIZES = (
    "B", "H", "N", "M", "MASK_BATCH", "MASK_HEADS", "SPLITS", "longest", "window", "parts", "part_keys",
)  # fmt: skip
_ROUNDS = tl.constexpr(7)  # of Philox; the fewest that pass every statistical test (Salmon et al. 2011)


@dataclass(frozen=True, eq=False)  # compared by identity, as launches compare often; the launcher keeps one of each
class Options:
    """What a kernel is compiled for.

    Attributes:
        D, E, BLOCK_D, BLOCK_E: widths, and the powers of two that hold them.
        BLOCK_N, BLOCK_M: queries and keys of a block.
        CAUSAL, WINDOWED: query n attends only to keys m ≤ n; only to keys m with |n - m| < window.
        MASK: "none"; "bool", bytes that are not 0 where the query may attend; or "additive".  A dimension along which
            a mask is broadcast has stride 0.
        PER_QUERY: the mask differs between the queries of a block.
        DROPOUT: weights are dropped.
        WEIGHTS: C comes from the rows of the weights and not of the output.
        THROUGH: the gradient goes through C.
        FOLD: C is worked into the log-sum-exp; see `backward`.
        SCALED: logits are scaled before their maximum is taken and not after, because a mask is added or the scale is
            not positive.
        PACKED: sequences of different lengths, one after the other.
        PRECISION: how products of float32 are computed, "ieee" or "tf32".
        INTERPRETED: the kernel runs in Triton's interpreter, where products are NumPy's.
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
        for field in dataclasses.fields(self):  # Triton's compiler accepts no constants but its own
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
    """A pointer to the start of head h of batch b, or of the sequence in it whose first token is ``first``."""
    start = tl.cast(b, tl.int64) * strides[0] + tl.cast(h, tl.int64) * strides[1]
    return pointer + start + tl.cast(first, tl.int64) * strides[2]


@triton.jit
def first_row(b, h, first, H, N, OPT: tl.constexpr):
    """The index of a sequence's first query among all rows of all heads, in the order of 1/C and the log-sum-exp."""
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
    """Rows ``start`` to ``start + ROWS`` of a head, zero beyond its WIDTH; if GUARDED, also beyond ``count`` rows."""
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
    """The inverse of `load`, which converts to the dtype of the memory."""
    i, j = tl.arange(0, rows.shape[0])[:, None], tl.arange(0, rows.shape[1])[None, :]
    pointers = _pointers(head, strides, start, rows.shape[0], rows.shape[1])
    tl.store(pointers, rows.to(head.dtype.element_ty), mask=(i < count - start) & (j < width))


@triton.jit
def dot(a, b, OPT: tl.constexpr):
    """The matrix product in float32."""
    if OPT.INTERPRETED:  # the interpreter takes the bits of bfloat16 for integers
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision=OPT.PRECISION)
    else:
        return tl.dot(a, b, input_precision=OPT.PRECISION)


@triton.jit
def keys_down(key, query, OPT: tl.constexpr):
    """k qᵀ, equal to the bit to what q kᵀ was in the forward pass.

    Otherwise the weight of a row's only key would not be 1.  A GPU sums both in the same order; NumPy does not.
    """
    if OPT.INTERPRETED:
        return tl.trans(dot(query, tl.trans(key), OPT))
    else:
        return dot(key, tl.trans(query), OPT)


@triton.jit
def restrict(logits, mask, mask_rows, mask_stride, n, m, N, M, window, OPT: tl.constexpr, GUARDED: tl.constexpr):
    """Logits in base 2 under the mask, with -inf where query n may not attend to key m; queries down or across.

    ``mask`` points to the start of the head's mask, and ``mask_rows`` is the offset of each query's row from there.
    GUARDED: some of the block lies beyond the last key, in a query's future or outside its window.
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
            # The smallest number must not become -inf: a row of them attends to all keys equally, as in PyTorch.
            bias = entries.to(tl.float32) * LOG2_E
            bias = tl.where(bias < -LARGEST, -LARGEST, bias)  # tl.maximum would lose NaN
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
    """Which weights dropout leaves; this depends on the seed, the row among all rows and the key, not on the block."""
    return tl.rand(seed, row * M + m, _ROUNDS) >= dropout_p


@triton.jit
def query_block(longest, OPT: tl.constexpr):
    """(batch and head, first query) of this program; if CAUSAL, the last queries, with the most keys, come first."""
    blocks = tl.cdiv(longest, OPT.BLOCK_N)
    block = tl.program_id(0) % blocks
    if OPT.CAUSAL:
        block = blocks - 1 - block
    return tl.program_id(0) // blocks, block * OPT.BLOCK_N


@triton.jit
def keys_of(start_n, N, M, window, OPT: tl.constexpr):
    """(first, whole, end): from ``first`` to ``whole`` lie whole blocks of keys that every query of the block sees, and
    from there to ``end`` the keys that some query of it sees."""
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
