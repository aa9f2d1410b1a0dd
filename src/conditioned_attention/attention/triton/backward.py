"""The backward pass of attention with rows of unit length, with C as a constant or differentiated too.

C enters in one of two ways.  ``lse - log C`` in place of lse gives ``P' = C P``, the weights of what was returned, at
no cost; but the sum loses digits, so this is done only where FOLD says that the dtype has fewer (bfloat16; float16
would lose P' below its smallest number).  Elsewhere `prepare` writes ``C dY`` once.  What follows is plain flash
backward: ``dV = P'ᵀ dY``, ``dS = P' ∘ (dY Vᵀ - δ)``, ``dQ = dS K``, ``dK = dSᵀ Q``, with ``δ = rowsum(dY ∘ y) / C``.

With THROUGH and C from the output's rows, the part along y is first taken out of dY.  With THROUGH and C from the
weights' rows, ``C² (dY · y) P`` is subtracted from ``C dY Vᵀ``, where P is what dropout has left, and δ is then 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from conditioned_attention.attention.triton.blocks import (
    LOG2_E,
    SIZES,
    dot,
    first_row,
    head_of,
    keys_down,
    keys_of,
    load,
    query_block,
    restrict,
    sequence,
    store,
    survives,
)


@triton.jit(do_not_specialize=SIZES)
def prepare(
    upstream, y, norm, queries_from, prepared, delta, pull, upstream_strides, y_strides, prepared_strides,
    eps, H, N, longest, OPT: tl.constexpr,
):  # fmt: skip
    """Computes δ and, with THROUGH and C from the weights' rows, ``pull`` (see `d_logits_of`), each (B, H, N); and the
    upstream gradient as the other kernels take it, if that is not the one that was given.
    """
    blocks = tl.cdiv(longest, OPT.BLOCK_N)
    head, start_n = tl.program_id(0) // blocks, tl.program_id(0) % blocks * OPT.BLOCK_N
    b, h = head // H, head % H
    first_n, n_count = sequence(queries_from, b, N, OPT)
    n = start_n + tl.arange(0, OPT.BLOCK_N)
    row, exists = first_row(b, h, first_n, H, N, OPT) + n, n < n_count
    length = tl.load(norm + row, mask=exists, other=1.0)
    unit = head_of(y, y_strides, b, h, first_n)
    unit = load(unit, y_strides, start_n, n_count, OPT.BLOCK_N, OPT.E, OPT.BLOCK_E, True).to(tl.float32)
    gradient = head_of(upstream, upstream_strides, b, h, first_n)
    gradient = load(gradient, upstream_strides, start_n, n_count, OPT.BLOCK_N, OPT.E, OPT.BLOCK_E, True).to(tl.float32)
    if OPT.THROUGH and not OPT.WEIGHTS:
        along = tl.where(length > eps, tl.sum(unit * gradient, 1), 0.0)
        gradient -= unit * along[:, None]
    if not OPT.FOLD:
        gradient /= length[:, None]
    if (OPT.THROUGH and not OPT.WEIGHTS) or not OPT.FOLD:
        out = head_of(prepared, prepared_strides, b, h, first_n)
        gradient = gradient.to(out.dtype.element_ty)  # δ is computed from what is stored
        store(out, prepared_strides, start_n, n_count, gradient, OPT.E)
        gradient = gradient.to(tl.float32)
    inner = tl.sum(gradient * unit, 1) * length
    if OPT.THROUGH and OPT.WEIGHTS:
        along = inner / length if OPT.FOLD else inner / (length * length)
        tl.store(pull + row, tl.where(length > eps, along, 0.0), mask=exists)
        inner = tl.where(length > eps, 0.0, inner)
    tl.store(delta + row, inner, mask=exists)


@triton.jit
def d_logits_of(weights, d_weights, inner, pull, kept, OPT: tl.constexpr):
    """Gradient of the logits.

    ``kept`` is what dropout multiplied each weight by; ``pull`` times the kept weights is taken out of their gradient.
    """
    if OPT.THROUGH and OPT.WEIGHTS:
        d_weights -= pull * (weights * kept)
    if OPT.DROPOUT:
        d_weights *= kept
    return weights * (d_weights - inner)


@triton.jit
def kept_of(seed, dropout_p, keep, row, m, row_keys, OPT: tl.constexpr):
    if OPT.DROPOUT:
        return tl.where(survives(seed, dropout_p, row, m, row_keys), keep, 0.0)
    else:
        return 1.0


@triton.jit
def _rows_of(start_n, queries, upstream, rows, N, OPT: tl.constexpr):
    """Loads a block of queries: (query, upstream gradient, log-sum-exp, δ, pull, index of each among all rows)."""
    q, q_strides = queries
    up, up_strides = upstream
    lse, delta, pull, first_of_rows = rows
    n = start_n + tl.arange(0, OPT.BLOCK_N)
    row, exists = first_of_rows + n, n < N
    query = load(q, q_strides, start_n, N, OPT.BLOCK_N, OPT.D, OPT.BLOCK_D, True)
    gradient = load(up, up_strides, start_n, N, OPT.BLOCK_N, OPT.E, OPT.BLOCK_E, True)
    log_sum = tl.load(lse + row, mask=exists, other=float("inf"))  # no weight beyond the last query
    inner = tl.load(delta + row, mask=exists, other=0.0)
    along = inner
    if OPT.THROUGH and OPT.WEIGHTS:
        along = tl.load(pull + row, mask=exists, other=0.0)
    return query, gradient, log_sum, inner, along, row


@triton.jit
def _keys_and_values_from_queries(
    d_key, d_value, key, value, m, queries, upstream, masks, rows, sizes, first, last,
    OPT: tl.constexpr, GUARDED: tl.constexpr,
):  # fmt: skip
    """Adds what queries ``first`` to ``last`` of one head send to a block of keys m and their values; keys down."""
    mask, mask_strides = masks
    N, M, row_keys, scale, window, seed, dropout_p, keep = sizes
    for start_n in tl.range(first, last, OPT.BLOCK_N):
        n = start_n + tl.arange(0, OPT.BLOCK_N)
        query, gradient, log_sum, inner, along, row = _rows_of(start_n, queries, upstream, rows, N, OPT)
        logits = keys_down(key, query, OPT) * (scale * LOG2_E)
        mask_rows = tl.cast(n, tl.int64)[None, :] * mask_strides[2]
        logits = restrict(logits, mask, mask_rows, mask_strides[3], n[None, :], m[:, None], N, M, window, OPT, GUARDED)
        weights = tl.exp2(logits - log_sum[None, :])
        kept = kept_of(seed, dropout_p, keep, row[None, :], m[:, None], row_keys, OPT)
        met = weights  # the values
        if OPT.DROPOUT:
            met *= kept
        d_value += dot(met.to(gradient.dtype), gradient, OPT)
        d_weights = dot(value, tl.trans(gradient), OPT)
        d_logits = d_logits_of(weights, d_weights, inner[None, :], along[None, :], kept, OPT)
        d_key += dot(d_logits.to(query.dtype), query, OPT)
    return d_key, d_value


@triton.jit
def _queries_of(start_m, N, M, window, OPT: tl.constexpr):
    """(first, whole, end): queries from ``first`` on see some keys of the block, from ``whole`` to ``end`` all."""
    first, whole, end = 0, 0, N
    if OPT.CAUSAL:
        first = start_m // OPT.BLOCK_N * OPT.BLOCK_N
        blocks = tl.minimum(tl.cdiv(start_m + OPT.BLOCK_M - 1, OPT.BLOCK_N), tl.cdiv(N, OPT.BLOCK_N))
        whole = blocks * OPT.BLOCK_N
    if OPT.WINDOWED:
        if not OPT.CAUSAL:
            first = tl.maximum(start_m - window + 1, 0) // OPT.BLOCK_N * OPT.BLOCK_N
        end = tl.minimum(N, start_m + OPT.BLOCK_M - 1 + window)
        whole = end
    if OPT.PACKED:  # a block beyond the last key of a short sequence
        here = start_m < M
        first, whole, end = tl.where(here, first, 0), tl.where(here, whole, 0), tl.where(here, end, 0)
    return first, whole, end


@triton.jit(do_not_specialize=SIZES)
def keys_and_values(
    q, k, v, mask, seed, queries_from, keys_from, up, lse, delta, pull, dk, dv,
    q_strides, k_strides, v_strides, mask_strides, up_strides, dk_strides, dv_strides,
    scale, window, dropout_p, keep, H, REPEATS, N, M, longest, OPT: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values, for one block of keys, from all query heads that share it."""
    blocks = tl.cdiv(longest, OPT.BLOCK_M)
    start_m = tl.program_id(0) % blocks * OPT.BLOCK_M
    kv_head = tl.program_id(0) // blocks
    G = H // REPEATS
    b, g = kv_head // G, kv_head % G
    first_n, n_count = sequence(queries_from, b, N, OPT)
    first_m, m_count = sequence(keys_from, b, M, OPT)
    m = start_m + tl.arange(0, OPT.BLOCK_M)
    key = load(head_of(k, k_strides, b, g, first_m), k_strides, start_m, m_count, OPT.BLOCK_M, OPT.D, OPT.BLOCK_D, True)
    value = head_of(v, v_strides, b, g, first_m)
    value = load(value, v_strides, start_m, m_count, OPT.BLOCK_M, OPT.E, OPT.BLOCK_E, True)
    d_key = tl.zeros((OPT.BLOCK_M, OPT.BLOCK_D), tl.float32)
    d_value = tl.zeros((OPT.BLOCK_M, OPT.BLOCK_E), tl.float32)
    if OPT.DROPOUT:
        seed = tl.load(seed)
    sizes = (n_count, m_count, M, scale, window, seed, dropout_p, keep)
    first, whole, end = _queries_of(start_m, n_count, m_count, window, OPT)
    for repeat in tl.range(0, REPEATS):
        h = g * REPEATS + repeat
        queries = (head_of(q, q_strides, b, h, first_n), q_strides)
        upstream = (head_of(up, up_strides, b, h, first_n), up_strides)
        masks = (head_of(mask, mask_strides, b, h, 0), mask_strides)
        rows = (lse, delta, pull, first_row(b, h, first_n, H, N, OPT))
        if OPT.CAUSAL or OPT.WINDOWED:
            d_key, d_value = _keys_and_values_from_queries(
                d_key, d_value, key, value, m, queries, upstream, masks, rows, sizes, first, whole, OPT, True
            )
        if not OPT.WINDOWED:
            d_key, d_value = _keys_and_values_from_queries(
                d_key, d_value, key, value, m, queries, upstream, masks, rows, sizes, whole, end, OPT, False
            )
    store(head_of(dk, dk_strides, b, g, first_m), dk_strides, start_m, m_count, d_key * scale, OPT.D)
    store(head_of(dv, dv_strides, b, g, first_m), dv_strides, start_m, m_count, d_value, OPT.E)


