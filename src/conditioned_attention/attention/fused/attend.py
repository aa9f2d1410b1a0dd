"""Attention with rows of unit length in this library's own Triton kernels: for CUDA, in one pass each way.

Backward needs what flash attention keeps for it, the output and the log-sum-exp, and also 1/C: one float per row.
The kernels are registered as operators, ``conditioned_attention::fused_forward`` and ``fused_backward``, which
torch.compile takes as a whole and which modes that watch operators see.  Otherwise they are called directly, because
going through the dispatcher takes the host as long as a small attention takes a GPU.

Shapes: B batch, H heads (G key heads under grouped queries), N queries, M keys, D head width, E value width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from conditioned_attention.attention.arguments import Arguments
from conditioned_attention.attention.fused import contract, launch
from conditioned_attention.attention.fused.launch import Inputs, Options
from conditioned_attention.preconditioner import HeadTransform, RowNorm

_TENSORS = len(Inputs._fields)


def attend(transform: HeadTransform, arguments: Arguments) -> Tensor:
    """``C · softmax(q kᵀ · scale) v``, (..., H, N, E), for arguments that `contract` does not refuse."""
    query, key, value, mask = contract.tensors(arguments)
    seed = _seed(query) if arguments.dropout_p > 0 else None
    output = _run(Inputs(query, key, value, mask, seed), _options(transform, arguments, query))
    return output if arguments.query.dim() == 4 else output.reshape(*arguments.query.shape[:-1], output.shape[-1])


def attend_packed(
    transform: HeadTransform, arguments: Arguments, queries_from: Tensor, keys_from: Tensor, longest: tuple[int, int]
) -> Tensor:
    """The same for packed sequences, one after another: query (1, H, all N, D), key and value (1, G, all M, ...).

    ``queries_from`` and ``keys_from`` hold the index of the first token of each sequence and, at the end, the number of
    all tokens, as int32 on query's device; ``longest`` holds the numbers of queries and keys of the longest sequences.
    """
    query, key, value, _ = contract.tensors(arguments)
    seed = _seed(query) if arguments.dropout_p > 0 else None
    options = _options(transform, arguments, query)._replace(longest_queries=longest[0], longest_keys=longest[1])
    firsts = (queries_from.contiguous(), keys_from.contiguous())  # the kernels read one number after the other
    return _run(Inputs(query, key, value, None, seed, *firsts), options)


def _options(transform: HeadTransform, arguments: Arguments, query: Tensor) -> Options:
    assert isinstance(transform, RowNorm)
    scale = 1 / math.sqrt(query.shape[-1]) if arguments.scale is None else arguments.scale
    return Options(
        arguments.is_causal, scale, arguments.dropout_p, window=arguments.window or 0,
        eps=transform.floor(query.dtype), rows=transform.rows, gradient=transform.gradient,
    )  # fmt: skip


def _seed(query: Tensor) -> Tensor:
    """A seed for dropout, drawn on the device from PyTorch's own generator of that device."""
    return torch.randint(2**62, (1,), device=query.device)


def _run(inputs: Inputs, options: Options) -> Tensor:
    output: Tensor
    if not _may_call_directly():
        output = forward_operator(*inputs, *options)[0]
        return output
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs):
        output = _Fused.apply(*inputs, *options)[0]
        return output
    return launch.forward(inputs, options)[0]


def _may_call_directly() -> bool:
    """Whether nothing but autograd has to see the operators."""
    if torch.compiler.is_compiling():
        return False
    return not (torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active())


# Operators take everything flat: `Inputs`, then `Options`.
_INPUTS = "Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? seed, Tensor? queries_from, Tensor? keys_from"
_OPTIONS = (
    "bool is_causal, float scale, float dropout_p, SymInt window, float eps, str rows, str gradient, "
    "SymInt longest_queries, SymInt longest_keys"
)


@torch.library.custom_op(
    "conditioned_attention::fused_forward",
    mutates_args=(),
    schema=f"({_INPUTS}, {_OPTIONS}) -> (Tensor, Tensor, Tensor)",
)
def forward_operator(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`launch.forward`: y, 1/C and the log-sum-exp."""
    return launch.forward(Inputs(*args[:_TENSORS]), Options(*args[_TENSORS:]))


@torch.library.custom_op(
    "conditioned_attention::fused_backward",
    mutates_args=(),
    schema=f"(Tensor upstream, {_INPUTS}, Tensor y, Tensor norm, Tensor lse, {_OPTIONS}, bool of_mask)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def backward_operator(upstream: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`launch.backward`."""
    y, norm, lse, *options, of_mask = args[_TENSORS:]
    return launch.backward(upstream, Inputs(*args[:_TENSORS]), y, norm, lse, Options(*options), of_mask)


@forward_operator.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return launch.empty_results(query, value)


@backward_operator.register_fake
def _(
    upstream: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *options: Any
) -> tuple[Tensor, ...]:
    return launch.empty_gradients(query, key, value, mask if options[-1] else None)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.options = inputs[_TENSORS:]
    ctx.save_for_backward(*inputs[:_TENSORS], *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _send_back(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    none = (None,) * (_TENSORS + len(Options._fields) - 4)
    if upstream is None:
        return (None,) * 4 + none
    of_mask = ctx.needs_input_grad[3]
    saved = ctx.saved_tensors  # read once only: activation checkpointing forbids a second read
    inputs, results = saved[:_TENSORS], saved[_TENSORS:]
    if _may_call_directly() and not torch.is_grad_enabled():
        y, norm, lse = results
        gradients = launch.backward(upstream, Inputs(*inputs), y, norm, lse, Options(*ctx.options), of_mask)
    else:  # with create_graph, the operator, whose further derivative raises
        gradients = backward_operator(upstream, *inputs, *results, *ctx.options, of_mask)
    return *gradients[:3], gradients[3] if of_mask else None, *none


def _no_second_derivative(ctx: Any, *_: Any) -> None:
    raise NotImplementedError(
        "the fused kernels have no second derivative; wrap the call in torch.nn.attention.sdpa_kernel("
        "torch.nn.attention.SDPBackend.MATH), with impl='composed'"
    )


forward_operator.register_autograd(_send_back, setup_context=_keep)
backward_operator.register_autograd(_no_second_derivative)


class _Fused(torch.autograd.Function):
    """The differentiable function of the operators, called without the dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        output = launch.forward(Inputs(*inputs[:_TENSORS]), Options(*inputs[_TENSORS:]))
        _keep(ctx, inputs, output)
        return output

    backward = staticmethod(_send_back)
