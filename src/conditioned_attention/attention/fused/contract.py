"""What the Triton kernels take, and why not the rest.

Shapes: B batch, H heads (G key heads under grouped queries), N queries, M keys, D head width, E value width.
"""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
from torch import Tensor
from torch.autograd import forward_ad

from conditioned_attention.attention.arguments import Arguments
from conditioned_attention.attention.fused import launch
from conditioned_attention.preconditioner import HeadTransform, RowNorm

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_OLDEST = (8, 0)  # compute capability
_WIDEST = 256  # head width whose blocks fit into a multiprocessor


def refusal(transform: HeadTransform, arguments: Arguments) -> str | None:
    """Why this implementation cannot run for these arguments; None if it can."""
    if type(transform) is not RowNorm:  # a subclass may do anything
        return "C of this library, and nothing else, is worked into the kernels"
    return (
        refuses_machine(arguments.query.device)
        or _refuses_surroundings()
        or arguments.irregular()
        or _refuses_inputs(arguments)
    )


def refuses_machine(device: torch.device) -> str | None:
    """Why Triton kernels do not run on tensors there; None if they do."""
    if device.type == "cpu" and not launch.interpreted():
        return "the Triton kernels are for CUDA, and the tensors are on a CPU"
    if device.type not in ("cuda", "cpu"):
        return f"the Triton kernels are for CUDA, and the tensors are on {device.type}"
    if not has_triton():
        return "Triton is not installed"
    if torch.version.hip is not None:
        return "the Triton kernels were not tried on ROCm"
    if device.type == "cuda" and _too_old(device.index):
        return f"the Triton kernels need compute capability {_OLDEST[0]}.{_OLDEST[1]} or later"
    return None


def has_triton() -> bool:
    """Whether Triton is installed."""
    return _is_installed("triton")


@cache  # asked at each call, and a search of the disk where the answer is no
def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _too_old(index: int | None) -> bool:
    """Whether it is a GPU without tensor cores for bfloat16."""
    return torch.cuda.is_available() and _capability(index) < _OLDEST


@cache
def _capability(index: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


# torch.compile evaluates these once (torch.compiler.assume_constant_result does the same, but imports torch._dynamo).
has_triton._dynamo_marked_constant = True  # type: ignore[attr-defined]
_too_old._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _refuses_surroundings() -> str | None:
    if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
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
    """Query, key, value and mask with four dimensions and, under autocast, in its dtype; the mask is not spread."""
    query, key, value = (_four(tensor) for tensor in arguments[:3])
    mask = None if arguments.attn_mask is None else _four(arguments.attn_mask)
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    return query, key, value, mask


def _four(tensor: Tensor) -> Tensor:
    return tensor.view((1,) * (4 - tensor.dim()) + tensor.shape)
