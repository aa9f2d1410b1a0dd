"""Decides which arguments the Triton kernels take, and says why they refuse the others.

Shapes: B batch, H heads (G key heads under grouped queries), N queries, M keys, D head width, E value width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from conditioned_attention.attention.arguments import Arguments, four
from conditioned_attention.attention.autocast import autocast_dtype
from conditioned_attention.attention.surroundings import exported_or_traced
from conditioned_attention.attention.triton.machine import refuses_machine
from conditioned_attention.preconditioner import HeadTransform, RowNorm

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_WIDEST = 256  # the largest head width whose blocks fit into a multiprocessor


def refusal(transform: HeadTransform, arguments: Arguments) -> str | None:
    """Why this implementation cannot run for these arguments; None if it can."""
    if type(transform) is not RowNorm:  # a subclass may do anything
        return "the kernels compute C of this library, and no other transform of heads"
    return (
        refuses_machine(arguments.query.device)
        or _refuses_surroundings()
        or arguments.irregular()
        or _refuses_inputs(arguments)
    )


def _refuses_surroundings() -> str | None:
    if exported_or_traced():
        return "an exported or traced graph would hold private operators"
    if torch._C._are_functorch_transforms_active():
        return "transforms of functorch do not go through the kernels"
    if forward_ad._current_level >= 0:
        return "the kernels have no forward-mode derivative"
    return None


def _refuses_inputs(arguments: Arguments) -> str | None:
    query, key, value = arguments[:3]
    others = [tensor.dtype for tensor in (query, key, value) if tensor.dtype not in _DTYPES]
    if others:
        return f"the kernels take float16, bfloat16 and float32, not {others[0]}"
    if max(query.shape[-1], value.shape[-1]) > _WIDEST:
        return f"the kernels take head widths up to {_WIDEST}, got {query.shape[-1]} and {value.shape[-1]}"
    return None


def tensors(arguments: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Query, key and value, under autocast in its dtype, and the mask, not expanded; all with four dimensions."""
    query, key, value = (four(tensor) for tensor in arguments[:3])
    mask = None if arguments.attn_mask is None else four(arguments.attn_mask)
    if (dtype := autocast_dtype(query.device.type)) is not None:
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    return query, key, value, mask
