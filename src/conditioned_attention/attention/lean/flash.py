"""PyTorch's low-level flash operators, forward and backward, behind one signature; for tensors that `lean` has checked.

Shapes: B batch, H heads (G key heads under grouped queries), N queries, M keys, D head width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_aten = torch.ops.aten


class Call(NamedTuple):
    """How the operators are called: which ones, and their arguments other than tensors."""

    backend: str
    dropout_p: float
    is_causal: bool
    scale: float | None


# output (B, H, N, D), lse (B, H, at least N), and the random state of dropout, a seed and an offset
Forward = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def forward(call: Call, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Forward:
    """``softmax(q kᵀ · scale + mask) v`` and the log-sum-exp of the logits, in natural logarithms."""
    if call.backend == "cpu flash":
        output, lse = _aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, call.is_causal, attn_mask=mask, scale=call.scale
        )
        return output, lse, None, None
    if call.backend == "cuda flash":
        output, lse, _, _, _, _, seed, offset, _ = _aten._scaled_dot_product_flash_attention(
            query, key, value, call.dropout_p, call.is_causal, False, scale=call.scale
        )
        return output, lse, seed, offset
    output, lse, seed, offset = _aten._scaled_dot_product_efficient_attention(
        query, key, value, mask, True, call.dropout_p, call.is_causal, scale=call.scale
    )
    return output, lse, seed, offset


def backward(
    call: Call, upstream: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, forward: Forward
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from the gradient of the output, (B, H, N, D)."""
    output, lse, seed, offset = forward
    if call.backend == "cpu flash":
        dq, dk, dv = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            upstream, query, key, value, output, lse, 0.0, call.is_causal, attn_mask=mask, scale=call.scale
        )
    elif call.backend == "cuda flash":
        sizes = (query.shape[-2], key.shape[-2])
        dq, dk, dv = _aten._scaled_dot_product_flash_attention_backward(
            upstream, query, key, value, output, lse, None, None, *sizes,
            call.dropout_p, call.is_causal, seed, offset, scale=call.scale,
        )  # fmt: skip
    else:
        dq, dk, dv, _ = _aten._scaled_dot_product_efficient_attention_backward(
            upstream, query, key, value, mask, output, lse, seed, offset,
            call.dropout_p, [True, True, True, False], call.is_causal, scale=call.scale,
        )  # fmt: skip
    return dq, dk, dv
