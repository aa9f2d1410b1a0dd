"""W_Q, W_K and W_V of timm's attention classes.  Nothing of timm is imported here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from conditioned_attention.sites.projections import Projection, Projections


def fused(module: Any) -> Projections:
    """``qkv`` as [Q | K | V]."""
    return Projections((Projection("qkv"),), module.num_heads)


def fused_or_apart(module: Any) -> Projections:
    """``qkv``, or ``q_proj``, ``k_proj`` and ``v_proj`` where there are fewer key heads."""
    if module.qkv is not None:
        return fused(module)
    return Projections(tuple(Projection(f"{role}_proj", role) for role in "qkv"), module.num_heads)


# class -> what makes its queries, keys and values, or why that is no place for W + λ I
FOUND: dict[str, Callable[[Any], Projections] | str] = {
    "timm.layers.attention.Attention": fused,
    "timm.layers.attention.AttentionRope": fused_or_apart,
    "timm.models.beit.Attention": fused,
    "timm.models.eva.EvaAttention": fused_or_apart,
    "timm.models.swin_transformer.WindowAttention": fused,
}
