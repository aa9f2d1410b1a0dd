"""The arguments of one attention call, which are checked and then handed to an implementation.

Shapes: B batch, H heads (G key heads under grouped queries), N queries, M keys, D head width, E value width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from conditioned_attention.attention.autocast import autocast_dtype

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Arguments(NamedTuple):
    """What ``scaled_dot_product_attention`` takes: (..., H, N, D), (..., G, M, D), (..., G, M, E) and options.

    Mask, causal flag and window apply together: query n does not attend to a key m that any of them forbids.  A window
    forbids all keys with |n - m| ≥ window.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None
    dropout_p: float
    is_causal: bool
    scale: float | None
    enable_gqa: bool
    window: int | None = None

    def irregular(self) -> str | None:
        """Why kernels for plain tensors with equal batches and matching heads cannot take these; None if they can."""
        query, key, value, mask = self[:4]
        for tensor in (query, key, value, mask):
            if tensor is None:
                continue
            if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.is_nested:
                return f"{type(tensor).__name__} and nested tensors go through PyTorch's own dispatch"
            if tensor.numel() == 0:
                return "empty tensors"
        if not 2 <= query.dim() <= 4 or query.dim() != key.dim() or key.dim() != value.dim():
            return "query, key and value must have the same number of dimensions, 2 to 4"
        heads = 3 if self.enable_gqa else 2
        if query.shape[:-heads] != key.shape[:-heads] or key.shape[:-2] != value.shape[:-2]:
            return "batch or head dimensions that broadcast"
        return None

    def for_pytorch(self) -> Arguments:
        """The same without a window and with at most one of mask and causal flag, as PyTorch's operators take them."""
        # PyTorch's own causal attention gives NaN if the scale is not positive, because that turns -inf around.
        merges = self.is_causal and (self.attn_mask is not None or (self.scale is not None and self.scale <= 0))
        if not merges and self.window is None:
            return self
        seen = _seen(self.query, self.key, self.is_causal, self.window)
        mask = self.attn_mask
        if mask is not None:
            seen = mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, -math.inf)
        return self._replace(attn_mask=seen, is_causal=False, window=None)


def _seen(query: Tensor, key: Tensor, causal: bool, window: int | None) -> Tensor:
    """A mask (N, M), True where causal flag and window let a query attend; aligned to the upper left."""
    seen = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device)
    if window is not None:
        seen = seen.triu(1 - window)
    if causal:
        return seen.tril()
    return seen if window is None else seen.tril(window - 1)


def checked(arguments: Arguments) -> Arguments:
    """Returns the arguments if they fit together, with a floating-point mask in float64 if query is.

    Raises:
        ValueError: shapes or devices that do not fit, or a number out of range.
        TypeError: something that is not a tensor, or tensors of dtypes that do not fit.
    """
    _check(arguments)
    _check_window(arguments.window)
    attn_mask = arguments.attn_mask
    if attn_mask is not None and attn_mask.is_floating_point() and arguments.query.dtype == torch.float64:
        attn_mask = attn_mask.double()  # stock CPU attention accepts a float32 mask there and misreads it
        return arguments._replace(attn_mask=attn_mask)
    return arguments


def _check(arguments: Arguments) -> None:
    """Raises for what `scaled_dot_product_attention` would refuse, silently accept, or answer with an obscure error."""
    query, key, value, attn_mask, dropout_p, _, _, enable_gqa, _ = arguments
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        check_float(name, tensor)
        if tensor.dim() < 2:
            raise ValueError(f"{name} must have at least 2 dimensions (tokens, width), got shape {tuple(tensor.shape)}")
        if tensor.device != query.device:
            raise ValueError(f"{name} is on {tensor.device}, query on {query.device}; they must share one device")
        if tensor.dtype != query.dtype and autocast_dtype(query.device.type) is None:
            raise TypeError(f"{name} has dtype {tensor.dtype}, query {query.dtype}; they must share one dtype")
    if not isinstance(dropout_p, (int, float, torch.SymFloat)):
        raise TypeError(f"dropout_p must be a number, got {type(dropout_p).__name__}")
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(f"dropout_p must be a probability in [0, 1], got {dropout_p}")
    if query.is_nested or key.is_nested or value.is_nested:
        return  # PyTorch itself compares jagged sizes
    if torch._C._get_tracing_state() is not None:
        return  # sizes are values of the graph there, and PyTorch checks them when it runs
    _check_shapes(query, key, value, enable_gqa)
    if attn_mask is not None:
        _check_mask(query, key, attn_mask, enable_gqa)