@triton.jit
def _d_logits(block, n, start_m, keys, values, masks, sizes, OPT: tl.constexpr, GUARDED: tl.constexpr):
    """(gradient of the logits with the mask added, keys), for a block with queries n down and keys across."""
    query, gradient, log_sum, inner, along, row = block
    k, k_strides = keys
    v, v_strides = values
    mask, mask_strides = masks
    N, M, row_keys, scale, window, seed, dropout_p, keep = sizes
    m = start_m + tl.arange(0, OPT.BLOCK_M)[None, :]
    key = load(k, k_strides, start_m, M, OPT.BLOCK_M, OPT.D, OPT.BLOCK_D, GUARDED)
    value = load(v, v_strides, start_m, M, OPT.BLOCK_M, OPT.E, OPT.BLOCK_E, GUARDED)
    logits = dot(query, tl.trans(key), OPT) * (scale * LOG2_E)
    mask_rows = tl.cast(n, tl.int64)[:, None] * mask_strides[2]
    logits = restrict(logits, mask, mask_rows, mask_strides[3], n[:, None], m, N, M, window, OPT, GUARDED)
    weights = tl.exp2(logits - log_sum[:, None])
    kept = kept_of(seed, dropout_p, keep, row[:, None], m, row_keys, OPT)
    d_weights = dot(gradient, tl.trans(value), OPT)
    return d_logits_of(weights, d_weights, inner[:, None], along[:, None], kept, OPT), key


