"""PyTorch's own flash attention, forward and backward, with C built in.

It keeps for backward what plain attention keeps, and one float per row.  Plain attention keeps its output A, and the
output projection keeps its input; composed with C these are two tensors.  Here only y = C·A is kept, and backward
recovers A = y / C from it.

In half precision C enters backward without a pass of its own.  With P = exp(S - lse) the weights of plain attention,
C·P is exp(S - (lse - log C)); so PyTorch's own backward, given dY, A and lse - log C, returns the gradients for a
constant C: dV = (C P)ᵀ dY and dS = C P (dY Vᵀ - rowsum(dY A)).  In float32 the sum lse - log C would lose digits where
lse is large (attention on one token: an error of lse · 6e-8 where plain attention has none), so C multiplies dY
instead.

Shapes: B batch, H heads (G key heads under grouped queries), N queries, M keys, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from conditioned_attention.attention.arguments import Arguments
from conditioned_attention.attention.lean import contract, flash, steps
from conditioned_attention.preconditioner import HeadTransform, RowNorm


def attend(transform: HeadTransform, arguments: Arguments) -> Tensor:
    """``C · softmax(q kᵀ · scale) v``, (..., H, N, D), for arguments that `contract` does not refuse."""
    assert isinstance(transform, RowNorm)
    prepared = contract.tensors(arguments)
    query, key, value, mask = prepared
    backend = contract.backend(arguments, prepared)
    call = flash.Call(backend, arguments.dropout_p, arguments.is_causal, arguments.scale)
    floor = transform.floor(query.dtype)
    if torch.compiler.is_compiling():
        options = (call.is_causal, call.scale, floor, transform.gradient)
        output = steps.forward_operator(query, key, value, mask, *options)[0]
    elif _differentiated(query, key, value):
        output = _apply(_Lean, query, key, value, mask, call, floor, transform.gradient)[0]
    else:
        output = steps.forward(call, query, key, value, mask, floor).y
    result: Tensor = output if arguments.query.dim() == 4 else output.reshape(arguments.query.shape)
    return result


def _differentiated(*tensors: Tensor) -> bool:
    if torch._C._are_functorch_transforms_active():  # their tensors show only the innermost level
        return True
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _apply(function: Any, *args: Any) -> Any:
    """``function.apply`` without its inspection of the signature, which takes as long as a small attention."""
    if torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    return super(torch.autograd.Function, function).apply(*args)


class _Lean(torch.autograd.Function):
    """The two halves of `steps` as one differentiable function."""

    @staticmethod
    def forward(
        query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, call: flash.Call, eps: float, gradient: str
    ) -> tuple[Tensor | None, ...]:
        return tuple(steps.forward(call, query, key, value, mask, eps))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        query, key, value, mask, ctx.call, ctx.eps, ctx.gradient = inputs
        ctx.save_for_backward(query, key, value, mask, *output)
        ctx.mark_non_differentiable(*(tensor for tensor in output[1:] if tensor is not None))
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 7
        backward: Any = _Backward.apply if torch.is_grad_enabled() else _Backward.forward
        return *backward(upstream, *ctx.saved_tensors, ctx.call, ctx.eps, ctx.gradient), None, None, None, None


class _Backward(torch.autograd.Function):
    """The backward of `_Lean` as a function of its own, so that differentiating it raises an error with the reason."""

    @staticmethod
    def forward(
        upstream: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        y: Tensor,
        norm: Tensor,
        lse: Tensor,
        seed: Tensor | None,
        offset: Tensor | None,
        call: flash.Call,
        eps: float,
        gradient: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        kept = steps.Kept(y, norm, lse, seed, offset)
        return steps.backward(call, upstream, query, key, value, mask, kept, eps, gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Takes a batch of upstream gradients (as from jacrev) one after another."""
        batches = [
            [arg.select(dim, i) if isinstance(dim, int) else arg for arg, dim in zip(args, in_dims)]
            for i in range(info.batch_size)
        ]
        apply: Any = _Backward.apply
        gradients = zip(*(apply(*batch) for batch in batches))
        return tuple(torch.stack(each) for each in gradients), (0, 0, 0)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> None:
        raise NotImplementedError(
            "flash attention has no second derivative, in PyTorch neither; wrap the call in torch.nn.attention."
            "sdpa_kernel(torch.nn.attention.SDPBackend.MATH), with impl='auto' or 'composed'"
        )
