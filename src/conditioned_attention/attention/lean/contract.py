"""Decides what `lean` may hand to PyTorch's flash operators, with the reasons against, and puts it into their form.

The operators check nothing: they end the process on empty tensors, read garbage if the last stride is not 1, and
silently accept mismatched batches.  Nothing reaches them except through this module.

Shapes: B batch, H heads (G key heads under grouped queries), N queries, M keys, D head width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._device import DeviceContext

from conditioned_attention.attention.arguments import Arguments, four
from conditioned_attention.attention.autocast import autocast_dtype
from conditioned_attention.attention.lean.steps import unit_stride
from conditioned_attention.attention.surroundings import exported_or_traced
from conditioned_attention.preconditioner import HeadTransform, RowNorm

_STOCK_ATTENTION = torch._C._nn.scaled_dot_product_attention  # what the public name stands for, unless replaced

# What torch._fused_sdp_choice returns for CUDA tensors
_CUDA_BACKENDS = {1: "cuda flash", 2: "cuda efficient"}
_CUDNN = 3

Prepared = tuple[Tensor, Tensor, Tensor, Tensor | None]


def refusal(transform: HeadTransform, arguments: Arguments) -> str | None:
    """Why this implementation cannot run for these arguments; None if it can."""
    if type(transform) is not RowNorm or transform.needs_weights:  # a subclass may do anything
        return "C is folded into flash attention from the rows of the output only"
    return (
        _refuses_surroundings()
        or arguments.irregular()
        or _refuses_inputs(arguments)
        or (_refuses_on_cpu(arguments) if arguments.query.device.type == "cpu" else _refuses_on_cuda(arguments))
    )


def copies(arguments: Arguments) -> str | None:
    """What would be copied, with the copies kept for backward; None if nothing would be."""
    if any(tensor.stride(-1) != 1 for tensor in arguments[:3]):
        return "it would copy, and keep, tensors whose last stride is not 1"
    return None


def _refuses_surroundings() -> str | None:
    """Why PyTorch's public function must not be bypassed: something has to see it, or differentiates it otherwise."""
    if exported_or_traced():
        return "an exported or traced graph would hold private operators"
    if F.scaled_dot_product_attention is not _STOCK_ATTENTION:
        return "torch.nn.functional.scaled_dot_product_attention was replaced, and would be passed over"
    if torch.compiler.is_compiling():
        return "functorch transforms inside torch.compile" if torch._C._are_functorch_transforms_active() else None
    if torch._C._len_torch_function_stack() and not _only_default_devices():
        return "a TorchFunctionMode is active, and would not see the call"
    transforms = torch._C._functorch.get_interpreter_stack() or ()
    if any(transform.key() != torch._C._functorch.TransformType.Grad for transform in transforms):
        return "only reverse mode (torch.func.grad, vjp) of the functorch transforms goes through it"
    if forward_ad._current_level >= 0:
        return "flash attention has no forward-mode derivative"
    return None


def _only_default_devices() -> bool:
    """Whether the active function modes are ``torch.set_default_device`` and ``with torch.device(...)`` only."""
    modes = torch.overrides._get_current_function_mode_stack()
    return all(isinstance(mode, DeviceContext) for mode in modes)


def _refuses_inputs(arguments: Arguments) -> str | None:
    query, key, value, mask = arguments[:4]
    if query.shape[-1] != value.shape[-1]:
        return f"value width {value.shape[-1]} differs from key width {query.shape[-1]}"
    if not query.dtype == key.dtype == value.dtype and torch.float64 in (query.dtype, key.dtype, value.dtype):
        return "float64, which autocast leaves as it is, beside another dtype"
    if mask is not None and mask.requires_grad and torch.is_grad_enabled():
        return "flash attention sends no gradient to a mask"
    return None


def _refuses_on_cpu(arguments: Arguments) -> str | None:
    if arguments.dropout_p > 0:
        return "flash attention on CPU has no dropout"
    if not _flash_enabled():
        return "the flash backend is switched off"
    return None


def _flash_enabled() -> bool:
    return bool(torch.backends.cuda.flash_sdp_enabled())  # also the switch of CPU flash attention


# torch.compile evaluates it once, as it does PyTorch's own choice of a backend (torch.compiler.assume_constant_result
# does the same, but imports torch._dynamo).
_flash_enabled._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _refuses_on_cuda(arguments: Arguments) -> str | None:
    device = arguments.query.device.type
    if device != "cuda" or torch.version.hip is not None:
        return f"no flash operators are known for {'ROCm' if device == 'cuda' else device}"
    if torch.compiler.is_compiling():
        return "PyTorch's choice of a CUDA backend cannot be asked for inside torch.compile"
    arguments = arguments.for_pytorch()
    prepared = tensors(arguments)
    query, key, _, mask = prepared
    if mask is not None and mask.dtype != query.dtype:
        return f"on CUDA a mask must have query's dtype {query.dtype}, got {mask.dtype}"
    choice = _cuda_choice(arguments, prepared)
    if choice == _CUDNN:
        return "PyTorch would run cuDNN's attention, whose statistics for backward are not verified"
    if choice not in _CUDA_BACKENDS:
        return "PyTorch would run neither flash nor memory-efficient attention"
    if choice == 1 and query.shape[-1] % 8:
        return f"flash attention on CUDA pads a head width of {query.shape[-1]}, which is no multiple of 8"
    if choice == 2 and arguments.enable_gqa and query.shape[1] != key.shape[1]:
        return "memory-efficient attention has no grouped queries"
    if choice == 2 and mask is not None and mask.shape[-1] % 16:
        return f"memory-efficient attention pads a mask over {mask.shape[-1]} keys, which is no multiple of 16"
    return None


def _cuda_choice(arguments: Arguments, prepared: Prepared) -> int:
    _, _, _, _, dropout_p, is_causal, scale, enable_gqa, _ = arguments
    return int(torch._fused_sdp_choice(*prepared, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa))


def backend(arguments: Arguments, prepared: Prepared) -> str:
    """Which operators run, for tensors as `tensors` has prepared them."""
    if arguments.query.device.type == "cpu":
        return "cpu flash"
    return _CUDA_BACKENDS[_cuda_choice(arguments, prepared)]


def tensors(arguments: Arguments) -> Prepared:
    """Query, key, value and mask as the operators take them: (B, H, N, D), one dtype, last stride 1."""
    query, key, value = (unit_stride(four(t)) for t in arguments[:3])
    if (dtype := autocast_dtype(query.device.type)) is not None:
        query, key, value = (t if t.dtype == torch.float64 else t.to(dtype) for t in (query, key, value))
    if arguments.attn_mask is None:
        return query, key, value, None
    return query, key, value, _additive(arguments.attn_mask, query, key)


def _additive(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """The mask as numbers (B or 1, H or 1, N, M), in query's dtype or float32; on CUDA expanded to (B, H, N, M)."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, -math.inf)
    elif mask.dtype not in (query.dtype, torch.float32):
        mask = mask.to(query.dtype)
    mask = four(mask)
    sizes = (query.shape[-2], key.shape[-2])
    if mask.shape[-2:] != sizes:
        mask = mask.expand(-1, -1, *sizes)
    mask = unit_stride(mask)
    return mask.expand(*query.shape[:2], -1, -1) if query.device.type == "cuda" else mask
