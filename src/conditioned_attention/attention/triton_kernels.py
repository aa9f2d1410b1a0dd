"""Flash attention whose rows have unit length, and its backward: the kernels alone.  `fused` checks and launches.

Only `fused` imports this file, and only when it launches: triton is imported at the top.

Forward (`attend`) goes through the keys block by block with an online softmax in base 2: a running maximum, a running
denominator l and a running sum acc.  A row of attention is acc / l, so C costs one norm and one division a row at the
end; its 1/C is kept beside the log-sum-exp.

Backward knows C twice.  ``lse - log C`` in place of lse makes ``P' = C P``, the weights of what was returned: free, but
the sum loses digits, so only where FOLD says that the dtype has fewer (bfloat16; float16 would lose P' below its
smallest number).  Elsewhere `prepare` writes ``C dY`` once.  What follows is plain flash backward:
``dV = P'ᵀ dY``, ``dS = P' ∘ (dY Vᵀ - δ)``, ``dQ = dS K``, ``dK = dSᵀ Q``, with ``δ = rowsum(dY ∘ y) / C``.

Nothing is added up by atomic operations, so the same call gives the same bits.

Shapes: B batch, H heads, G key heads (REPEATS = H / G queries' heads share one), N queries, M keys, D head width, E
value width.  BLOCK_D and BLOCK_E are the powers of two that hold D and E.  Strides come as tuples in the order of
the dimensions; offsets are 64-bit.
MASK is "none", "bool" (bytes, not 0 where the query may attend) or "additive"; a dimension along which a mask is
broadcast has stride 0, and PER_QUERY says whether it differs between queries.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)
_LARGEST = tl.constexpr(3.4028234663852886e38)  # of float32


@triton.jit
def _head(pointer, strides, b, h):
    """Where head h of batch b begins."""
    return pointer + tl.cast(b, tl.int64) * strides[0] + tl.cast(h, tl.int64) * strides[1]


@triton.jit
def _pointers(head, strides, start, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    i, j = start + tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    return head + tl.cast(i, tl.int64) * strides[2] + tl.cast(j, tl.int64) * strides[3]


@triton.jit
def _load(
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
def _store(head, strides, start, count, rows, width):
    """The inverse of `_load`, in the dtype of the memory."""
    i, j = tl.arange(0, rows.shape[0])[:, None], tl.arange(0, rows.shape[1])[None, :]
    pointers = _pointers(head, strides, start, rows.shape[0], rows.shape[1])
    tl.store(pointers, rows.to(head.dtype.element_ty), mask=(i < count - start) & (j < width))


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """The product in float32.  UPCAST: Triton's interpreter takes the bits of bfloat16 for integers."""
    if UPCAST:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision=PRECISION)
    else:
        return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _restrict(
    logits, mask, strides, n, m, N, M,
    CAUSAL: tl.constexpr, MASK: tl.constexpr, PER_QUERY: tl.constexpr, GUARDED: tl.constexpr,
):  # fmt: skip
    """Logits in base 2 with the mask, -inf where a query n may not attend to m; either way round.

    GUARDED: some of the block lies beyond the last key or, under CAUSAL, in a query's future.
    """
    if MASK != "none":
        if PER_QUERY:
            offsets = tl.cast(n, tl.int64) * strides[2] + tl.cast(m, tl.int64) * strides[3]
            entries = tl.load(mask + offsets, mask=(n < N) & (m < M), other=0)
        else:  # one row for all queries: padding
            entries = tl.load(mask + tl.cast(m, tl.int64) * strides[3], mask=m < M, other=0)
        if MASK == "bool":
            logits = tl.where(entries != 0, logits, float("-inf"))
        else:
            # The smallest number must not become -inf: a row of them attends to all keys alike, as in PyTorch.
            bias = tl.maximum(entries.to(tl.float32) * _LOG2_E, -_LARGEST)
            logits = tl.where(entries == float("-inf"), float("-inf"), logits + bias)
    if GUARDED:
        logits = tl.where(m < M, logits, float("-inf"))
        if CAUSAL:
            logits = tl.where(m <= n, logits, float("-inf"))
    return logits


