"""Computes what transformers' sdpa function does, but through `attend`, whose implementation with least memory can run.

This is done only where a call asks for no more than attention under a mask, several queries at a time.  Everything
else (decoding, paged caches, learned position biases, other devices) stays with transformers' own function, and the
transform is then applied to its output.

Shapes: B batch, H heads (G key heads under grouped queries), N queries, M keys, D head width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from conditioned_attention.attention.surroundings import exported_or_traced
from conditioned_attention.functional import attend
from conditioned_attention.preconditioner import HeadTransform

# The parameters of the function as they are known here: those of 5.4, and those that later releases added.  With other
# parameters it may do other things.
_PARAMETERS = ("module", "query", "key", "value", "attention_mask", "dropout", "scaling", "is_causal")
_SINCE = ("position_bias", "cache")
_KNOWN = [(*_PARAMETERS, *_SINCE[:some], "kwargs") for some in range(3)]
_WIDEST_GROUPED = 256  # the largest head width of PyTorch's flash kernels
_module: Any = None  # transformers' own, once `look_up` has seen that its function is the known one

_MORE_THAN_ATTENTION = (*_SINCE, "softcap")


def look_up() -> None:
    """Finds transformers' module; here and not at each call, which torch.compile traces."""
    global _module
    from transformers.integrations import sdpa_attention

    if tuple(inspect.signature(sdpa_attention.sdpa_attention_forward).parameters) in _KNOWN:
        _module = sdpa_attention


def stands_in_for(function: Callable[..., Any], query: Tensor, options: dict[str, Any]) -> bool:
    """Whether `attend_like_sdpa` does what ``function`` would for this call."""
    if exported_or_traced():
        return False
    known = _module is not None and function is _module.sdpa_attention_forward
    plain = all(options.get(name) is None for name in _MORE_THAN_ATTENTION)
    return known and plain and query.device.type in ("cpu", "cuda") and query.shape[2] > 1


def causal(module: nn.Module, is_causal: bool | None) -> bool:
    """Whether attention without a mask is causal: as the call says, or else the module."""
    return bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)


def attend_like_sdpa(
    transform: HeadTransform,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Transformed heads (B, N, H, D), as transformers expects them; with a mask the causal flag is ignored."""
    groups = getattr(module, "num_key_value_groups", 1)
    # transformers' rule for these devices: otherwise PyTorch would fall back to the matrix of weights
    grouped = groups > 1 and attention_mask is None and key.shape[-1] == value.shape[-1] <= _WIDEST_GROUPED
    if groups > 1 and not grouped:
        key, value = (_module.repeat_kv(tensor, groups) for tensor in (key, value))
    flag = attention_mask is None and causal(module, is_causal)
    heads = attend(transform, query, key, value, attention_mask, dropout, flag, scale=scaling, enable_gqa=grouped)
    return heads.transpose(1, 2).contiguous(), None
