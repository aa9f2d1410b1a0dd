"""Attention with rows of unit length, in one pass over the keys."""

from __future__ import annotations

import triton
import triton.language as tl

from conditioned_attention.attention.triton.blocks import (
    LARGEST,
    LOG2_E,
    SIZES,
    dot,
    first_row,
    head_of,
    keys_of,
    load,
    query_block,
    restrict,
    sequence,
    store,
    survives,
)


@triton.jit
def attend_to_keys(
    state, query, n, row, keys, values, masks, sizes, first, last, OPT: tl.constexpr, GUARDED: tl.constexpr
):
    """Continues the online softmax over keys ``first`` to ``last``, for queries n with index ``row`` among all rows.

    ``state`` is (acc, denominator, squares, top): the sums so far, with weights in units of 2 to the power of top.
    """
    acc, denominator, squares, top = state
    k, k_strides = keys
    v, v_strides = values
    mask, mask_rows, mask_stride = masks
    N, M, row_keys, scale, window, seed, dropout_p = sizes
    for start_m in tl.range(first, last, OPT.BLOCK_M):
        m = start_m + tl.arange(0, OPT.BLOCK_M)[None, :]
        key = load(k, k_strides, start_m, M, OPT.BLOCK_M, OPT.D, OPT.BLOCK_D, GUARDED)
        logits = dot(query, tl.trans(key), OPT)
        factor = scale * LOG2_E
        if OPT.SCALED:
            logits *= factor
        logits = restrict(logits, mask, mask_rows[:, None], mask_stride, n[:, None], m, N, M, window, OPT, GUARDED)
        if OPT.SCALED:
            new_top = tl.maximum(top, tl.max(logits, 1))
        else:  # the factor is taken out of the maximum, and then goes into one multiply-add
            new_top = tl.maximum(top, tl.max(logits, 1) * factor)
            logits *= factor
        # A row that has met no key yet has no maximum, and -inf - -inf is NaN.
        reference = new_top
        if OPT.MASK != "none" or OPT.WINDOWED:
            reference = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp2(logits - reference[:, None])
        shrink = tl.exp2(top - reference)
        denominator = denominator * shrink + tl.sum(weights, 1)
        if OPT.DROPOUT:  # after the denominator: the weights that are left do not grow to replace the dropped ones
            weights = tl.where(survives(seed, dropout_p, row[:, None], m, row_keys), weights, 0.0)
        if OPT.WEIGHTS:
            squares = squares * shrink * shrink + tl.sum(weights * weights, 1)
        value = load(v, v_strides, start_m, M, OPT.BLOCK_M, OPT.E, OPT.BLOCK_E, GUARDED)
        acc = acc * shrink[:, None] + dot(weights.to(value.dtype), value, OPT)
        top = new_top
    return acc, denominator, squares, top


@triton.jit
def nothing_yet(OPT: tl.constexpr):
    """The state of `attend_to_keys` before the first key."""
    acc = tl.zeros((OPT.BLOCK_N, OPT.BLOCK_E), tl.float32)
    zeros = tl.zeros((OPT.BLOCK_N,), tl.float32)
    return acc, zeros, zeros, tl.full((OPT.BLOCK_N,), float("-inf"), tl.float32)


@triton.jit
def finish(state, keep, eps, OPT: tl.constexpr):
    """(rows of y, 1/C, log-sum-exp in base 2 (FOLD: minus log C)); ``keep`` is what dropout multiplies weights by."""
    acc, denominator, squares, top = state
    nothing = denominator == 0.0  # a query that may attend to nothing: its row is zero, and so is its gradient
    denominator = tl.where(nothing, 1.0, denominator)
    attention = acc / denominator[:, None]
    if OPT.DROPOUT:
        attention *= keep
    if OPT.WEIGHTS:
        length = tl.sqrt(squares) / denominator
        if OPT.DROPOUT:
            length *= keep
    else:
        length = tl.sqrt(tl.sum(attention * attention, 1))
    length = tl.where(length == 0.0, 1.0, tl.minimum(tl.maximum(length, eps), LARGEST))
    log_sum = top + tl.log2(denominator)
    if OPT.FOLD:
        log_sum += tl.log2(length)
    return attention / length[:, None], length, tl.where(nothing, float("inf"), log_sum)


@triton.jit(do_not_specialize=SIZES)
def attend(
    q, k, v, mask, seed, queries_from, keys_from, y, norm, lse,
    q_strides, k_strides, v_strides, mask_strides, y_strides,
    scale, eps, window, dropout_p, keep, H, REPEATS, N, M, longest, OPT: tl.constexpr,
):  # fmt: skip
    """y = C softmax(q kᵀ scale + mask) v, and 1/C and the log-sum-exp, both (B, H, N), for one block of queries."""
    head, start_n = query_block(longest, OPT)
    b, h = head // H, head % H
    first_n, n_count = sequence(queries_from, b, N, OPT)
    first_m, m_count = sequence(keys_from, b, M, OPT)
    query = head_of(q, q_strides, b, h, first_n)
    query = load(query, q_strides, start_n, n_count, OPT.BLOCK_N, OPT.D, OPT.BLOCK_D, True)
    keys = (head_of(k, k_strides, b, h // REPEATS, first_m), k_strides)
    values = (head_of(v, v_strides, b, h // REPEATS, first_m), v_strides)
    n = start_n + tl.arange(0, OPT.BLOCK_N)
    row = first_row(b, h, first_n, H, N, OPT) + n
    masks = (head_of(mask, mask_strides, b, h, 0), tl.cast(n, tl.int64) * mask_strides[2], mask_strides[3])
    if OPT.DROPOUT:
        seed = tl.load(seed)
    sizes = (n_count, m_count, M, scale, window, seed, dropout_p)

    first, whole, end = keys_of(start_n, n_count, m_count, window, OPT)
    state = nothing_yet(OPT)
    state = attend_to_keys(state, query, n, row, keys, values, masks, sizes, first, whole, OPT, False)
    state = attend_to_keys(state, query, n, row, keys, values, masks, sizes, whole, end, OPT, True)

    rows, length, log_sum = finish(state, keep, eps, OPT)
    store(head_of(y, y_strides, b, h, first_n), y_strides, start_n, n_count, rows, OPT.E)
    tl.store(norm + row, length, mask=n < n_count)
    tl.store(lse + row, log_sum, mask=n < n_count)
