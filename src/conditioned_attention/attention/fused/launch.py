"""Launches the Triton kernels on tensors that `fused` has checked: block shapes, memory for results, options.

Shapes: B batch, H heads (G key heads under grouped queries), N queries, M keys, D head width, E value width.  Packed
sequences come as B = 1 with all tokens one after another, and the index of the first token of each sequence.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from conditioned_attention.attention.triton.machine import interpreted, power_of_two

# About how many programs a kernel is split into where it can be split: a few for each of the 132 multiprocessors of an
# H100.
_PROGRAMS = 528

# Few queries: if at most _FEW_ROWS rows share their keys, the keys are split into parts of about _PART_KEYS or more.
_FEW_ROWS = 64
_PART_KEYS = 256


class Inputs(NamedTuple):
    """The tensors that attention is computed from.

    Attributes:
        query, key, value: (B, H, N, D), (B, G, M, D), (B, G, M, E).
        mask: (B or 1, H or 1, N or 1, M or 1), boolean or additive.
        seed: the seed of dropout, one int64.
        queries_from, keys_from: first token of each packed sequence, and at the end the number of all tokens, int32.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None
    seed: Tensor | None = None
    queries_from: Tensor | None = None
    keys_from: Tensor | None = None


class Options(NamedTuple):
    """The options with which attention is computed.

    Attributes:
        is_causal, scale, dropout_p: as in ``scaled_dot_product_attention``.
        window: query n attends only to keys m with |n - m| < window; 0 for all keys.
        eps: the smallest row norm that is divided by.
        rows, gradient: as in `RowNorm`.
        longest_queries, longest_keys: numbers of tokens of the longest packed sequences.
    """

    is_causal: bool
    scale: float
    dropout_p: float
    window: int
    eps: float
    rows: str
    gradient: str
    longest_queries: int = 0
    longest_keys: int = 0


