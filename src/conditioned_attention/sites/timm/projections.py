"""W_Q, W_K and W_V of timm's attention classes.  Nothing of timm is imported here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from conditioned_attention.sites.projections import NORMED, ROLES, Projection, Projections
from conditioned_attention.sites.site import NoAttention
from conditioned_attention.sites.timm.heads import _REFUSED

_NORMS = ("q_norm", "k_norm", "v_norm", "norm_q", "norm_k", "norm_v")


def fused(
    module: Any, path: str = "qkv", roles: str = ROLES, *, heads: str = "num_heads", remark: str = ""
) -> Projections:
    """One weight [Q | K | V]."""
    return Projections((Projection(path, roles),), getattr(module, heads), remark or norm_remark(module))


def head_by_head(module: Any, path: str = "qkv") -> Projections:
    """One weight, in which the rows of each head lie together as (q, k, v)."""
    return Projections((Projection(path, groups=module.num_heads),), module.num_heads)


def as_built(module: Any) -> Projections:
    """``qkv`` by heads or as [Q | K | V], as the module was built."""
    return head_by_head(module) if module.head_first else fused(module)


def with_key_dim(module: Any, path: str = "qkv", remark: str = "") -> Projections:
    """One weight head by head, where values have a width of their own."""
    sizes = (module.key_dim, module.key_dim, module.val_dim)
    return Projections((Projection(path, sizes=sizes, groups=module.num_heads),), module.num_heads, remark)


def apart(module: Any, q: str = "q", k: str = "k", v: str = "v", *, remark: str = "") -> Projections:
    """Three weights."""
    weights = tuple(Projection(path, role) for role, path in zip(ROLES, (q, k, v)))
    return Projections(weights, module.num_heads, remark or norm_remark(module))


def fused_or_apart(module: Any, q: str = "q", k: str = "k", v: str = "v") -> Projections:
    """``qkv``, or three weights where the module was built so."""
    return fused(module) if module.qkv is not None else apart(module, q, k, v)


def queries_apart(module: Any) -> Projections:
    """``q``, and ``kv`` as [K | V]."""
    return Projections((Projection("q", "q"), Projection("kv", "kv")), module.num_heads, norm_remark(module))


def values_apart(module: Any) -> Projections:
    """``qk`` as [Q | K], and ``v``."""
    return Projections((Projection("qk", "qk"), Projection("v", "v")), module.num_heads)


def beside_mlp(module: Any) -> Projections:
    """``in_proj`` as [MLP | Q | K | V]."""
    weights = (Projection("in_proj", "-qkv", tuple(module.in_split)),)
    return Projections(weights, module.num_heads, norm_remark(module))


def bottleneck(module: Any) -> Projections:
    """``qkv`` as [Q | K | V], of which V has a width of its own."""
    sizes = (module.dim_out_qk, module.dim_out_qk, module.dim_out_v)
    return Projections((Projection("qkv", sizes=sizes),), module.num_heads)


def halo(module: Any) -> Projections:
    """``q``, and ``kv`` head by head."""
    sizes = (module.dim_head_qk, module.dim_head_v)
    return Projections((Projection("q", "q"), Projection("kv", "kv", sizes, module.num_heads)), module.num_heads)


def levit_downsample(module: Any) -> Projections:
    """``q``, and ``kv`` head by head, before batch norms."""
    keys_values = Projection("kv.linear", "kv", (module.key_dim, module.val_dim), module.num_heads)
    return Projections((Projection("q.ln.linear", "q"), keys_values), module.num_heads, NORMED)


def cascaded(module: Any) -> Projections:
    """A weight [Q | K | V] for each head, which gets what the head before it returns."""
    sizes = (module.key_dim, module.key_dim, module.val_dim)
    weights = tuple(Projection(f"qkvs.{i}.conv", sizes=sizes) for i in range(module.num_heads))
    return Projections(weights, 1, NORMED)


def one_head_of_some_channels(module: Any) -> Projections:
    """SHViT: ``qkv`` of the channels that take part."""
    sizes = (module.qk_dim, module.qk_dim, module.pdim)
    return Projections((Projection("qkv.c", sizes=sizes),), 1, NORMED)


def one_head_and_gate(module: Any) -> Projections:
    """iFormer: ``q``, ``k``, and ``v_gate`` as [V | gate], before batch norms."""
    weights = (Projection("q.c", "q"), Projection("k.c", "k"), Projection("v_gate.c", "v-"))
    return Projections(weights, 1, f"{NORMED}, that of the values before a sigmoid too")


def non_local(module: Any) -> Projections:
    """One head: theta, phi and g of the paper."""
    return Projections(tuple(Projection(path, role) for role, path in zip(ROLES, "tpg")), 1)


def latent_pool(module: Any) -> Projections | str:
    """Queries that come from a parameter, by ``q`` if there is one."""
    given = isinstance(module.q, nn.Identity)
    return "has queries that are a parameter, without W_Q" if given else queries_apart(module)


def global_queries(module: Any) -> Projections | str:
    """GCViT: its blocks with global attention get their queries from elsewhere."""
    return "gets its queries from another module, without W_Q" if module.use_global else fused(module)


def norm_remark(module: Any) -> str:
    """What to say of a module with norms behind its projections."""
    norms = (getattr(module, name, None) for name in _NORMS)
    return NORMED if any(norm is not None and not isinstance(norm, nn.Identity) for norm in norms) else ""


_LINEAR = "is linear attention: spectral conditioning is about softmax(q kᵀ) v"
_NO_VALUES = "has no W_V: its values are what it is given"

# what makes queries, keys and values, or why that is no place for W + λ I -> classes of timm
_TABLE: tuple[tuple[Callable[[Any], Projections | str] | str, tuple[str, ...]], ...] = (
    (
        fused,
        (
            "layers.attention.Attention",
            "layers.diff_attention.DiffAttention",  # its paper's W_Q and W_K of a head make two queries and two keys
            "models.beit.Attention",
            "models.cait.TalkingHeadAttn",
            "models.convit.MHSA",
            "models.davit.WindowAttention",
            "models.fastvit.Attention",
            "models.hieradet_sam2.MultiScaleAttention",
            "models.metaformer.Attention",
            "models.mvitv2.MultiScaleAttention",
            "models.nest.Attention",
            "models.swin_transformer.WindowAttention",
            "models.twins.LocallyGroupedAttn",
            "models.vision_transformer_relpos.RelPosAttention",
            "models.vision_transformer_sam.Attention",
            "models.visformer.Attention",
            "models.volo.Attention",
        ),
    ),
    (
        partial(fused, remark=NORMED),
        (
            "models.edgenext.CrossCovarianceAttn",
            "models.swin_transformer_v2.WindowAttention",
            "models.swin_transformer_v2_cr.WindowMultiHeadAttention",
            "models.xcit.XCA",
        ),
    ),
    (partial(fused, heads="heads"), ("models.hiera.MaskUnitAttention",)),
    (partial(fused, heads="groups"), ("models.davit.ChannelAttentionV2",)),
    # softmax(kᵀ v) qᵀ in its names
    (partial(fused, roles="vqk"), ("models.davit.ChannelAttention",)),
    (partial(head_by_head, path="pwise"), ("models.cpubone.ConvAttention", "models.lowformer.ConvAttention")),
    (as_built, ("layers.attention2d.Attention2d", "models.maxxvit.Attention2d", "models.maxxvit.AttentionCl")),
    (with_key_dim, ("models.efficientformer.Attention", "models.tiny_vit.Attention")),
    (partial(with_key_dim, path="qkv.linear", remark=NORMED), ("models.levit.Attention",)),
    (apart, ("models.cait.ClassAttn", "models.nextvit.EfficientAttention")),
    (partial(apart, q="wq", k="wk", v="wv"), ("models.crossvit.CrossAttention",)),
    (partial(apart, q="query.proj", k="key.proj", v="value.proj"), ("layers.attention2d.MultiQueryAttention2d",)),
    (partial(apart, q="q_proj.linear", k="k_proj.linear", v="v_proj.linear"), ("models.gemma4_vit.Gemma4Attention",)),
    (partial(apart, q="q.conv", k="k.conv", v="v.conv", remark=NORMED), ("models.efficientformer_v2.Attention2d",)),
    (
        partial(apart, q="q.proj.conv", k="k.conv", v="v.conv", remark=NORMED),
        ("models.efficientformer_v2.Attention2dDownsample",),
    ),
    (
        partial(fused_or_apart, q="q_proj", k="k_proj", v="v_proj"),
        ("layers.attention.AttentionRope", "models.eva.EvaAttention"),
    ),
    (fused_or_apart, ("layers.attention_pool2d.AttentionPool2d", "layers.attention_pool2d.RotAttentionPool2d")),
    (queries_apart, ("models.pvt_v2.Attention", "models.twins.GlobalSubSampleAttn", "models.volo.ClassAttention")),
    (latent_pool, ("layers.attention_pool.AttentionPoolLatent",)),
    (values_apart, ("models.convit.GPSA", "models.tnt.Attention")),
    (
        beside_mlp,
        ("models.vision_transformer.ParallelScalingBlock", "models.vision_transformer.DiffParallelScalingBlock"),
    ),
    (bottleneck, ("layers.bottleneck_attn.BottleneckAttn",)),
    (halo, ("layers.halo_attn.HaloAttn",)),
    (non_local, ("layers.non_local_attn.NonLocalAttn",)),
    (levit_downsample, ("models.levit.AttentionDownsample",)),
    (cascaded, ("models.efficientvit_msra.CascadedGroupAttention",)),
    (one_head_of_some_channels, ("models.shvit.SHSA",)),
    (one_head_and_gate, ("models.iformer.SHMA",)),
    (global_queries, ("models.gcvit.WindowAttentionGlobal",)),
    (
        _LINEAR,
        (
            "layers.lambda_layer.LambdaLayer",
            "models.coat.FactorAttnConvRelPosEnc",
            "models.efficientvit_mit.LiteMLA",
            "models.mobilevit.LinearSelfAttention",
            "models.swiftformer.EfficientAdditiveAttention",
        ),
    ),
    (_NO_VALUES, ("layers.other_pool.SimPool1d", "layers.other_pool.SimPool2d")),
    ("has no projections", ("layers.attention_pool.AttentionPoolPrr",)),
    ("makes its attention weights from queries alone, without W_K", ("models.volo.OutlookAttention",)),
    ("holds W_Q, W_K and W_V in shapes that are not (out, in)", ("layers.attention2d.MultiQueryAttentionV2",)),
    (
        "has one channel, which its layer norm makes constant, so that queries and keys do not reach its output",
        ("models.csatv2.SpatialTransformerBlock",),
    ),
    ("does not run in timm itself: its keys are not transposed", ("models.mvitv2.MultiScaleAttentionPoolFirst",)),
)

# class -> what makes its queries, keys and values, or why that is no place for W + λ I
FOUND: dict[str, Callable[[Any], Projections | str] | str] = {
    **{name: reason for name, reason in _REFUSED.items() if isinstance(reason, NoAttention)},
    **{f"timm.{name}": found for found, names in _TABLE for name in names},
}
