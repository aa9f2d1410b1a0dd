"""The two halves of `lean`: attention with C forward, and its gradients backward.

Each is also registered as an operator, ``conditioned_attention::lean_forward`` and ``lean_backward``.  torch.compile
calls these and treats them as a whole: if it saw through them, it would keep the unnormalised output beside y for
backward, because it knows how to compute one from the other, but not that the output projection keeps y anyway.

Shapes: B batch, H heads (G key heads under grouped queries), N queries, M keys, D head width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from conditioned_attention.attention.lean import flash, rows
from conditioned_attention.preconditioner import precondition_, row_norm


class Kept(NamedTuple):
    """For backward: y (B, H, N, D), 1/C (B, H, N, 1), lse or lse - log C (B, H, at least N), dropout's random state."""

    y: Tensor
    norm: Tensor
    lse: Tensor
    seed: Tensor | None
    offset: Tensor | None


def forward(call: flash.Call, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, eps: float) -> Kept:
    """``C · softmax(q kᵀ · scale + mask) v`` and what backward needs."""
    output, lse, seed, offset = flash.forward(call, query, key, value, mask)
    if torch._C._len_torch_dispatch_stack():  # a mode may keep what it sees, as selective checkpointing does
        norm = row_norm(output, eps)
        y = (output / norm).to(output.dtype)
        if _folds(y):
            log_norm = norm.squeeze(-1).log()
            lse = lse + F.pad(log_norm, (0, lse.shape[-1] - log_norm.shape[-1]))
        return Kept(y, norm, lse, seed, offset)
    if rows.run_on(output):
        return Kept(output, rows.normalise_(output, lse, eps, _folds(output)), lse, seed, offset)
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
    """Gradients of query, key and value from the gradient of y."""
    y, norm, lse, seed, offset = kept
    if rows.run_on(y):
        attention, upstream = rows.rebuild(y, norm, upstream, eps, through=gradient == "through", folds=_folds(y))
    else:
        attention, upstream = _rebuild(y, norm, upstream, eps, gradient)
    # If C is folded, ``lse`` is lse - log C: flash computes exp(S - lse) from it, which is then C·P, and so multiplies
    # everything that it sends back by C, without an extra pass.  For the softmax it subtracts rowsum(dY A), so the
    # output that it is given must be A.
    return flash.backward(call, unit_stride(upstream), query, key, value, mask, (attention, lse, seed, offset))


def _rebuild(y: Tensor, norm: Tensor, upstream: Tensor, eps: float, gradient: str) -> tuple[Tensor, Tensor]:
    """Returns (y / C, the upstream gradient as flash's backward takes it)."""
    if gradient == "through":
        along = (y * upstream).sum(-1, keepdim=True, dtype=norm.dtype)
        upstream = (upstream - y * (along * (norm > eps))).to(y.dtype)
    if _folds(y):  # the product is computed in float32, without a float32 tensor of its size in between
        return torch.mul(y, norm, out=torch.empty_like(y)), upstream
    return y * norm, upstream / norm


def unit_stride(tensor: Tensor) -> Tensor:
    """The tensor, copied if its last stride is not 1."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _folds(y: Tensor) -> bool:
    """Whether C is folded into the log-sum-exp: if the rounding of that float32 number is below that of the dtype."""
    return y.dtype in (torch.float16, torch.bfloat16)


# The signatures of the operators are written out, flat, because schemas are made from them.


@torch.library.custom_op("conditioned_attention::lean_forward", mutates_args=(), device_types="cpu")
def forward_operator(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    eps: float,
    gradient: str,
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
def _(query: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    b, h, n, _d = query.shape
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    y = torch.empty_like(query)
    tokens_first = query.new_empty(b, n, h, 1, dtype=dtype).transpose(1, 2)
    norm = tokens_first if y.stride(1) < y.stride(2) else query.new_empty(b, h, n, 1, dtype=dtype)
    return y, norm, query.new_empty(b, n, h, dtype=dtype).transpose(1, 2)


@backward_operator.register_fake
def _(upstream: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, ...]:
    inside = (torch.empty_like(t.transpose(1, 2), memory_format=torch.contiguous_format) for t in (query, key, value))
    return tuple(gradient.transpose(1, 2) for gradient in inside)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    query, key, value, mask, *ctx.options = inputs
    ctx.save_for_backward(query, key, value, mask, *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _send_back(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 8
    return *backward_operator(upstream, *ctx.saved_tensors, *ctx.options), None, None, None, None, None


# Here and not in `lean`'s autograd function: with one of those, torch.compile does not notice that a tensor it keeps is
# written to before backward, and returns other gradients.
forward_operator.register_autograd(_send_back, setup_context=_keep)