@triton.jit
def _queries_from_keys(
    d_query, block, n, keys, values, masks, sizes, first, last, OPT: tl.constexpr, GUARDED: tl.constexpr
):
    """Adds what keys ``first`` to ``last`` send to a block of queries."""
    for start_m in tl.range(first, last, OPT.BLOCK_M):
        d_logits, key = _d_logits(block, n, start_m, keys, values, masks, sizes, OPT, GUARDED)
        d_query += dot(d_logits.to(key.dtype), key, OPT)
    return d_query


@triton.jit(do_not_specialize=SIZES)
def queries(
    q, k, v, mask, seed, queries_from, keys_from, up, lse, delta, pull, dq,
    q_strides, k_strides, v_strides, mask_strides, up_strides, dq_strides,
    scale, window, dropout_p, keep, H, REPEATS, N, M, longest, OPT: tl.constexpr,
):  # fmt: skip
    """Gradient of the queries, for one block of them."""
    head, start_n = query_block(longest, OPT)
    b, h = head // H, head % H
    first_n, n_count = sequence(queries_from, b, N, OPT)
    first_m, m_count = sequence(keys_from, b, M, OPT)
    keys = (head_of(k, k_strides, b, h // REPEATS, first_m), k_strides)
    values = (head_of(v, v_strides, b, h // REPEATS, first_m), v_strides)
    masks = (head_of(mask, mask_strides, b, h, 0), mask_strides)
    if OPT.DROPOUT:
        seed = tl.load(seed)
    sizes = (n_count, m_count, M, scale, window, seed, dropout_p, keep)
    rows = (lse, delta, pull, first_row(b, h, first_n, H, N, OPT))
    of_queries = (head_of(q, q_strides, b, h, first_n), q_strides)
    upstream = (head_of(up, up_strides, b, h, first_n), up_strides)
    block = _rows_of(start_n, of_queries, upstream, rows, n_count, OPT)
    n = start_n + tl.arange(0, OPT.BLOCK_N)
    d_query = tl.zeros((OPT.BLOCK_N, OPT.BLOCK_D), tl.float32)
    first, whole, end = keys_of(start_n, n_count, m_count, window, OPT)
    d_query = _queries_from_keys(d_query, block, n, keys, values, masks, sizes, first, whole, OPT, False)
    d_query = _queries_from_keys(d_query, block, n, keys, values, masks, sizes, whole, end, OPT, True)
    store(head_of(dq, dq_strides, b, h, first_n), dq_strides, start_n, n_count, d_query * scale, OPT.D)


@triton.jit(do_not_specialize=SIZES)
def additive_mask(
    q, k, v, mask, seed, up, lse, delta, pull, out,
    q_strides, k_strides, v_strides, mask_strides, up_strides, out_strides,
    scale, window, dropout_p, keep, MASK_BATCH, MASK_HEADS, B, H, REPEATS, N, M, SPLITS, OPT: tl.constexpr,
):  # fmt: skip
    """Gradient of an additive mask (MASK_BATCH, MASK_HEADS, N or 1, M), in parts that the caller adds up.

    Each program takes one block of queries, one block of keys, one head of the mask, and one of SPLITS parts of the
    batches and heads that share it.  ``out`` is (SPLITS, MASK_BATCH · MASK_HEADS, N or blocks of N, M) in float32.
    """
    blocks_m, blocks_n = tl.cdiv(M, OPT.BLOCK_M), tl.cdiv(N, OPT.BLOCK_N)
    block_m = tl.program_id(0) % blocks_m
    block_n = tl.program_id(0) // blocks_m % blocks_n
    mask_head = tl.program_id(0) // (blocks_m * blocks_n) % (MASK_BATCH * MASK_HEADS)
    split = tl.program_id(0) // (blocks_m * blocks_n) // (MASK_BATCH * MASK_HEADS)
    heads = H // MASK_HEADS  # number of heads that share a head of the mask: 1 or H
    sharing = B // MASK_BATCH * heads
    start_n, start_m = block_n * OPT.BLOCK_N, block_m * OPT.BLOCK_M
    n = start_n + tl.arange(0, OPT.BLOCK_N)
    if OPT.DROPOUT:
        seed = tl.load(seed)
    sizes = (N, M, M, scale, window, seed, dropout_p, keep)
    total = tl.zeros((OPT.BLOCK_N, OPT.BLOCK_M), tl.float32)
    for shared in tl.range(split, sharing, SPLITS):
        b = mask_head // MASK_HEADS + shared // heads  # one of the two is always 0
        h = mask_head % MASK_HEADS + shared % heads
        of_queries = (head_of(q, q_strides, b, h, 0), q_strides)
        upstream = (head_of(up, up_strides, b, h, 0), up_strides)
        keys = (head_of(k, k_strides, b, h // REPEATS, 0), k_strides)
        values = (head_of(v, v_strides, b, h // REPEATS, 0), v_strides)
        masks = (head_of(mask, mask_strides, b, h, 0), mask_strides)
        rows = (lse, delta, pull, first_row(b, h, 0, H, N, OPT))
        block = _rows_of(start_n, of_queries, upstream, rows, N, OPT)
        d_logits, _ = _d_logits(block, n, start_m, keys, values, masks, sizes, OPT, True)
        total += d_logits
    out = head_of(out, out_strides, split, mask_head, 0)
    first, count = start_n, N
    if not OPT.PER_QUERY:
        total = tl.sum(total, 0, keep_dims=True)
        first, count = block_n, blocks_n
    store(out + start_m, out_strides, first, count, total, M - start_m)
