"""`MultiheadAttention`: PyTorch's module of that name with C applied to every head.

It repeats `torch.nn.functional.multi_head_attention_forward` step by step, in the same order, so that C = 1 gives the
same bits.  The steps have to be repeated here because that function returns only after the output projection.

Shapes: B batch, H heads, L queries, S keys, D head width, E = H · D embedding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conditioned_attention._warnings import warn
from conditioned_attention.functional import attend, behind
from conditioned_attention.preconditioner import TRANSFORM, HeadTransform, RowNorm, check_rows

# Hooks that are registered count up from 0, in every process anew: this place among them stays free after unpickling.
_GUARD = -1


class MultiheadAttention(nn.MultiheadAttention):
    """``torch.nn.MultiheadAttention`` with every row of every head scaled to unit length before the output projection.

    This is equation (12) and Theorem 4.4 of arXiv 2603.27153.  The arguments of the constructor and of ``forward``, the
    parameters, state_dict keys, outputs and errors are those of PyTorch's stock module; only the options of C are
    added.  The attention weights that it returns are the softmax, without C.  For a query that may attend to nothing,
    heads and weights are zero, where the stock module gives NaN.

    Args:
        embed_dim: width E of the module, a multiple of ``num_heads``.
        num_heads: number of heads H.
        dropout: probability that an attention weight is dropped in training; C is computed after dropout.
        bias: whether the projections have biases.
        add_bias_kv: append one learned key and value.
        add_zero_attn: append one key and value of zeros.
        kdim, vdim: widths of key and value; default ``embed_dim``.
        batch_first: whether tensors are (B, tokens, width) instead of (tokens, B, width).
        device, dtype: device and dtype of the parameters.
        rows, gradient, eps: as in `preconditioned_attention`.

    Raises:
        ValueError: an unknown option, ``eps`` out of range, or sizes that are not positive.
        TypeError: ``eps`` is not a number.
        AssertionError: ``embed_dim`` is not a multiple of ``num_heads``.

    Inside ``nn.TransformerEncoderLayer`` it is used like the stock module (``layer.self_attn = ...``).  That layer has
    a fast path that would read the weights and skip C; a hook that does nothing keeps the layer off that path.

    >>> import torch
    >>> from conditioned_attention import MultiheadAttention
    >>> attention = MultiheadAttention(32, 4, batch_first=True)
    >>> x = torch.randn(2, 10, 32)
    >>> y, weights = attention(x, x, x)
    >>> y.shape, weights.shape
    (torch.Size([2, 10, 32]), torch.Size([2, 10, 10]))
    >>> _ = attention.load_state_dict(torch.nn.MultiheadAttention(32, 4).state_dict())
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        rows: str = "output",
        gradient: str = "stopped",
        eps: float = 1e-6,
    ) -> None:
        transform = RowNorm(rows, gradient, eps)
        super().__init__(
            embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype
        )
        self.__dict__[TRANSFORM] = transform
        guard(self)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Computes the attention output and weights, as ``torch.nn.MultiheadAttention`` returns them.

        Args:
            query: (L, B, E), (B, L, E) with ``batch_first``, or (L, E).
            key: (S, B, kdim), (B, S, kdim) or (S, kdim).
            value: (S, B, vdim), (B, S, vdim) or (S, vdim).
            key_padding_mask: (B, S) or (S): boolean, True where a key is **ignored**; or numbers added to the logits.
            need_weights: also return the weights; False is faster.
            attn_mask: (L, S) or (B · H, L, S): boolean, True where a query may **not** attend; or numbers added to the
                logits.
            average_attn_weights: return the mean of the weights over the heads instead of the weights of each head.
            is_causal: a hint that ``attn_mask`` is the causal mask, which must be given as well.

        Returns:
            The output, shaped like ``query``; and the weights, or None if they are not needed: (B, L, S), or
            (B, H, L, S) for each head, without B if ``query`` has none.

        One nested tensor (strided layout) may be given as query, key and value, with ``batch_first``, without masks and
        without weights; the result is then a nested tensor.

        Raises:
            AssertionError: dimensions, sizes or mask types that do not match.
            RuntimeError: an ``attn_mask`` of the wrong size; ``is_causal`` without ``attn_mask``.
        """
        if query.is_nested or key.is_nested or value.is_nested:
            bare = key_padding_mask is None and attn_mask is None and not need_weights and self.batch_first
            _check_nested(query, key, value, bare)
            padded, padding = _pad(query)
            # Without a mask the hint means nothing there, as in the stock module.
            output, _ = MultiheadAttention.forward(self, padded, padded, padded, padding, False)
            return _unpad(output, query), None
        _check_dimensions(self, query, key, value, key_padding_mask, attn_mask)
        masked = key_padding_mask is not None or attn_mask is not None
        check_rows(self.__dict__[TRANSFORM], causal=is_causal, masked=masked)
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal=True is a hint about attn_mask, and attn_mask is None: pass the causal mask")
        if is_causal and key_padding_mask is None and not need_weights:
            attn_mask = None  # the hint is believed, as in the stock module
        else:
            is_causal = False
        batched = query.dim() == 3
        if not batched:
            query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
        elif self.batch_first:
            query, key, value = _tokens_first(query, key, value)
        _check_sizes(self, query, key, value)
        mask = _merge(self, query, key, key_padding_mask, attn_mask)
        heads, weights = self._heads(query, key, value, mask, is_causal, need_weights)
        # Two dimensions, as in the stock module: of more, the bias sums its gradient in another order.
        output = self.out_proj(heads.permute(2, 0, 1, 3).reshape(-1, self.embed_dim)).view(query.shape)
        if weights is not None:
            weights = weights.mean(dim=1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        if not batched:
            return output.squeeze(1), weights
        return output.transpose(0, 1) if self.batch_first else output, weights

    def _heads(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Transformed heads (B, H, L, D), with the weights (B, H, L, S) if they are needed."""
        transform: HeadTransform = self.__dict__[TRANSFORM]
        q, k, v = _split(self, *_project(self, query, key, value))
        dropout_p = self.dropout if self.training else 0.0
        if need_weights:
            return _attend_with_weights(transform, q, k, v, mask, dropout_p, self.num_heads)
        q, k, v = (t.view(query.shape[1], self.num_heads, *t.shape[1:]) for t in (q, k, v))
        return attend(transform, q, k, v, mask, dropout_p, is_causal), None

    def merge_masks(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, query: Tensor
    ) -> tuple[Tensor | None, int | None]:
        """Merges masks as the stock module does, for its fast paths; raises if the hook against those was removed."""
        if _GUARD not in self._forward_pre_hooks:
            raise RuntimeError(
                "the hook that keeps the fast path of nn.TransformerEncoderLayer from skipping C was removed from "
                f"this {type(self).__name__}; call conditioned_attention.modules.guard on it"
            )
        merged: tuple[Tensor | None, int | None] = super().merge_masks(attn_mask, key_padding_mask, query)
        return merged

    def extra_repr(self) -> str:
        return repr(self.__dict__[TRANSFORM])


