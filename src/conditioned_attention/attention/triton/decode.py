"""Attention of few queries to many keys: the keys are split into parts that run in parallel, and are merged before C.

The query heads that share keys are rows of one block, so that grouped keys are read once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from conditioned_attention.attention.triton.blocks import LARGEST, SIZES, head_of, store
from conditioned_attention.attention.triton.forward import attend_to_keys, finish, nothing_yet


@triton.jit(do_not_specialize=SIZES)
def attend_in_parts(
    q, k, v, mask, seed, sums, numbers, q_strides, k_strides, v_strides, mask_strides,
    scale, window, dropout_p, B, H, REPEATS, N, M, part_keys, parts, OPT: tl.constexpr,
):  # fmt: skip
    """The partial sums over one part of the keys, for a block of the rows (head of the group, query) of one key head.

    ``sums`` is (parts, B · H · N, E); ``numbers`` (3, parts, B · H · N): denominators, squares, maxima.
    """
    rows = REPEATS * N
    blocks = tl.cdiv(rows, OPT.BLOCK_N)
    part = tl.program_id(0) % parts
    block = tl.program_id(0) // parts % blocks
    G = H // REPEATS
    kv_head = tl.program_id(0) // parts // blocks
    b, g = kv_head // G, kv_head % G
    i = block * OPT.BLOCK_N + tl.arange(0, OPT.BLOCK_N)
    exists = i < rows
    h, n = g * REPEATS + i // N, tl.where(exists, i % N, N)
    row = (tl.cast(b, tl.int64) * H + h) * N + n

    starts = (
        tl.cast(b, tl.int64) * q_strides[0] + tl.cast(h, tl.int64) * q_strides[1] + tl.cast(n, tl.int64) * q_strides[2]
    )
    columns = tl.arange(0, OPT.BLOCK_D)[None, :]
    pointers = q + starts[:, None] + tl.cast(columns, tl.int64) * q_strides[3]
    query = tl.load(pointers, mask=exists[:, None] & (columns < OPT.D), other=0.0)
    keys = (head_of(k, k_strides, b, g, 0), k_strides)
    values = (head_of(v, v_strides, b, g, 0), v_strides)
    mask_rows = tl.cast(h, tl.int64) * mask_strides[1] + tl.cast(n, tl.int64) * mask_strides[2]
    masks = (head_of(mask, mask_strides, b, 0, 0), mask_rows, mask_strides[3])
    if OPT.DROPOUT:
        seed = tl.load(seed)
    first, end = part * part_keys, tl.minimum((part + 1) * part_keys, M)
    sizes = (N, end, M, scale, window, seed, dropout_p)
    whole = first + (end - first) // OPT.BLOCK_M * OPT.BLOCK_M
    state = nothing_yet(OPT)
    state = attend_to_keys(state, query, n, row, keys, values, masks, sizes, first, whole, OPT, False)
    state = attend_to_keys(state, query, n, row, keys, values, masks, sizes, whole, end, OPT, True)

    acc, denominator, squares, top = state
    all_rows = tl.cast(B, tl.int64) * H * N
    out = sums + (part * all_rows + row)[:, None] * OPT.E + tl.arange(0, OPT.BLOCK_E)[None, :]
    tl.store(out, acc, mask=exists[:, None] & (tl.arange(0, OPT.BLOCK_E)[None, :] < OPT.E))
    numbers += part * all_rows + row
    tl.store(numbers, denominator, mask=exists)
    tl.store(numbers + parts * all_rows, squares, mask=exists)
    tl.store(numbers + 2 * parts * all_rows, top, mask=exists)


@triton.jit(do_not_specialize=SIZES)
def merge(
    sums, numbers, y, norm, lse, y_strides, eps, keep, B, H, N, parts, OPT: tl.constexpr,
):  # fmt: skip
    """y, 1/C and the log-sum-exp from the partial sums of all parts, for a block of the queries of one head."""
    blocks = tl.cdiv(N, OPT.BLOCK_N)
    start_n = tl.program_id(0) % blocks * OPT.BLOCK_N
    head = tl.program_id(0) // blocks
    n = start_n + tl.arange(0, OPT.BLOCK_N)
    exists = n < N
    row, all_rows = tl.cast(head, tl.int64) * N + n, tl.cast(B, tl.int64) * H * N
    columns = tl.arange(0, OPT.BLOCK_E)[None, :]
    acc, denominator, squares, top = nothing_yet(OPT)
    for part in tl.range(0, parts):
        place = part * all_rows + row
        more_top = tl.load(numbers + 2 * parts * all_rows + place, mask=exists, other=float("-inf"))
        new_top = tl.maximum(top, more_top)
        # A part whose keys are all masked has no maximum, and -inf - -inf is NaN.
        reference = tl.maximum(new_top, -LARGEST)
        shrink, more = tl.exp2(top - reference), tl.exp2(more_top - reference)
        part_acc = tl.load(sums + place[:, None] * OPT.E + columns, mask=exists[:, None] & (columns < OPT.E), other=0.0)
        acc = acc * shrink[:, None] + part_acc * more[:, None]
        denominator = denominator * shrink + tl.load(numbers + place, mask=exists, other=0.0) * more
        part_squares = tl.load(numbers + parts * all_rows + place, mask=exists, other=0.0)
        squares = squares * shrink * shrink + part_squares * more * more
        top = new_top
    rows, length, log_sum = finish((acc, denominator, squares, top), keep, eps, OPT)
    store(head_of(y, y_strides, head // H, head % H, 0), y_strides, start_n, N, rows, OPT.E)
    tl.store(norm + row, length, mask=exists)
    tl.store(lse + row, log_sum, mask=exists)
