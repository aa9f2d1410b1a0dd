"""Launches the Triton kernels on tensors that `fused` has checked: block shapes, memory for results, options.

Shapes: B batch, H heads (G key heads under grouped queries), N queries, M keys, D head width, E value width.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

# How many programs the gradient of a mask is split into at least, where so many batches and heads share it: a few
# for each of the 132 multiprocessors of an H100.
_PROGRAMS = 528


class Blocks(NamedTuple):
    """Queries and keys of a block, warps of a program, and loads in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


# By the larger head width up to which they hold, for half precision and for float32; each `attend`, `keys_and_values`,
# the others.  Not timed yet: large ones that spill hardly a register when compiled for an H100.
_HALF = {
    64: (Blocks(128, 64, 4, 3), Blocks(64, 128, 8, 3), Blocks(128, 64, 8, 3)),
    128: (Blocks(128, 64, 8, 3), Blocks(32, 128, 8, 2), Blocks(128, 64, 8, 2)),
    256: (Blocks(64, 64, 8, 2), Blocks(32, 32, 8, 1), Blocks(32, 64, 8, 1)),
}
_SINGLE = {
    64: (Blocks(64, 32, 8, 2), Blocks(32, 32, 8, 2), Blocks(64, 32, 8, 2)),
    128: (Blocks(64, 16, 8, 2), Blocks(16, 32, 8, 1), Blocks(32, 32, 8, 1)),
    256: (Blocks(32, 16, 8, 1), Blocks(16, 16, 8, 1), Blocks(16, 16, 8, 1)),
}


