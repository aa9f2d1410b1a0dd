"""Attention written out, with all that the kernels take: in float64 an oracle, in other dtypes what a user has."""

import math

import torch


def attention(q, k, v, mask=None, causal=False, scale=None, window=None, kept=None, rows="output", gradient="stopped"):
    """``kept``: what dropout multiplies the weights (B, H, N, M) by.  Fewer key heads are repeated."""
    k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
    logits = q @ k.mT * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    distance = torch.arange(q.shape[-2], device=q.device)[:, None] - torch.arange(k.shape[-2], device=q.device)
    seen = torch.ones_like(distance, dtype=torch.bool)
    if causal:
        seen &= distance >= 0
    if window is not None:
        seen &= distance.abs() < window
    if mask is not None and mask.dtype == torch.bool:
        seen = seen & mask
    elif mask is not None:
        logits = logits + mask.to(logits.dtype)
    logits = logits.masked_fill(~seen, -math.inf)
    nothing = (logits == -math.inf).all(-1, keepdim=True)
    weights = logits.masked_fill(nothing, 0.0).softmax(-1).masked_fill(nothing, 0.0)
    if kept is not None:
        weights = weights * kept.to(weights.dtype)
    output = weights @ v
    taken = output if rows == "output" else weights
    if gradient == "stopped":
        taken = taken.detach()
    # A derivative of the norm of a row of zeros would be no number.
    zero = (taken == 0).all(-1, keepdim=True)
    norm = taken.masked_fill(zero, 1.0).to(torch.promote_types(taken.dtype, torch.float32)).norm(dim=-1, keepdim=True)
    return output / norm.masked_fill(zero, 1.0).clamp_min(1e-6).to(output.dtype)
