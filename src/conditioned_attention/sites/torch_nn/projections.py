"""W_Q, W_K and W_V of ``torch.nn.MultiheadAttention``, and of the attention classes of torchvision and this project.

Nothing of torchvision and `experiments` is imported here.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from conditioned_attention.sites.projections import NORMED, Projection, Projections, made_by


def multihead_attention(module: nn.MultiheadAttention) -> Projections:
    """One packed weight, or three where keys or values have widths of their own."""
    if module._qkv_same_embed_dim:
        return Projections((Projection("", parameter="in_proj_weight"),), module.num_heads)
    apart = tuple(Projection("", role, parameter=f"{role}_proj_weight", bias="in_proj_bias") for role in "qkv")
    return Projections(apart, module.num_heads)


def fused(module: Any, path: str = "qkv", heads: str = "num_heads", remark: str = "") -> Projections:
    """One weight [Q | K | V]."""
    return made_by(module, {path: "qkv"}, getattr(module, heads), remark)


def apart(module: Any) -> Projections:
    """Three weights."""
    return made_by(module, {"q_proj": "q", "k_proj": "k", "v_proj": "v"}, module.num_heads)


def mvit(module: Any) -> Projections:
    """``qkv`` as [Q | K | V], where queries or keys and values may be pooled, which ends in a norm."""
    pooled = module.pool_q is not None or module.pool_k is not None
    return fused(module, remark=NORMED if pooled else "")


# class -> what makes its queries, keys and values
FOUND = {
    "torch.nn.modules.activation.MultiheadAttention": multihead_attention,
    "conditioned_attention.modules.MultiheadAttention": multihead_attention,
    "conditioned_attention.experiments.models.crammed_bert_network.CrammedBertAttention": apart,
    "conditioned_attention.experiments.models.lra_attention.NystromAttention": apart,
    "conditioned_attention.experiments.models.lra_attention.SoftmaxAttention": apart,
    "torchvision.models.maxvit.RelativePositionalMultiHeadAttention": partial(fused, path="to_qkv", heads="n_heads"),
    "torchvision.models.swin_transformer.ShiftedWindowAttention": fused,
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2": partial(fused, remark=NORMED),  # cosines
    "torchvision.models.video.mvit.MultiscaleAttention": mvit,
    "torchvision.models.video.swin_transformer.ShiftedWindowAttention3d": fused,
}
