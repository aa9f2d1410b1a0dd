"""W_Q, W_K and W_V of timm's attention classes.  Nothing of timm is imported here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from conditioned_attention.sites.projections import NORMED, Projections, made_by
from conditioned_attention.sites.site import NoAttention
from conditioned_attention.sites.timm.heads import _REFUSED, by_class

_NORMS = ("q_norm", "k_norm", "v_norm", "norm_q", "norm_k", "norm_v")


def these(places: Any, module: Any, *, heads: int | str = "num_heads", remark: str = "") -> Projections:
    """The weights of a module at ``places``, as in `made_by`; ``heads`` may be the name of an attribute."""
    number = heads if isinstance(heads, int) else getattr(module, heads)
    return made_by(module, places, number, remark or norm_remark(module))


def norm_remark(module: Any) -> str:
    """What to say about a module with norms after its projections; empty if it has none."""
    norms = (getattr(module, name, None) for name in _NORMS)
    return NORMED if any(norm is not None and not isinstance(norm, nn.Identity) for norm in norms) else ""


def as_built(module: Any) -> Projections:
    """``qkv`` by heads or as [Q | K | V], as the module was built."""
    return these({"qkv": "H*qkv" if module.head_first else "qkv"}, module)


def fused_or_apart(q: str, k: str, v: str, module: Any) -> Projections:
    """``qkv``, or three weights if the module was built with them."""
    return these({"qkv": "qkv"} if module.qkv is not None else {q: "q", k: "k", v: "v"}, module)


def biases_beside(module: Any) -> Projections:
    """``qkv`` without a bias, and three biases on the module; or three weights with a bias each, as it was built."""
    found = fused_or_apart("q_proj", "k_proj", "v_proj", module)
    if module.qkv is None:
        return found
    return replace(found, weights=tuple(replace(weight, bias="{}_bias") for weight in found.weights))


def beside_mlp(module: Any) -> Projections:
    """``in_proj`` as [MLP | Q | K | V]."""
    return these({"in_proj": ("-qkv", module.in_split)}, module)


def cascaded(module: Any) -> Projections:
    """A weight [Q | K | V] for each head, which gets what the head before it returns."""
    places = {f"qkvs.{i}.conv": ("qkv", "key_dim key_dim val_dim") for i in range(module.num_heads)}
    return these(places, module, heads=1, remark=NORMED)


def latent_pool(module: Any) -> Projections | str:
    """Attention whose queries come from a parameter, through ``q`` if it has one."""
    given = isinstance(module.q, nn.Identity)
    return "has queries that are a parameter, without W_Q" if given else these({"q": "q", "kv": "kv"}, module)


def global_queries(module: Any) -> Projections | str:
    """GCViT: its blocks with global attention get their queries from elsewhere."""
    return "gets its queries from another module, without W_Q" if module.use_global else these({"qkv": "qkv"}, module)


_normed = partial(these, remark=NORMED)
_KEY_DIM = ("H*qkv", "key_dim key_dim val_dim")
_GATED = f"{NORMED}, that of the values before a sigmoid too"

# what makes queries, keys and values, or why W + λ I has no place there -> classes
_TABLE: dict[Callable[[Any], Projections | str] | str, str] = {
    partial(these, {"qkv": "qkv"}): """
        layers.attention.Attention models.cait.TalkingHeadAttn models.convit.MHSA
        models.davit.WindowAttention models.fastvit.Attention models.hieradet_sam2.MultiScaleAttention
        models.metaformer.Attention models.mvitv2.MultiScaleAttention models.nest.Attention
        models.swin_transformer.WindowAttention models.twins.LocallyGroupedAttn
        models.vision_transformer_relpos.RelPosAttention models.vision_transformer_sam.Attention
        models.visformer.Attention models.volo.Attention
    """,
    # its paper's W_Q and W_K of a head make two queries and two keys
    partial(these, {"qkv": "qkv"}): "layers.diff_attention.DiffAttention",
    partial(_normed, {"qkv": "qkv"}): """
        models.edgenext.CrossCovarianceAttn models.swin_transformer_v2.WindowAttention
        models.swin_transformer_v2_cr.WindowMultiHeadAttention models.xcit.XCA
    """,
    partial(these, {"qkv": "qkv"}, heads="heads"): "models.hiera.MaskUnitAttention",
    partial(these, {"qkv": "qkv"}, heads="groups"): "models.davit.ChannelAttentionV2",
    partial(these, {"qkv": "vqk"}): "models.davit.ChannelAttention",  # softmax(kᵀ v) qᵀ in its names
    partial(these, {"pwise": "H*qkv"}): "models.cpubone.ConvAttention models.lowformer.ConvAttention",
    as_built: "layers.attention2d.Attention2d models.maxxvit.Attention2d models.maxxvit.AttentionCl",
    partial(these, {"qkv": _KEY_DIM}): "models.efficientformer.Attention models.tiny_vit.Attention",
    partial(_normed, {"qkv.linear": _KEY_DIM}): "models.levit.Attention",
    partial(these, {"q": "q", "k": "k", "v": "v"}): "models.cait.ClassAttn models.nextvit.EfficientAttention",
    partial(these, {"wq": "q", "wk": "k", "wv": "v"}): "models.crossvit.CrossAttention",
    partial(these, {"query.proj": "q", "key.proj": "k", "value.proj": "v"}): "layers.attention2d.MultiQueryAttention2d",
    partial(these, {"q_proj.linear": "q", "k_proj.linear": "k", "v_proj.linear": "v"}): """
        models.gemma4_vit.Gemma4Attention
    """,
    partial(_normed, {"q.conv": "q", "k.conv": "k", "v.conv": "v"}): "models.efficientformer_v2.Attention2d",
    partial(_normed, {"q.proj.conv": "q", "k.conv": "k", "v.conv": "v"}): """
        models.efficientformer_v2.Attention2dDownsample
    """,
    partial(fused_or_apart, "q_proj", "k_proj", "v_proj"): "layers.attention.AttentionRope",
    biases_beside: "models.beit.Attention models.eva.EvaAttention",
    partial(fused_or_apart, "q", "k", "v"): """
        layers.attention_pool2d.AttentionPool2d layers.attention_pool2d.RotAttentionPool2d
    """,
    partial(these, {"q": "q", "kv": "kv"}): """
        models.pvt_v2.Attention models.twins.GlobalSubSampleAttn models.volo.ClassAttention
    """,
    latent_pool: "layers.attention_pool.AttentionPoolLatent",
    partial(these, {"qk": "qk", "v": "v"}): "models.convit.GPSA models.tnt.Attention",
    beside_mlp: "models.vision_transformer.ParallelScalingBlock models.vision_transformer.DiffParallelScalingBlock",
    partial(these, {"qkv": ("qkv", "dim_out_qk dim_out_qk dim_out_v")}): "layers.bottleneck_attn.BottleneckAttn",
    partial(these, {"q": "q", "kv": ("H*kv", "dim_head_qk dim_head_v")}): "layers.halo_attn.HaloAttn",
    partial(these, {"t": "q", "p": "k", "g": "v"}, heads=1): "layers.non_local_attn.NonLocalAttn",
    partial(
        _normed, {"q.ln.linear": "q", "kv.linear": ("H*kv", "key_dim val_dim")}
    ): "models.levit.AttentionDownsample",
    cascaded: "models.efficientvit_msra.CascadedGroupAttention",
    # of the channels that take part
    partial(_normed, {"qkv.c": ("qkv", "qk_dim qk_dim pdim")}, heads=1): "models.shvit.SHSA",
    partial(these, {"q.c": "q", "k.c": "k", "v_gate.c": "v-"}, heads=1, remark=_GATED): "models.iformer.SHMA",
    global_queries: "models.gcvit.WindowAttentionGlobal",
    "is linear attention: spectral conditioning is about softmax(q kᵀ) v": """
        layers.lambda_layer.LambdaLayer models.coat.FactorAttnConvRelPosEnc models.efficientvit_mit.LiteMLA
        models.mobilevit.LinearSelfAttention models.swiftformer.EfficientAdditiveAttention
    """,
    "has no W_V: its values are what it is given": "layers.other_pool.SimPool1d layers.other_pool.SimPool2d",
    "has no projections": "layers.attention_pool.AttentionPoolPrr",
    "makes its attention weights from queries alone, without W_K": "models.volo.OutlookAttention",
    "holds W_Q, W_K and W_V in shapes that are not (out, in)": "layers.attention2d.MultiQueryAttentionV2",
    "has one channel, which its layer norm makes constant, so that queries and keys do not reach its output": """
        models.csatv2.SpatialTransformerBlock
    """,
    "does not run in timm itself: its keys are not transposed": "models.mvitv2.MultiScaleAttentionPoolFirst",
}

# class -> what makes its queries, keys and values, or why W + λ I has no place there
FOUND: dict[str, Callable[[Any], Projections | str] | str] = {
    **{name: reason for name, reason in _REFUSED.items() if isinstance(reason, NoAttention)},
    **by_class(_TABLE),
}
