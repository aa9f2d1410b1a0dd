"""Attention with rows of unit length in kernels of our own, written in Triton: for CUDA, in one pass each way.

What is kept for backward is what flash attention keeps, its output and the log-sum-exp, and 1/C: one float a row.
The kernels are registered operators, ``conditioned_attention::fused_forward`` and ``fused_backward``: torch.compile
takes them whole, and modes that watch operators see them.  Otherwise they are called directly, because going through
the dispatcher takes the host as long as a small attention takes a GPU.

Shapes: B batch, H heads (G key heads under grouped queries), N queries, M keys, D head width, E value width.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from conditioned_attention.attention import fused_launch
from conditioned_attention.attention.arguments import Arguments
from conditioned_attention.preconditioner import HeadTransform, RowNorm

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_WIDEST = 256  # head width whose blocks fit into a multiprocessor


def attend(transform: HeadTransform, arguments: Arguments) -> Tensor:
    """``C · softmax(q kᵀ · scale) v``, (..., H, N, E), for arguments that `refusal` has nothing against."""
    assert isinstance(transform, RowNorm)
    query, key, value, mask = _tensors(arguments)
    scale = 1 / math.sqrt(query.shape[-1]) if arguments.scale is None else arguments.scale
    floor = transform.floor(query.dtype)
    inputs = (query, key, value, mask, arguments.is_causal, scale, floor, transform.gradient)
    output: Tensor
    if not _may_call_directly():
        output = forward_operator(*inputs)[0]
    elif torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs[:4]):
        output = _Fused.apply(*inputs)[0]  # type: ignore[no-untyped-call]
    else:
        output = fused_launch.forward(*inputs[:7])[0]
    return output if arguments.query.dim() == 4 else output.reshape(*arguments.query.shape[:-1], output.shape[-1])


def refusal(transform: HeadTransform, arguments: Arguments) -> str | None:
    """Why this implementation cannot run for these arguments; None if it can."""
    if type(transform) is not RowNorm or transform.needs_weights:  # a subclass may do anything
        return "C is worked into the kernels from the rows of the output only"
    return _refuses_machine(arguments.query.device) or _refuses_surroundings() or _refuses_inputs(arguments)


def _refuses_machine(device: torch.device) -> str | None:
    if device.type == "cpu" and not fused_launch.interpreted():
        return "the Triton kernels are for CUDA, and the tensors are on a CPU"
    if device.type not in ("cuda", "cpu"):
        return f"the Triton kernels are for CUDA, and the tensors are on {device.type}"
    if not _has_triton():
        return "Triton is not installed"
    return None


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


# torch.compile evaluates it once (torch.compiler.assume_constant_result does the same, but imports torch._dynamo).
_has_triton._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _refuses_surroundings() -> str | None:
    if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
        return "an exported or traced graph would hold private operators"
    if torch._C._are_functorch_transforms_active():
        return "transforms of functorch do not go through the kernels"
    if forward_ad._current_level >= 0:
        return "the kernels have no forward-mode derivative"
    return None


def _refuses_inputs(arguments: Arguments) -> str | None:
    query, key, value, mask, dropout_p, _, _, enable_gqa = arguments
    for tensor in (query, key, value, mask):
        if tensor is None:
            continue
        if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.is_nested:
            return f"{type(tensor).__name__} and nested tensors go through PyTorch's own dispatch"
        if tensor.numel() == 0:
            return "empty tensors"
    if dropout_p > 0:
        return "the kernels have no dropout"
    if not 2 <= query.dim() <= 4 or query.dim() != key.dim() or key.dim() != value.dim():
        return "query, key and value must have the same number of dimensions, 2 to 4"
    if any(tensor.dtype not in _DTYPES for tensor in (query, key, value)):
        return f"the kernels take float16, bfloat16 and float32, not {query.dtype}"
    if max(query.shape[-1], value.shape[-1]) > _WIDEST:
        return f"the kernels take head widths up to {_WIDEST}, got {query.shape[-1]} and {value.shape[-1]}"
    heads = 3 if enable_gqa else 2
    if query.shape[:-heads] != key.shape[:-heads] or key.shape[:-2] != value.shape[:-2]:
        return "batch or head dimensions that broadcast"
    return None


def _tensors(arguments: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Query, key, value and mask with four dimensions and, under autocast, in its dtype; the mask is not spread."""
    query, key, value, mask = (None if t is None else _four(t) for t in arguments[:4])
    assert query is not None
    assert key is not None
    assert value is not None
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    return query, key, value, mask


def _four(tensor: Tensor) -> Tensor:
    return tensor.view((1,) * (4 - tensor.dim()) + tensor.shape)


# The signatures of the operators are written out, flat, because schemas are made from them.


@torch.library.custom_op("conditioned_attention::fused_forward", mutates_args=())
def forward_operator(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
    eps: float,
    gradient: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """`fused_launch.forward`: y, 1/C and the log-sum-exp."""
    return fused_launch.forward(query, key, value, mask, is_causal, scale, eps)


@torch.library.custom_op("conditioned_attention::fused_backward", mutates_args=())
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
    scale: float,
    eps: float,
    gradient: str,
    of_mask: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`fused_launch.backward`."""
    return fused_launch.backward(
        upstream, query, key, value, mask, y, norm, lse, is_causal, scale, eps, gradient, of_mask
    )


@forward_operator.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return fused_launch.empty_results(query, value)


@backward_operator.register_fake
def _(
    upstream: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *options: Any
) -> tuple[Tensor, ...]:
    return fused_launch.empty_gradients(query, key, value, mask if options[-1] else None)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    query, key, value, mask, *ctx.options = inputs
    ctx.save_for_backward(query, key, value, mask, *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _send_back(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 8
    of_mask = ctx.needs_input_grad[3]
    # With create_graph the operator, of which a further derivative is an error.
    directly = _may_call_directly() and not torch.is_grad_enabled()
    backward: Any = fused_launch.backward if directly else backward_operator
    *gradients, of_the_mask = backward(upstream, *ctx.saved_tensors, *ctx.options, of_mask)
    return *gradients, of_the_mask if of_mask else None, None, None, None, None


def _no_second_derivative(ctx: Any, *_: Any) -> None:
    raise NotImplementedError(
        "the fused kernels have no second derivative; wrap the call in torch.nn.attention.sdpa_kernel("
        "torch.nn.attention.SDPBackend.MATH), with impl='composed'"
    )


forward_operator.register_autograd(_send_back, setup_context=_keep)
backward_operator.register_autograd(_no_second_derivative)


class _Fused(torch.autograd.Function):
    """The operators' derivative, without the dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        output = fused_launch.forward(*inputs[:7])
        _keep(ctx, inputs, output)
        return output

    backward = staticmethod(_send_back)


def _may_call_directly() -> bool:
    """Whether nobody but autograd has to see the operators."""
    if torch.compiler.is_compiling():
        return False
    return not (torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active())