class Blocks(NamedTuple):
    """How a kernel is cut up: queries and keys per block, warps per program, and loads in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


# Block shapes by the larger head width up to which they apply, for half precision and for float32; each row is for
# `attend`, for `keys_and_values` and for the others.  Not timed yet (`conditioned-attention bench blocks` would do
# that): they are large, spill hardly any registers when compiled for an H100, and fit into the 99 KiB of shared memory
# that smaller cards have, and A100s too.
_HALF = {
    64: (Blocks(128, 64, 4, 3), Blocks(64, 128, 8, 3), Blocks(128, 64, 8, 3)),
    128: (Blocks(128, 64, 8, 3), Blocks(32, 128, 8, 2), Blocks(128, 64, 8, 2)),
    256: (Blocks(64, 32, 8, 2), Blocks(32, 32, 8, 1), Blocks(32, 64, 8, 1)),
}
# The same under a mask that differs between queries: blocks of it take memory too, most of all in float32.
_HALF_MASKED = {
    64: (Blocks(128, 64, 8, 2), Blocks(64, 64, 8, 1), Blocks(64, 64, 8, 2)),
    128: (Blocks(64, 64, 8, 2), Blocks(32, 64, 8, 1), Blocks(64, 32, 8, 2)),
    256: _HALF[256],
}
# With dropout, whose random numbers take registers: at width 128 the blocks above spill 3.5 KB of them on an A100.
_HALF_DROPOUT = _HALF | {128: (Blocks(64, 64, 8, 3), Blocks(32, 64, 8, 2), _HALF[128][2])}
_SINGLE = {
    64: (Blocks(64, 32, 8, 2), Blocks(32, 32, 8, 2), Blocks(64, 32, 8, 2)),
    128: (Blocks(32, 32, 8, 1), Blocks(16, 32, 8, 1), Blocks(32, 32, 8, 1)),
    256: (Blocks(32, 16, 8, 1), Blocks(16, 16, 8, 1), Blocks(16, 16, 8, 1)),
}


def forward(inputs: Inputs, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """y (B, H, N, E) and, in float32, 1/C and the log-sum-exp in base 2 (bfloat16: minus log C), both (B, H, N)."""
    options = _without_idle_window(inputs, options)
    with torch.cuda.device_of(inputs.query):
        parts = _parts(inputs, options)
        return _attend_in_parts(inputs, options, parts) if parts > 1 else _attend(inputs, options)


def backward(
    upstream: Tensor, inputs: Inputs, y: Tensor, norm: Tensor, lse: Tensor, options: Options, of_mask: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, and of an additive mask if ``of_mask`` (else an empty tensor)."""
    from conditioned_attention.attention.triton import backward as kernels

    options = _without_idle_window(inputs, options)
    query, key, value, mask, *_ = inputs
    _, of_keys, of_queries = _blocks(inputs, options)
    dq, dk, dv, dmask = empty_gradients(query, key, value, mask if of_mask else None)
    b, h, n, g, m, longest_n, longest_m = _sizes(inputs, options)
    with torch.cuda.device_of(query):
        upstream, delta, pull = _prepare(upstream, inputs, y, norm, options)
        tensors = _pointers(inputs)
        kept = (upstream, lse, delta, pull)
        strides = (*map(_strides, (query, key, value, mask, upstream)),)
        numbers = (options.scale, options.window, *_dropout(options))
        kernels.keys_and_values[(b * g * -(-longest_m // of_keys.keys),)](
            *tensors, *kept, dk, dv, *strides, _strides(dk), _strides(dv), *numbers, h, h // g, n, m, longest_m,
            **_compiled_for(inputs, options, of_keys),
        )  # fmt: skip
        kernels.queries[(b * h * -(-longest_n // of_queries.queries),)](
            *tensors, *kept, dq, *strides, _strides(dq), *numbers, h, h // g, n, m, longest_n,
            **_compiled_for(inputs, options, of_queries),
        )  # fmt: skip
        if of_mask:
            assert mask is not None
            if mask.shape[3] == 1:  # softmax does not change if the same number is added for all keys
                dmask.zero_()
            else:
                dmask.copy_(_mask_gradient(inputs, options, kept))
    return dq, dk, dv, dmask


def empty_results(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Allocates y, 1/C and lse.  y is laid out as (B, N, H, E), so that heads can be merged later without a copy."""
    b, h, n, _ = query.shape
    y = query.new_empty(b, n, h, value.shape[-1]).transpose(1, 2)
    return y, query.new_empty(b, h, n, dtype=torch.float32), query.new_empty(b, h, n, dtype=torch.float32)


def empty_gradients(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    """Allocates the gradients in the layout of their tensors; for a mask of None, an empty tensor."""
    dmask = query.new_empty(0) if mask is None else torch.empty_like(mask)
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), dmask


def _attend(inputs: Inputs, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    from conditioned_attention.attention.triton import forward as kernels

    query, key, value, mask, *_ = inputs
    b, h, n, g, m, longest, _ = _sizes(inputs, options)
    blocks = _blocks(inputs, options)[0]
    y, norm, lse = empty_results(query, value)
    kernels.attend[(b * h * -(-longest // blocks.queries),)](
        *_pointers(inputs), y, norm, lse, *map(_strides, (query, key, value, mask, y)), options.scale, options.eps,
        options.window, *_dropout(options), h, h // g, n, m, longest,
        **_compiled_for(inputs, options._replace(gradient="stopped"), blocks),
    )  # fmt: skip
    return y, norm, lse


def _parts(inputs: Inputs, options: Options) -> int:
    """How many parts the keys are split into: one, unless the queries are too few to keep a GPU busy."""
    b, h, n, g, m, _, _ = _sizes(inputs, options)
    rows = h // g * n
    if inputs.queries_from is not None or options.is_causal or options.window or rows > _FEW_ROWS:
        return 1
    return max(1, min(-(-m // _PART_KEYS), _PROGRAMS // (b * g)))


def _attend_in_parts(inputs: Inputs, options: Options, parts: int) -> tuple[Tensor, Tensor, Tensor]:
    from conditioned_attention.attention.triton import decode as kernels

    query, key, value, mask, *_ = inputs
    b, h, n, g, m, _, _ = _sizes(inputs, options)
    blocks = _table(inputs, options)[0]
    blocks = Blocks(min(blocks.queries, power_of_two(h // g * n)), min(blocks.keys, power_of_two(m)), *blocks[2:])
    part_keys = -(-m // (parts * blocks.keys)) * blocks.keys
    parts = -(-m // part_keys)
    y, norm, lse = empty_results(query, value)
    sums = query.new_empty(parts, b * h * n, value.shape[-1], dtype=torch.float32)
    numbers = query.new_empty(3, parts, b * h * n, dtype=torch.float32)
    compiled_for = _compiled_for(inputs, options._replace(gradient="stopped"), blocks, per_head=True)
    kernels.attend_in_parts[(b * g * -(-h // g * n // blocks.queries) * parts,)](
        *_pointers(inputs)[:5], sums, numbers, *map(_strides, (query, key, value, mask)),
        options.scale, options.window, _dropout(options)[0], b, h, h // g, n, m, part_keys, parts, **compiled_for,
    )  # fmt: skip
    merged = _compiled_for(inputs._replace(mask=None), options._replace(gradient="stopped"), Blocks(16, 16, 4, 1))
    kernels.merge[(b * h * -(-n // 16),)](
        sums, numbers, y, norm, lse, _strides(y), options.eps, _dropout(options)[1], b, h, n, parts, **merged
    )
    return y, norm, lse


def _prepare(
    upstream: Tensor, inputs: Inputs, y: Tensor, norm: Tensor, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """The upstream gradient as the kernels take it; δ; and, if the gradient goes through C of the weights' rows, the
    ``pull`` on the weights (otherwise a tensor that is not read)."""
    from conditioned_attention.attention.triton import backward as kernels

    b, h, n, _, _, longest, _ = _sizes(inputs, options)
    through_output = options.gradient == "through" and options.rows == "output"
    prepared = torch.empty_like(y) if through_output or not _folds(y) else upstream
    delta = torch.empty_like(norm)
    pull = torch.empty_like(norm) if options.gradient == "through" and options.rows == "weights" else delta
    compiled_for = _compiled_for(inputs._replace(mask=None), options, Blocks(32, 16, 4, 1))
    kernels.prepare[(b * h * -(-longest // 32),)](
        upstream, y, norm, _pointers(inputs)[5], prepared, delta, pull, *map(_strides, (upstream, y, prepared)),
        options.eps, h, n, longest, **compiled_for,
    )  # fmt: skip
    return prepared, delta, pull


def _mask_gradient(inputs: Inputs, options: Options, kept: tuple[Tensor, ...]) -> Tensor:
    """Gradient of an additive mask (B or 1, H or 1, N or 1, M), in float32, added up in a fixed order."""
    from conditioned_attention.attention.triton import backward as kernels

    query, key, value, mask, *_ = inputs
    assert mask is not None
    b, h, n, g, m, _, _ = _sizes(inputs, options)
    blocks = _blocks(inputs, options)[2]
    blocks_n, blocks_m = -(-n // blocks.queries), -(-m // blocks.keys)
    heads = mask.shape[0] * mask.shape[1]
    programs = heads * blocks_n * blocks_m
    splits = max(1, min(b * h // heads, _PROGRAMS // programs))
    per_query = _per_query(mask, n)
    parts = query.new_empty(splits, heads, n if per_query else blocks_n, m, dtype=torch.float32)
    kernels.additive_mask[(programs * splits,)](
        *_pointers(inputs)[:5], *kept, parts, *map(_strides, (query, key, value, mask, kept[0])), parts.stride(),
        options.scale, options.window, *_dropout(options), *mask.shape[:2], b, h, h // g, n, m, splits,
        **_compiled_for(inputs, options, blocks),
    )  # fmt: skip
    gradient: Tensor = parts.sum(0).view(*mask.shape[:2], *parts.shape[2:])
    return gradient.sum(2, keepdim=True) if mask.shape[2] < gradient.shape[2] else gradient


def _without_idle_window(inputs: Inputs, options: Options) -> Options:
    """The options, without the window if it hides nothing: one near 2³¹ would overflow when the kernels add to it."""
    *_, longest_n, longest_m = _sizes(inputs, options)
    return options._replace(window=0) if options.window >= max(longest_n, longest_m) else options


def _sizes(inputs: Inputs, options: Options) -> tuple[int, int, int, int, int, int, int]:
    """The numbers of sequences, heads, queries, key heads, keys, and of queries and keys in the longest sequence."""
    (b, h, n, _), (_, g, m, _) = inputs.query.shape, inputs.key.shape
    if inputs.queries_from is None:
        return b, h, n, g, m, n, m
    return len(inputs.queries_from) - 1, h, n, g, m, options.longest_queries, options.longest_keys


def _compiled_for(inputs: Inputs, options: Options, blocks: Blocks, per_head: bool = False) -> dict[str, Any]:
    """The options that a kernel is compiled for; with ``per_head``, its blocks hold queries of several heads."""
    query, _, value, mask, *_ = inputs
    single = query.dtype == torch.float32
    opt = _kernel_options(
        D=query.shape[-1], BLOCK_D=power_of_two(query.shape[-1]), BLOCK_N=blocks.queries,
        E=value.shape[-1], BLOCK_E=power_of_two(value.shape[-1]), BLOCK_M=blocks.keys,
        CAUSAL=options.is_causal, WINDOWED=options.window > 0, DROPOUT=options.dropout_p > 0,
        MASK="none" if mask is None else "bool" if mask.dtype == torch.bool else "additive",
        PER_QUERY=mask is not None and (_per_query(mask, query.shape[2]) or (per_head and mask.shape[1] > 1)),
        WEIGHTS=options.rows == "weights", THROUGH=options.gradient == "through", FOLD=_folds(query),
        SCALED=options.scale <= 0 or (mask is not None and mask.dtype != torch.bool),
        PACKED=inputs.queries_from is not None,
        PRECISION="tf32" if single and _may_use_tf32() else "ieee",
        INTERPRETED=interpreted(),
    )  # fmt: skip
    warps = blocks.warps if mask is None and options.dropout_p == 0 else 8  # both take registers
    return {"OPT": opt, "num_warps": warps, "num_stages": blocks.stages}


@cache
def _kernel_options(**fields: Any) -> Any:
    from conditioned_attention.attention.triton.blocks import Options as KernelOptions

    return KernelOptions(**fields)


def _per_query(mask: Tensor, queries: int) -> bool:
    return mask.shape[2] > 1 or queries == 1


def _may_use_tf32() -> bool:
    """Whether PyTorch's own switch allows TF32 for matrix products of float32."""
    switches: Any = torch.backends.cuda.matmul
    if hasattr(switches, "fp32_precision"):  # if this has been set, reading the older name raises
        return bool(switches.fp32_precision == "tf32")
    return bool(switches.allow_tf32)


def _blocks(inputs: Inputs, options: Options) -> list[Blocks]:
    """The table's block shapes, no larger than the lengths need."""
    *_, longest_n, longest_m = _sizes(inputs, options)
    return _no_larger(_table(inputs, options), power_of_two(longest_n), power_of_two(longest_m))


@cache  # a small attention takes a GPU hardly longer than the host takes to make these
def _no_larger(row: tuple[Blocks, ...], n: int, m: int) -> list[Blocks]:
    return [each._replace(queries=min(each.queries, n), keys=min(each.keys, m)) for each in row]


def _table(inputs: Inputs, options: Options) -> tuple[Blocks, ...]:
    """The table's row for these inputs."""
    query, _, value, mask, *_ = inputs
    if query.dtype == torch.float32:
        table = _SINGLE
    elif mask is not None and max(mask.shape[1:3]) > 1:
        table = _HALF_MASKED
    else:
        table = _HALF_DROPOUT if options.dropout_p > 0 else _HALF
    width = max(query.shape[-1], value.shape[-1])
    return next(blocks for up_to, blocks in table.items() if width <= up_to)


def _folds(tensor: Tensor) -> bool:
    """Whether C goes into the log-sum-exp; see `triton.backward`."""
    return tensor.dtype == torch.bfloat16


def _dropout(options: Options) -> tuple[float, float]:
    """(probability that a weight is dropped, factor on the weights that are left)."""
    return options.dropout_p, 0.0 if options.dropout_p == 1 else 1 / (1 - options.dropout_p)


def _pointers(inputs: Inputs) -> list[Tensor]:
    """The tensors as kernels take them: booleans as bytes, and the query for a missing one, which is not read."""
    tensors = (inputs.query if tensor is None else tensor for tensor in inputs)
    return [tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor for tensor in tensors]


def _strides(tensor: Tensor | None) -> tuple[int, ...]:
    """The strides of a tensor, 0 along dimensions of size 1, so that a mask is broadcast; for None all 0."""
    if tensor is None:  # kernels do not move through the tensor that stands in its place
        return (0, 0, 0, 0)
    return tuple(0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride()))