def guard(module: nn.MultiheadAttention) -> None:
    """Keeps ``nn.TransformerEncoderLayer`` off the fast path that never calls its attention module.

    That layer reads its attention's weights itself in evaluation, unless some module in it has a hook.
    """
    module._forward_pre_hooks[_GUARD] = _no_fast_path


def unguard(module: nn.MultiheadAttention) -> None:
    """Undoes `guard`."""
    module._forward_pre_hooks.pop(_GUARD, None)


def _no_fast_path(module: nn.Module, args: Any) -> None:
    """Does nothing: that it is there is enough."""


def _check_nested(query: Tensor, key: Tensor, value: Tensor, bare: bool) -> None:
    """Raises AssertionError, as the stock module does, but where its fast path takes nested tensors."""
    if not (bare and query is key and key is value and query.layout == torch.strided):
        raise AssertionError(
            "nested tensors are taken as one tensor of strided layout for query, key and value, "
            "with batch_first=True, need_weights=False and without masks"
        )


def _pad(nested: Tensor) -> tuple[Tensor, Tensor]:
    """(B, L, E) with zeros behind the shorter sequences, and (B, L), True there."""
    padded = nested.to_padded_tensor(0.0)
    lengths = torch.tensor([len(sequence) for sequence in nested.unbind()], device=padded.device)
    return padded, torch.arange(padded.shape[1], device=padded.device) >= lengths[:, None]


