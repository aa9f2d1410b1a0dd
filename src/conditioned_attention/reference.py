"""The equations of arXiv 2603.27153 in plain torch, one function each: the reference for every implementation.

Nothing here is fast, and everything works in float64 if it is given float64.  It is kept apart from the rest on
purpose: a reference that shared code with what it checks would share its mistakes.

Shapes: B batch, H heads, N queries, M keys, D head width, E value width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attention_weights(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """``softmax(q kᵀ · scale)`` of equation (3), (..., N, M); a row that may attend to nothing is zero."""
    logits = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if attn_mask is not None:
        logits = logits.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
    if is_causal:
        future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
        logits = logits.masked_fill(future, -math.inf)
    nothing = (logits == -math.inf).all(-1, keepdim=True)
    return torch.softmax(logits.masked_fill(nothing, 0.0), dim=-1).masked_fill(nothing, 0.0)


def attention(weights: Tensor, value: Tensor) -> Tensor:
    """``A = softmax(q kᵀ) v`` of equation (3), (..., N, E)."""
    return weights @ value


def preconditioner(rows: Tensor, eps: float = 1e-6) -> Tensor:
    """The diagonal of C of Theorem 4.4 and equation (17), (..., N): ``1 / ‖row‖₂``; 1 for a zero row."""
    norm = (rows * rows).sum(-1).sqrt()
    return torch.where(norm == 0, torch.ones_like(norm), 1 / torch.clamp(norm, min=eps))


def preconditioned_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    rows: str = "output",
    eps: float = 1e-6,
) -> Tensor:
    """``C · softmax(q kᵀ) v`` of equation (12), with C a constant in backward (the end of section 4.2)."""
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    weights = attention_weights(query, key, attn_mask, is_causal, scale)
    output = attention(weights, value)
    scale_n = preconditioner(output if rows == "output" else weights, eps).detach()
    return scale_n.unsqueeze(-1) * output


def condition_number(matrix: Tensor) -> Tensor:
    """``κ(A) = σ₁ / σ_k`` of Definition 4.1, for full rank."""
    singular_values: Tensor = torch.linalg.svdvals(matrix)
    return singular_values[..., 0] / singular_values[..., -1]


def complexity(matrix: Tensor) -> Tensor:
    """``μ(A) = 2 / (σ₁ … σ_k) · (‖A‖_F / √k)^k`` of equation (10), for full rank; overflows for large k."""
    singular_values: Tensor = torch.linalg.svdvals(matrix)
    k = singular_values.shape[-1]
    frobenius: Tensor = torch.linalg.matrix_norm(matrix)
    return 2 / singular_values.prod(-1) * (frobenius / math.sqrt(k)) ** k
