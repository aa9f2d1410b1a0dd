"""The two halves of `lean`: attention with C forward, and what a constant C sends back.

Each is also registered as an operator, ``conditioned_attention::lean_forward`` and ``lean_backward``.  torch.compile
calls these and leaves them whole: seeing through them it would keep the unnormalised output beside y for backward,
because it knows how to make one of the other and not that the output projection keeps y anyway.

Shapes: B batch, H heads (G key heads under grouped queries), N queries, M keys, D head width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from conditioned_attention.attention import flash
from conditioned_attention.preconditioner import precondition_


class Kept(NamedTuple):
    """y (B, H, N, D), 1/C (B, H, N, 1), lse or lse - log C (B, H, at least N), and dropout's random state."""

    y: Tensor
    norm: Tensor
    lse: Tensor
    seed: Tensor | None
    offset: Tensor | None


def forward(call: flash.Call, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, eps: float) -> Kept:
    """``C · softmax(q kᵀ · scale + mask) v`` and what backward needs."""
    output, lse, seed, offset = flash.forward(call, query, key, value, mask)
    y, norm = precondition_(output, eps)
    if _folds(y):
        lse[..., : norm.shape[-2]].add_(norm.squeeze(-1).log())  # lse - log C; some operators pad it
    return Kept(y, norm, lse, seed, offset)


def backward(
    call: flash.Call,
    upstream: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    kept: Kept,
    eps: float,
    gradient: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value for that of y."""
    y, norm, lse, seed, offset = kept
    if gradient == "through":
        along = (y * upstream).sum(-1, keepdim=True, dtype=norm.dtype)
        upstream = (upstream - y * (along * (norm > eps))).to(y.dtype)
    if _folds(y):  # the product in float32, and no float32 tensor of its size in between
        attention = torch.mul(y, norm, out=torch.empty_like(y))
    else:
        attention, upstream = y * norm, upstream / norm
    return flash.backward(
        call, unit_stride(upstream), query, key, value, mask, flash.Forward(attention, lse, seed, offset)
    )


def unit_stride(tensor: Tensor) -> Tensor:
    """The tensor, copied if its last stride is not 1."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _folds(y: Tensor) -> bool:
    """Whether C is folded into the log-sum-exp, a float32 number: if its rounding is below that of the dtype."""
    return y.dtype in (torch.float16, torch.bfloat16)


@torch.library.custom_op("conditioned_attention::lean_forward", mutates_args=(), device_types="cpu")
def forward_operator(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`forward` on a CPU: y, 1/C and lse."""
    return forward(flash.Call("cpu flash", 0.0, is_causal, scale), query, key, value, mask, eps)[:3]


@torch.library.custom_op("conditioned_attention::lean_backward", mutates_args=(), device_types="cpu")
def backward_operator(
    upstream: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    y: Tensor,
    norm: Tensor,
    lse: Tensor,
    is_causal: bool,
    scale: float | None,
    eps: float,
    gradient: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """`backward` on a CPU."""
    call = flash.Call("cpu flash", 0.0, is_causal, scale)
    return backward(call, upstream, query, key, value, mask, Kept(y, norm, lse, None, None), eps, gradient)


@forward_operator.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    b, h, n, _ = query.shape
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    y = torch.empty_like(query)
    tokens_first = query.new_empty(b, n, h, 1, dtype=dtype).transpose(1, 2)
    norm = tokens_first if y.stride(1) < y.stride(2) else query.new_empty(b, h, n, 1, dtype=dtype)
    return y, norm, query.new_empty(b, n, h, dtype=dtype).transpose(1, 2)


@backward_operator.register_fake
def _(
    upstream: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    y: Tensor,
    norm: Tensor,
    lse: Tensor,
    is_causal: bool,
    scale: float | None,
    eps: float,
    gradient: str,
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (
        torch.empty_like(t.transpose(1, 2), memory_format=torch.contiguous_format) for t in (query, key, value)
    )
    return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)