def _unpad(padded: Tensor, like: Tensor) -> Tensor:
    """(B, L, E) -> nested, with the lengths of the nested ``like``."""
    rows = [row[: len(sequence)] for row, sequence in zip(padded, like.unbind())]
    return torch.nested.as_nested_tensor(rows)


def _check_dimensions(
    module: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
) -> None:
    """Raises AssertionError, as the stock module does, for numbers of dimensions and types of masks."""
    F._mha_shape_check(query, key, value, key_padding_mask, attn_mask, module.num_heads)  # type: ignore[attr-defined]
    for name, mask in (("key_padding_mask", key_padding_mask), ("attn_mask", attn_mask)):
        if mask is not None and mask.dtype != torch.bool and not mask.is_floating_point():
            raise AssertionError(f"{name} must be boolean or floating point, got {mask.dtype}")
    if attn_mask is not None and key_padding_mask is not None and key_padding_mask.dtype != attn_mask.dtype:
        warn(
            f"key_padding_mask has type {key_padding_mask.dtype} and attn_mask {attn_mask.dtype}; "
            "that they differ is deprecated in PyTorch: use one type for both",
        )


def _check_sizes(module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raises AssertionError, as the stock module does, for (tokens, B, width) that do not fit."""
    if query.shape[-1] != module.embed_dim:
        raise AssertionError(f"query must be {module.embed_dim} wide (embed_dim), got {query.shape[-1]}")
    shapes = f"key {tuple(key.shape)}, value {tuple(value.shape)}"
    if module._qkv_same_embed_dim:
        if key.shape != value.shape:
            raise AssertionError(f"key and value must have the same shape (tokens, B, width): {shapes}")
        return
    if key.shape[:2] != value.shape[:2]:
        raise AssertionError(f"key and value must have the same tokens and batch (tokens, B, width): {shapes}")
    if key.shape[-1] != module.kdim or value.shape[-1] != module.vdim:
        raise AssertionError(f"key must be {module.kdim} wide (kdim) and value {module.vdim} (vdim): {shapes}")


def _tokens_first(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, tokens, width) -> (tokens, B, width); tensors that were one stay one, which `_project` makes use of."""
    turned = query.transpose(0, 1)
    turned_key = turned if key is query else key.transpose(0, 1)
    return turned, turned_key, turned_key if value is key else value.transpose(0, 1)


def _merge(
    module: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
) -> Tensor | None:
    """Both masks as numbers to add to the logits, broadcastable to (B, H, L, S); keys that are appended are seen."""
    (n_queries, batch, _), (n_keys, _, _) = query.shape, key.shape
    added = int(module.bias_k is not None) + int(module.add_zero_attn)
    merged = None
    if attn_mask is not None:
        heads = batch * module.num_heads
        expected = (n_queries, n_keys) if attn_mask.dim() == 2 else (heads, n_queries, n_keys)
        if attn_mask.shape != expected:
            raise RuntimeError(f"attn_mask must have shape {expected}, got {tuple(attn_mask.shape)}")
        merged = _numbers(attn_mask, query.dtype)
        merged = merged.view(*((1, 1) if attn_mask.dim() == 2 else (batch, module.num_heads)), n_queries, n_keys)
    if key_padding_mask is not None:
        padding = key_padding_mask if key_padding_mask.dim() == 2 else key_padding_mask.unsqueeze(0)
        if padding.shape != (batch, n_keys):
            raise AssertionError(f"key_padding_mask must have shape {(batch, n_keys)}, got {tuple(padding.shape)}")
        numbers = _numbers(padding, query.dtype).view(batch, 1, 1, n_keys)
        merged = numbers if merged is None else merged + numbers
    types = (query.dtype, torch.float32)
    if merged is not None and merged.dtype not in types and not torch.is_autocast_enabled(query.device.type):
        raise RuntimeError(f"masks of numbers must have query's type {query.dtype} or float32, got {merged.dtype}")
    return F.pad(merged, (0, added)) if merged is not None and added else merged


def _numbers(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask of this module, True = ignore, as -inf and 0."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)
    return mask


def _project(module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens, B, width) -> (tokens, B, E) each; as few matrix products as the stock module takes."""
    weight, bias, width = module.in_proj_weight, module.in_proj_bias, module.embed_dim
    if module._qkv_same_embed_dim and key is value:
        if query is key:
            q, k, v = _stacked(query, weight, bias)
            return q, k, v
        of_query, of_others = weight.split([width, 2 * width])
        bias_of_query, bias_of_others = (None, None) if bias is None else bias.split([width, 2 * width])
        k, v = _stacked(key, of_others, bias_of_others)
        return F.linear(query, of_query, bias_of_query), k, v
    if module._qkv_same_embed_dim:
        weights = weight.chunk(3)
    else:
        weights = module.q_proj_weight, module.k_proj_weight, module.v_proj_weight
    biases = (None, None, None) if bias is None else bias.chunk(3)
    q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases))
    return q, k, v


def _stacked(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Several projections of one tensor in one matrix product, (tokens, B, E) each."""
    width = x.shape[-1]
    stacked: Tensor = F.linear(x, weight, bias).unflatten(-1, (-1, width)).movedim(-2, 0).contiguous()
    return stacked


def _split(module: nn.MultiheadAttention, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens, B, E) -> (B · H, tokens, D), with the module's own keys and values behind.

    By the stock module's steps: others lay gradients out otherwise, and their sums differ in the last bit.
    """
    batch, heads, width = q.shape[1], module.num_heads, module.head_dim
    if module.bias_k is not None and module.bias_v is not None:
        k = torch.cat([k, module.bias_k.repeat(1, batch, 1)])
        v = torch.cat([v, module.bias_v.repeat(1, batch, 1)])
    q, k, v = (t.view(t.shape[0], batch * heads, width).transpose(0, 1) for t in (q, k, v))
    if module.add_zero_attn:
        k, v = (torch.cat([t, t.new_zeros(batch * heads, 1, width)], dim=1) for t in (k, v))
    return q, k, v


def _attend_with_weights(
    transform: HeadTransform, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_p: float, heads: int
) -> tuple[Tensor, Tensor]:
    """Transformed heads (B, H, L, D) and the weights (B, H, L, S) behind them, in stock's order of operations."""
    batch = q.shape[0] // heads
    if transform.changes_queries:
        q, k = (t.flatten(0, 1) for t in transform.queries(q.unflatten(0, (batch, -1)), k.unflatten(0, (batch, -1))))
    scaled = q * math.sqrt(1.0 / float(q.shape[-1]))
    if mask is None:
        weights = torch.softmax(torch.bmm(scaled, k.transpose(-2, -1)), dim=-1)
    else:
        # A query that may attend to nothing is neutralised before the softmax: after it, backward would be NaN.
        mask = mask.flatten(0, 1) if mask.shape[:2] == (1, 1) else mask.expand(batch, heads, -1, -1).flatten(0, 1)
        nothing = (mask == -math.inf).all(-1, keepdim=True)
        logits = torch.baddbmm(mask.masked_fill(nothing, 0.0), scaled, k.transpose(-2, -1))
        weights = torch.softmax(logits, dim=-1).masked_fill(nothing, 0.0)
    if dropout_p > 0.0:
        weights = F.dropout(weights, dropout_p)
    output, weights = (t.view(batch, heads, *t.shape[1:]) for t in (torch.bmm(weights, v), weights))
    return behind(transform, output, weights), weights