def _check_window(window: int | None) -> None:
    if window is None:
        return
    if isinstance(window, bool) or not isinstance(window, (int, torch.SymInt)):
        raise TypeError(f"window must be a whole number or None, got {type(window).__name__}")
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")


def check_float(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} has dtype {tensor.dtype}; valid are float16, bfloat16, float32 and float64")


def _check_shapes(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> None:
    wrong = _wrong_shapes(query.shape, key.shape, value.shape, enable_gqa)
    if wrong is not None:  # the message is built only now, because that takes as long as a small attention
        shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
        raise ValueError(f"{wrong}: {shapes}")


def _wrong_shapes(query: torch.Size, key: torch.Size, value: torch.Size, enable_gqa: bool) -> str | None:
    if query[-1] != key[-1]:
        return "query and key must have the same head width (last dimension)"
    if key[-2] != value[-2]:
        return "key and value must have the same number of tokens (dimension -2)"
    if enable_gqa:
        if min(len(query), len(key), len(value)) < 3:
            return "enable_gqa needs a head dimension (-3) in query, key and value"
        if key[-3] != value[-3] or key[-3] == 0 or query[-3] % key[-3]:
            return "enable_gqa needs key and value heads (dimension -3) that divide query's"
    skip = 3 if enable_gqa else 2
    if not all(_broadcast(query[:-skip], other[:-skip]) for other in (key, value)):
        return "batch and head dimensions must be equal or broadcastable"
    return None


def _check_mask(query: Tensor, key: Tensor, attn_mask: Tensor, enable_gqa: bool) -> None:
    if not isinstance(attn_mask, Tensor):
        raise TypeError(f"attn_mask must be a torch.Tensor or None, got {type(attn_mask).__name__}")
    if attn_mask.device != query.device:
        raise ValueError(f"attn_mask is on {attn_mask.device}, query on {query.device}; they must share one device")
    autocast = attn_mask.is_floating_point() and autocast_dtype(query.device.type) is not None
    if attn_mask.dtype not in (torch.bool, torch.float32, query.dtype) and not autocast:
        valid = " and ".join(str(dtype) for dtype in dict.fromkeys((torch.bool, torch.float32, query.dtype)))
        raise TypeError(f"attn_mask has dtype {attn_mask.dtype}; valid are {valid}")
    skip = 3 if enable_gqa else 2  # with grouped queries, the heads are those of query
    heads = (*torch.broadcast_shapes(query.shape[:-skip], key.shape[:-skip]), *query.shape[-skip:-2])
    target, sizes = (*heads, query.shape[-2], key.shape[-2]), attn_mask.shape
    # "==" and not "in": a size may be symbolic under torch.compile.
    fits = all(size == 1 or size == goal for size, goal in zip(reversed(sizes), reversed(target)))
    if not fits or not 2 <= len(sizes) <= len(target):
        raise ValueError(f"attn_mask of shape {tuple(sizes)} does not broadcast to (..., H, N, M) = {target}")


def _broadcast(a: torch.Size, b: torch.Size) -> bool:
    return all(x == y or x == 1 or y == 1 for x, y in zip(reversed(a), reversed(b)))


def four(tensor: Tensor) -> Tensor:
    """The tensor with four dimensions, those added in front being of size 1."""
    return tensor.view((1,) * (4 - tensor.dim()) + tensor.shape)