@triton.jit
def _attend_to_keys(
    acc, denominator, top, q, k, v, mask, k_strides, v_strides, mask_strides, scale, start_n, first, last, N, M,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, CAUSAL: tl.constexpr, MASK: tl.constexpr, PER_QUERY: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, GUARDED: tl.constexpr,
):  # fmt: skip
    """The online softmax over keys ``first`` to ``last``."""
    n = start_n + tl.arange(0, BLOCK_N)[:, None]
    for start_m in tl.range(first, last, BLOCK_M):
        m = start_m + tl.arange(0, BLOCK_M)[None, :]
        key = _load(k, k_strides, start_m, M, BLOCK_M, D, BLOCK_D, GUARDED)
        logits = _dot(q, tl.trans(key), PRECISION, UPCAST) * (scale * _LOG2_E)
        logits = _restrict(logits, mask, mask_strides, n, m, N, M, CAUSAL, MASK, PER_QUERY, GUARDED)
        new_top = tl.maximum(top, tl.max(logits, 1))
        # Under a mask a row may have met nothing yet, and -inf - -inf is no number.
        reference = tl.where(new_top == float("-inf"), 0.0, new_top) if MASK != "none" else new_top
        weights = tl.exp2(logits - reference[:, None])
        shrink = tl.exp2(top - reference)
        denominator = denominator * shrink + tl.sum(weights, 1)
        value = _load(v, v_strides, start_m, M, BLOCK_M, E, BLOCK_E, GUARDED)
        acc = acc * shrink[:, None] + _dot(weights.to(value.dtype), value, PRECISION, UPCAST)
        top = new_top
    return acc, denominator, top


@triton.jit
def _keys_of(start_n, M, CAUSAL: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr):
    """(keys that the whole block of queries sees in whole blocks, keys that some query of it sees)."""
    if CAUSAL:
        return tl.minimum(start_n + 1, M) // BLOCK_M * BLOCK_M, tl.minimum(start_n + BLOCK_N, M)
    else:
        return M // BLOCK_M * BLOCK_M, M


@triton.jit
def _query_block(N, CAUSAL: tl.constexpr, BLOCK_N: tl.constexpr):
    """(batch and head, first query) of this program; under CAUSAL the last queries, with the most keys, come first."""
    blocks = tl.cdiv(N, BLOCK_N)
    block = tl.program_id(0) % blocks
    if CAUSAL:
        block = blocks - 1 - block
    return tl.program_id(0) // blocks, block * BLOCK_N


