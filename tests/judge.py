"""Judging an implementation: its error to float64 against that of plain PyTorch in the same dtype."""

import torch
import torch.nn.functional as F


def stock(q, k, v, mask=None, causal=False, scale=None, gqa=False):
    """PyTorch's attention, where a mask and the flag together mean both."""
    if mask is not None and causal:
        past = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
        mask, causal = (mask & past if mask.dtype == torch.bool else mask.masked_fill(~past, -torch.inf)), False
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=gqa)


def plain(q, k, v, mask=None, causal=False, scale=None, gqa=False, eps=1e-6):
    """What a user writes with three lines of stock PyTorch, in whatever dtype comes in."""
    o = stock(q, k, v, mask, causal, scale, gqa)
    norm = o.detach().float().norm(dim=-1, keepdim=True)
    return o / norm.where(norm > 0, 1.0).clamp_min(eps).to(o.dtype)


def assert_as_good_as_plain(ours, plains, oracle, factor, what):
    """``error(ours) ≤ factor · error(plain) + rounding``; the ratio is in the message."""
    error = (ours.double() - oracle).abs().max().item()
    reference = (plains.double() - oracle).abs().max().item()
    band = 2 * torch.finfo(ours.dtype).eps * max(oracle.abs().max().item(), 1.0)  # inputs are of order 1
    ratio = error / max(reference, 1e-300)
    assert error <= factor * reference + band, f"{what}: error {error:.2e}, plain {reference:.2e}, ratio {ratio:.2f}"
