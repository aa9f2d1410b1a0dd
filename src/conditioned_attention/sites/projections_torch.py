"""W_Q, W_K and W_V of ``torch.nn.MultiheadAttention`` and of torchvision's attention classes."""

from __future__ import annotations

from torch import nn

from conditioned_attention.sites.projections import Projection, Projections


def multihead_attention(module: nn.MultiheadAttention) -> Projections:
    """One packed weight, or three where keys or values have widths of their own."""
    if module._qkv_same_embed_dim:
        return Projections((Projection("", parameter="in_proj_weight"),), module.num_heads)
    apart = tuple(Projection("", role, parameter=f"{role}_proj_weight") for role in "qkv")
    return Projections(apart, module.num_heads)


# class -> what makes its queries, keys and values
FOUND = {
    "torch.nn.modules.activation.MultiheadAttention": multihead_attention,
    "conditioned_attention.modules.MultiheadAttention": multihead_attention,
}
