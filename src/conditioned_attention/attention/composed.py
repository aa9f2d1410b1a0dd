"""PyTorch's own attention, then the head transform: works wherever ``scaled_dot_product_attention`` does.

Shapes: B batch, H heads (G key heads under grouped queries), N queries, M keys, D head width, E value width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from conditioned_attention.attention.arguments import Arguments
from conditioned_attention.attention.autocast import autocast_dtype, without_autocast
from conditioned_attention.preconditioner import HeadTransform


def attend(transform: HeadTransform, arguments: Arguments) -> Tensor:
    """``transform(softmax(q kᵀ · scale) v)``, (B, H, N, E), for arguments that `functional` has checked.

    Memory: one more tensor of the output's size than plain attention.  A transform that reads the weights makes
    them explicit, B · H · N · M numbers in float32; so does an additive mask under a functorch transform.
    """
    query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, _ = arguments
    # Under vmap PyTorch does not see that an additive mask needs a gradient, and picks a kernel that computes none.
    additive = attn_mask is not None and attn_mask.is_floating_point()
    if transform.needs_weights or (additive and torch._C._are_functorch_transforms_active()):
        return _attend_by_weights(transform, arguments)
    output = F.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    return transform(output)


def _attend_by_weights(transform: HeadTransform, arguments: Arguments) -> Tensor:
    """The same with softmax(q kᵀ) as a tensor; half precision is computed in float32 and rounded once at the end."""
    query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, _ = arguments
    device = query.device.type
    exact = query.dtype == torch.float64  # which autocast leaves as it is
    dtype = query.dtype if exact else autocast_dtype(device) or query.dtype
    with without_autocast(device):
        query, key, value = (t if t.dtype == torch.float64 else t.float() for t in (query, key, value))
        if enable_gqa:
            repeats = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
        logits = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
        if is_causal:
            past = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
            logits = logits.masked_fill(~past, -math.inf)
        elif attn_mask is not None and attn_mask.dtype == torch.bool:
            logits = logits.masked_fill(~attn_mask, -math.inf)
        elif attn_mask is not None:
            logits = logits + attn_mask
        # A query that may attend to nothing is neutralised before the softmax: after it, backward would be NaN.
        nothing = (logits == -math.inf).all(-1, keepdim=True)
        weights = torch.softmax(logits.masked_fill(nothing, 0.0), dim=-1).masked_fill(nothing, 0.0)
        if dropout_p > 0:
            weights = F.dropout(weights, dropout_p)
        return transform(weights @ value, weights).to(dtype)