def interpreted() -> bool:
    """Whether Triton interprets its kernels in Python, on a CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def forward(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """y (B, H, N, E) and, in float32, 1/C and the log-sum-exp in base 2 (bfloat16: minus log C), both (B, H, N)."""
    from conditioned_attention.attention import triton_kernels

    b, h, n, _ = query.shape
    blocks = _blocks(query, key, value)[0]
    y, norm, lse = empty_results(query, value)
    with torch.cuda.device_of(query):
        triton_kernels.attend[(b * h * -(-n // blocks.queries),)](
            query, key, value, _bytes(mask), y, norm, lse,
            query.stride(), key.stride(), value.stride(), _strides(mask), y.stride(),
            scale, eps, h, h // key.shape[1], n, key.shape[2],
            **_options(query, value, mask, is_causal, blocks), FOLD=_folds(query),
        )  # fmt: skip
    return y, norm, lse


def backward(
    upstream: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
    y: Tensor, norm: Tensor, lse: Tensor, is_causal: bool, scale: float, eps: float, gradient: str, of_mask: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of query, key, value, and of an additive mask if ``of_mask`` (else an empty tensor)."""
    from conditioned_attention.attention import triton_kernels

    (b, h, n, _), (_, g, m, _) = query.shape, key.shape
    _, of_keys, of_queries = _blocks(query, key, value)
    dq, dk, dv, dmask = empty_gradients(query, key, value, mask if of_mask else None)
    with torch.cuda.device_of(query):
        upstream, delta = _prepare(upstream, y, norm, eps, gradient)
        tensors = (query, key, value, _bytes(mask), upstream, lse, delta)
        strides = (query.stride(), key.stride(), value.stride(), _strides(mask), upstream.stride())
        sizes = (scale, h, h // g, n, m)
        triton_kernels.keys_and_values[(b * g * -(-m // of_keys.keys),)](
            *tensors, dk, dv, *strides, dk.stride(), dv.stride(), *sizes,
            **_options(query, value, mask, is_causal, of_keys),
        )  # fmt: skip
        triton_kernels.queries[(b * h * -(-n // of_queries.queries),)](
            *tensors, dq, *strides, dq.stride(), *sizes, **_options(query, value, mask, is_causal, of_queries)
        )
        if of_mask:
            assert mask is not None
            if mask.shape[3] == 1:  # softmax does not see a number that is added to all keys alike
                dmask.zero_()
            else:
                dmask.copy_(_mask_gradient(tensors, strides, mask, is_causal, scale))
    return dq, dk, dv, dmask


def empty_results(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for y, 1/C and lse.  y lies as (B, N, H, E), so that heads are merged after it without a copy."""
    b, h, n, _ = query.shape
    y = query.new_empty(b, n, h, value.shape[-1]).transpose(1, 2)
    return y, query.new_empty(b, h, n, dtype=torch.float32), query.new_empty(b, h, n, dtype=torch.float32)


def empty_gradients(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    """Memory for the gradients, lying as their tensors do; for None an empty tensor."""
    dmask = query.new_empty(0) if mask is None else torch.empty_like(mask)
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), dmask


def _prepare(upstream: Tensor, y: Tensor, norm: Tensor, eps: float, gradient: str) -> tuple[Tensor, Tensor]:
    """The upstream gradient as the kernels take it, and δ."""
    from conditioned_attention.attention import triton_kernels

    b, h, n, e = y.shape
    through, folds = gradient == "through", _folds(y)
    prepared = torch.empty_like(y) if through or not folds else upstream
    delta = torch.empty_like(norm)
    triton_kernels.prepare[(b * h * -(-n // 32),)](
        upstream, y, norm, prepared, delta, upstream.stride(), y.stride(), prepared.stride(), eps, h, n,
        E=e, BLOCK_E=_power_of_two(e), BLOCK_N=32, THROUGH=through, FOLD=folds,
    )  # fmt: skip
    return prepared, delta


def _mask_gradient(
    tensors: tuple[Any, ...], strides: tuple[Any, ...], mask: Tensor, is_causal: bool, scale: float
) -> Tensor:
    """Gradient of an additive mask (B or 1, H or 1, N or 1, M), in float32, added up in a fixed order."""
    from conditioned_attention.attention import triton_kernels

    query, key, value = tensors[:3]
    (b, h, n, _), (_, g, m, _) = query.shape, key.shape
    blocks = _blocks(query, key, value)[2]
    blocks_n, blocks_m = -(-n // blocks.queries), -(-m // blocks.keys)
    heads = mask.shape[0] * mask.shape[1]
    programs = heads * blocks_n * blocks_m
    splits = max(1, min(b * h // heads, _PROGRAMS // programs))
    options = _options(query, value, mask, is_causal, blocks)
    del options["MASK"]
    parts = query.new_empty(splits, heads, n if options["PER_QUERY"] else blocks_n, m, dtype=torch.float32)
    triton_kernels.additive_mask[(programs * splits,)](
        *tensors, parts, *strides, parts.stride(), scale, *mask.shape[:2], b, h, h // g, n, m, splits, **options
    )
    gradient: Tensor = parts.sum(0).view(*mask.shape[:2], *parts.shape[2:])
    return gradient.sum(2, keepdim=True) if mask.shape[2] < gradient.shape[2] else gradient


def _options(query: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, blocks: Blocks) -> dict[str, Any]:
    """What every kernel is compiled for."""
    d, e = query.shape[-1], value.shape[-1]
    kind = "none" if mask is None else "bool" if mask.dtype == torch.bool else "additive"
    single = query.dtype == torch.float32
    return {
        "D": d, "E": e, "BLOCK_D": _power_of_two(d), "BLOCK_E": _power_of_two(e),
        "BLOCK_N": blocks.queries, "BLOCK_M": blocks.keys, "CAUSAL": is_causal, "MASK": kind,
        "PER_QUERY": mask is not None and (mask.shape[2] > 1 or query.shape[2] == 1),
        "PRECISION": "tf32" if single and _may_use_tf32() else "ieee",
        "UPCAST": interpreted() and query.dtype == torch.bfloat16,
        "num_warps": blocks.warps if mask is None else 8, "num_stages": blocks.stages,  # a mask takes registers
    }  # fmt: skip


def _may_use_tf32() -> bool:
    """PyTorch's own switch for products of float32."""
    switches: Any = torch.backends.cuda.matmul
    if hasattr(switches, "fp32_precision"):  # where this was set, asking by the older name raises
        return bool(switches.fp32_precision == "tf32")
    return bool(switches.allow_tf32)


def _blocks(query: Tensor, key: Tensor, value: Tensor) -> list[Blocks]:
    """The table's block shapes, no larger than the lengths need."""
    width = max(query.shape[-1], value.shape[-1])
    table = _SINGLE if query.dtype == torch.float32 else _HALF
    row = next(blocks for up_to, blocks in table.items() if width <= up_to)
    n, m = _power_of_two(query.shape[2]), _power_of_two(key.shape[2])
    return [each._replace(queries=min(each.queries, n), keys=min(each.keys, m)) for each in row]


def _power_of_two(size: int) -> int:
    """The smallest power of two from 16 on, the least that Triton multiplies, that is not below ``size``."""
    return max(16, 1 << (size - 1).bit_length())


def _folds(tensor: Tensor) -> bool:
    """Whether C goes into the log-sum-exp; see `triton_kernels`."""
    return tensor.dtype == torch.bfloat16


def _bytes(mask: Tensor | None) -> Tensor | None:
    return mask.view(torch.uint8) if mask is not None and mask.dtype == torch.bool else mask


def _strides(mask: Tensor | None) -> tuple[int, ...]:
    """Of a mask, 0 along what it is broadcast; for none, anything."""
    if mask is None:
        return (0, 0, 0, 0)
    return tuple(0 if size == 1 else stride for size, stride in zip(mask.shape, mask.stride()))