@triton.jit
def attend(
    q, k, v, mask, y, norm, lse, q_strides, k_strides, v_strides, mask_strides, y_strides, scale, eps,
    H, REPEATS, N, M,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, CAUSAL: tl.constexpr, MASK: tl.constexpr, PER_QUERY: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, FOLD: tl.constexpr,
):  # fmt: skip
    """y = C softmax(q kᵀ scale + mask) v, 1/C and the log-sum-exp in base 2 (FOLD: minus log C), each (B, H, N)."""
    head, start_n = _query_block(N, CAUSAL, BLOCK_N)
    b, h = head // H, head % H
    k, v = _head(k, k_strides, b, h // REPEATS), _head(v, v_strides, b, h // REPEATS)
    if MASK != "none":
        mask = _head(mask, mask_strides, b, h)
    query = _load(_head(q, q_strides, b, h), q_strides, start_n, N, BLOCK_N, D, BLOCK_D, True)

    acc = tl.zeros((BLOCK_N, BLOCK_E), tl.float32)
    denominator = tl.zeros((BLOCK_N,), tl.float32)
    top = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    whole, end = _keys_of(start_n, M, CAUSAL, BLOCK_N, BLOCK_M)
    acc, denominator, top = _attend_to_keys(
        acc, denominator, top, query, k, v, mask, k_strides, v_strides, mask_strides, scale, start_n, 0, whole, N, M,
        D, E, BLOCK_D, BLOCK_E, BLOCK_N, BLOCK_M, CAUSAL, MASK, PER_QUERY, PRECISION, UPCAST, False,
    )  # fmt: skip
    acc, denominator, top = _attend_to_keys(
        acc, denominator, top, query, k, v, mask, k_strides, v_strides, mask_strides, scale, start_n, whole, end, N, M,
        D, E, BLOCK_D, BLOCK_E, BLOCK_N, BLOCK_M, CAUSAL, MASK, PER_QUERY, PRECISION, UPCAST, True,
    )  # fmt: skip

    nothing = denominator == 0.0  # a query that may attend to nothing: its row is zero, and sends back zero
    denominator = tl.where(nothing, 1.0, denominator)
    attention = acc / denominator[:, None]
    length = tl.sqrt(tl.sum(attention * attention, 1))
    length = tl.where(length == 0.0, 1.0, tl.minimum(tl.maximum(length, eps), _LARGEST))
    log_sum = top + tl.log2(denominator)
    if FOLD:
        log_sum += tl.log2(length)
    log_sum = tl.where(nothing, float("inf"), log_sum)

    _store(_head(y, y_strides, b, h), y_strides, start_n, N, attention / length[:, None], E)
    n = start_n + tl.arange(0, BLOCK_N)
    row = tl.cast(head, tl.int64) * N + n
    tl.store(norm + row, length, mask=n < N)
    tl.store(lse + row, log_sum, mask=n < N)


@triton.jit
def prepare(
    upstream, y, norm, prepared, delta, upstream_strides, y_strides, prepared_strides, eps, H, N,
    E: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
    THROUGH: tl.constexpr, FOLD: tl.constexpr,
):  # fmt: skip
    """δ (B, H, N); and the upstream gradient as the kernels below take it, where it is not the one that came.

    THROUGH: without its part along y, except below eps.  Not FOLD: times C.
    """
    head, start_n = _query_block(N, False, BLOCK_N)
    b, h = head // H, head % H
    n = start_n + tl.arange(0, BLOCK_N)
    row = tl.cast(head, tl.int64) * N + n
    length = tl.load(norm + row, mask=n < N, other=1.0)
    unit = _load(_head(y, y_strides, b, h), y_strides, start_n, N, BLOCK_N, E, BLOCK_E, True).to(tl.float32)
    up = _head(upstream, upstream_strides, b, h)
    gradient = _load(up, upstream_strides, start_n, N, BLOCK_N, E, BLOCK_E, True).to(tl.float32)
    if THROUGH:
        along = tl.where(length > eps, tl.sum(unit * gradient, 1), 0.0)
        gradient -= unit * along[:, None]
    if not FOLD:
        gradient /= length[:, None]
    if THROUGH or not FOLD:
        out = _head(prepared, prepared_strides, b, h)
        gradient = gradient.to(out.dtype.element_ty)  # δ is of what is stored
        _store(out, prepared_strides, start_n, N, gradient, E)
        gradient = gradient.to(tl.float32)
    tl.store(delta + row, tl.sum(gradient * unit, 1) * length, mask=n < N)


@triton.jit
def _keys_and_values_from_queries(
    dk, dv, key, value, q, up, mask, lse, delta, q_strides, up_strides, mask_strides, scale, start_m, first, last, N, M,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, CAUSAL: tl.constexpr, MASK: tl.constexpr, PER_QUERY: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, GUARDED: tl.constexpr,
):  # fmt: skip
    """What queries ``first`` to ``last`` of one head send to a block of keys and values; keys down, queries across."""
    m = start_m + tl.arange(0, BLOCK_M)[:, None]
    for start_n in tl.range(first, last, BLOCK_N):
        n = start_n + tl.arange(0, BLOCK_N)
        query = _load(q, q_strides, start_n, N, BLOCK_N, D, BLOCK_D, True)
        gradient = _load(up, up_strides, start_n, N, BLOCK_N, E, BLOCK_E, True)
        log_sum = tl.load(lse + n, mask=n < N, other=float("inf"))  # beyond the last query no weight
        inner = tl.load(delta + n, mask=n < N, other=0.0)
        logits = _dot(key, tl.trans(query), PRECISION, UPCAST) * (scale * _LOG2_E)
        logits = _restrict(logits, mask, mask_strides, n[None, :], m, N, M, CAUSAL, MASK, PER_QUERY, GUARDED)
        weights = tl.exp2(logits - log_sum[None, :])
        dv += _dot(weights.to(gradient.dtype), gradient, PRECISION, UPCAST)
        d_weights = _dot(value, tl.trans(gradient), PRECISION, UPCAST)
        d_logits = weights * (d_weights - inner[None, :])
        dk += _dot(d_logits.to(query.dtype), query, PRECISION, UPCAST)
    return dk, dv


@triton.jit
def keys_and_values(
    q, k, v, mask, up, lse, delta, dk, dv,
    q_strides, k_strides, v_strides, mask_strides, up_strides, dk_strides, dv_strides, scale, H, REPEATS, N, M,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, CAUSAL: tl.constexpr, MASK: tl.constexpr, PER_QUERY: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values: one program a block of keys, over all query heads that share them."""
    blocks = tl.cdiv(M, BLOCK_M)
    start_m = tl.program_id(0) % blocks * BLOCK_M
    kv_head = tl.program_id(0) // blocks
    G = H // REPEATS
    b, g = kv_head // G, kv_head % G
    key = _load(_head(k, k_strides, b, g), k_strides, start_m, M, BLOCK_M, D, BLOCK_D, True)
    value = _load(_head(v, v_strides, b, g), v_strides, start_m, M, BLOCK_M, E, BLOCK_E, True)
    d_key = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    d_value = tl.zeros((BLOCK_M, BLOCK_E), tl.float32)
    # Under CAUSAL queries before `first` see none of these keys, and those from `whole` on all of them.
    first, whole = 0, 0
    if CAUSAL:
        first = start_m // BLOCK_N * BLOCK_N
        whole = tl.minimum(tl.cdiv(start_m + BLOCK_M - 1, BLOCK_N) * BLOCK_N, tl.cdiv(N, BLOCK_N) * BLOCK_N)
    for repeat in tl.range(0, REPEATS):
        h = g * REPEATS + repeat
        row = (tl.cast(b, tl.int64) * H + h) * N
        q_head, up_head = _head(q, q_strides, b, h), _head(up, up_strides, b, h)
        mask_head = mask
        if MASK != "none":
            mask_head = _head(mask, mask_strides, b, h)
        if CAUSAL:
            d_key, d_value = _keys_and_values_from_queries(
                d_key, d_value, key, value, q_head, up_head, mask_head, lse + row, delta + row,
                q_strides, up_strides, mask_strides, scale, start_m, first, whole, N, M,
                D, E, BLOCK_D, BLOCK_E, BLOCK_N, BLOCK_M, CAUSAL, MASK, PER_QUERY, PRECISION, UPCAST, True,
            )  # fmt: skip
        d_key, d_value = _keys_and_values_from_queries(
            d_key, d_value, key, value, q_head, up_head, mask_head, lse + row, delta + row,
            q_strides, up_strides, mask_strides, scale, start_m, whole, N, N, M,
            D, E, BLOCK_D, BLOCK_E, BLOCK_N, BLOCK_M, CAUSAL, MASK, PER_QUERY, PRECISION, UPCAST, False,
        )  # fmt: skip
    _store(_head(dk, dk_strides, b, g), dk_strides, start_m, M, d_key * scale, D)
    _store(_head(dv, dv_strides, b, g), dv_strides, start_m, M, d_value, E)


@triton.jit
def _d_logits(
    query, gradient, log_sum, inner, k, v, mask, k_strides, v_strides, mask_strides, scale, n, start_m, N, M,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr,
    CAUSAL: tl.constexpr, MASK: tl.constexpr, PER_QUERY: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, GUARDED: tl.constexpr,
):  # fmt: skip
    """(gradient of the logits with the mask added, keys), for a block of queries n down and of keys across."""
    m = start_m + tl.arange(0, BLOCK_M)[None, :]
    key = _load(k, k_strides, start_m, M, BLOCK_M, D, BLOCK_D, GUARDED)
    value = _load(v, v_strides, start_m, M, BLOCK_M, E, BLOCK_E, GUARDED)
    logits = _dot(query, tl.trans(key), PRECISION, UPCAST) * (scale * _LOG2_E)
    logits = _restrict(logits, mask, mask_strides, n[:, None], m, N, M, CAUSAL, MASK, PER_QUERY, GUARDED)
    weights = tl.exp2(logits - log_sum[:, None])
    d_weights = _dot(gradient, tl.trans(value), PRECISION, UPCAST)
    return weights * (d_weights - inner[:, None]), key


@triton.jit
def _queries_from_keys(
    dq, query, gradient, log_sum, inner, k, v, mask, k_strides, v_strides, mask_strides, scale, n, first, last, N, M,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr,
    CAUSAL: tl.constexpr, MASK: tl.constexpr, PER_QUERY: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, GUARDED: tl.constexpr,
):  # fmt: skip
    """What keys ``first`` to ``last`` send to a block of queries."""
    for start_m in tl.range(first, last, BLOCK_M):
        d_logits, key = _d_logits(
            query, gradient, log_sum, inner, k, v, mask, k_strides, v_strides, mask_strides, scale, n, start_m, N, M,
            D, E, BLOCK_D, BLOCK_E, BLOCK_M, CAUSAL, MASK, PER_QUERY, PRECISION, UPCAST, GUARDED,
        )  # fmt: skip
        dq += _dot(d_logits.to(key.dtype), key, PRECISION, UPCAST)
    return dq


@triton.jit
def queries(
    q, k, v, mask, up, lse, delta, dq,
    q_strides, k_strides, v_strides, mask_strides, up_strides, dq_strides, scale, H, REPEATS, N, M,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, CAUSAL: tl.constexpr, MASK: tl.constexpr, PER_QUERY: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Gradient of the queries: one program a block of them."""
    head, start_n = _query_block(N, CAUSAL, BLOCK_N)
    b, h = head // H, head % H
    k, v = _head(k, k_strides, b, h // REPEATS), _head(v, v_strides, b, h // REPEATS)
    if MASK != "none":
        mask = _head(mask, mask_strides, b, h)
    query = _load(_head(q, q_strides, b, h), q_strides, start_n, N, BLOCK_N, D, BLOCK_D, True)
    gradient = _load(_head(up, up_strides, b, h), up_strides, start_n, N, BLOCK_N, E, BLOCK_E, True)
    n = start_n + tl.arange(0, BLOCK_N)
    row = tl.cast(head, tl.int64) * N + n
    log_sum = tl.load(lse + row, mask=n < N, other=float("inf"))
    inner = tl.load(delta + row, mask=n < N, other=0.0)
    d_query = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    whole, end = _keys_of(start_n, M, CAUSAL, BLOCK_N, BLOCK_M)
    d_query = _queries_from_keys(
        d_query, query, gradient, log_sum, inner, k, v, mask, k_strides, v_strides, mask_strides, scale, n,
        0, whole, N, M, D, E, BLOCK_D, BLOCK_E, BLOCK_M, CAUSAL, MASK, PER_QUERY, PRECISION, UPCAST, False,
    )  # fmt: skip
    d_query = _queries_from_keys(
        d_query, query, gradient, log_sum, inner, k, v, mask, k_strides, v_strides, mask_strides, scale, n,
        whole, end, N, M, D, E, BLOCK_D, BLOCK_E, BLOCK_M, CAUSAL, MASK, PER_QUERY, PRECISION, UPCAST, True,
    )  # fmt: skip
    _store(_head(dq, dq_strides, b, h), dq_strides, start_n, N, d_query * scale, D)


@triton.jit
def additive_mask(
    q, k, v, mask, up, lse, delta, out,
    q_strides, k_strides, v_strides, mask_strides, up_strides, out_strides, scale,
    MASK_BATCH, MASK_HEADS, B, H, REPEATS, N, M, SPLITS,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, CAUSAL: tl.constexpr, PER_QUERY: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Gradient of an additive mask (MASK_BATCH, MASK_HEADS, N or 1, M), in parts that are left to be added up.

    One program a block of queries, a block of keys, a mask's head, and one of SPLITS parts of the batches and heads
    that share it.  ``out`` is (SPLITS, MASK_BATCH · MASK_HEADS, N or blocks of N, M) in float32.
    """
    blocks_m, blocks_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    block_m = tl.program_id(0) % blocks_m
    block_n = tl.program_id(0) // blocks_m % blocks_n
    mask_head = tl.program_id(0) // (blocks_m * blocks_n) % (MASK_BATCH * MASK_HEADS)
    split = tl.program_id(0) // (blocks_m * blocks_n) // (MASK_BATCH * MASK_HEADS)
    heads = H // MASK_HEADS  # that share a head of the mask: 1 or H
    sharing = B // MASK_BATCH * heads
    start_n, start_m = block_n * BLOCK_N, block_m * BLOCK_M
    n = start_n + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for shared in tl.range(split, sharing, SPLITS):
        b = mask_head // MASK_HEADS + shared // heads  # one of the two is always 0
        h = mask_head % MASK_HEADS + shared % heads
        row = (tl.cast(b, tl.int64) * H + h) * N + n
        query = _load(_head(q, q_strides, b, h), q_strides, start_n, N, BLOCK_N, D, BLOCK_D, True)
        gradient = _load(_head(up, up_strides, b, h), up_strides, start_n, N, BLOCK_N, E, BLOCK_E, True)
        log_sum = tl.load(lse + row, mask=n < N, other=float("inf"))
        inner = tl.load(delta + row, mask=n < N, other=0.0)
        d_logits, _ = _d_logits(
            query, gradient, log_sum, inner,
            _head(k, k_strides, b, h // REPEATS), _head(v, v_strides, b, h // REPEATS), _head(mask, mask_strides, b, h),
            k_strides, v_strides, mask_strides, scale, n, start_m, N, M,
            D, E, BLOCK_D, BLOCK_E, BLOCK_M, CAUSAL, "additive", PER_QUERY, PRECISION, UPCAST, True,
        )  # fmt: skip
        total += d_logits
    out = _head(out, out_strides, split, mask_head)
    first, count = start_n, N
    if not PER_QUERY:
        total = tl.sum(total, 0, keep_dims=True)
        first, count = block_n, blocks_n
    _store(out + start_m, out_strides, first, count, total, M - start_m)
