"""timm's attention classes: which module gets the heads, how they lie there, and which cannot be reached.

Nothing of timm is imported here; the conditioned subclasses are in files of their own beside this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from conditioned_attention.sites.hook import Hook, Layout
from conditioned_attention.sites.site import Mechanism, NoAttention, class_name, plain_class
from conditioned_attention.sites.swap import derived_reason, swap_in


def by_class(table: Mapping[Any, str]) -> dict[str, Any]:
    """What a table has for each class of timm."""
    return {f"timm.{name}": what for what, names in table.items() for name in names.split()}


# the file that holds their conditioned subclasses -> classes
_SWAPS = {
    "timm.forwards": """
        layers.attention.Attention layers.attention.AttentionRope models.beit.Attention models.eva.EvaAttention
        models.hiera.MaskUnitAttention models.swin_transformer.WindowAttention
        models.vision_transformer.ParallelScalingBlock
    """,
    "timm.hybrids": """
        layers.attention2d.MultiQueryAttentionV2 models.efficientformer_v2.Attention2d
        models.efficientformer_v2.Attention2dDownsample models.efficientvit_msra.CascadedGroupAttention
        models.mvitv2.MultiScaleAttention models.shvit.SHSA models.volo.OutlookAttention
    """,
    "timm.iformer": "models.iformer.SHMA",
}
_SWAPPED: dict[str, str] = by_class(_SWAPS)

_TOKENS = Layout("B N H*D")
_IMAGE = Layout("B H*D N")
_CHANNELS = Layout("B N H*D", along="N")  # attention between channels: a row is one channel over all tokens

_POOL = "it pools tokens into the features of the head, and is converted only if include names it"

# the module that gets the heads -> classes
_SITES: dict[Hook, str] = {
    Hook("proj"): """
        models.cait.ClassAttn models.cait.TalkingHeadAttn models.convit.GPSA models.convit.MHSA
        models.crossvit.CrossAttention models.davit.WindowAttention models.efficientformer.Attention
        models.fastvit.Attention models.gcvit.WindowAttentionGlobal models.hieradet_sam2.MultiScaleAttention
        models.maxxvit.AttentionCl models.metaformer.Attention models.nextvit.EfficientAttention models.pvt_v2.Attention
        models.swin_transformer_v2.WindowAttention models.swin_transformer_v2_cr.WindowMultiHeadAttention
        models.tiny_vit.Attention models.tnt.Attention models.twins.GlobalSubSampleAttn models.twins.LocallyGroupedAttn
        models.vision_transformer_relpos.RelPosAttention models.vision_transformer_sam.Attention models.volo.Attention
        models.volo.ClassAttention
    """,
    Hook("proj", layout=_IMAGE): "layers.attention2d.Attention2d models.maxxvit.Attention2d models.visformer.Attention",
    Hook("proj", layout=_CHANNELS): "models.davit.ChannelAttention models.edgenext.CrossCovarianceAttn models.xcit.XCA",
    Hook("drop", opt_in=_POOL): "layers.attention_pool2d.AttentionPool2d layers.attention_pool2d.RotAttentionPool2d",
    Hook("pool", layout=_IMAGE): "layers.bottleneck_attn.BottleneckAttn layers.halo_attn.HaloAttn",
    Hook("o_proj", layout=_IMAGE): "models.cpubone.ConvAttention models.lowformer.ConvAttention",
    Hook("output", layout=_IMAGE): "layers.attention2d.MultiQueryAttention2d",
    Hook("proj", opt_in=_POOL): "layers.attention_pool.AttentionPoolLatent",
    Hook("post_norm", opt_in=_POOL): "layers.attention_pool.AttentionPoolPrr",
    Hook("z", heads=1, layout=_IMAGE): "layers.non_local_attn.NonLocalAttn",
    Hook("proj", "groups", _CHANNELS): "models.davit.ChannelAttentionV2",
    Hook("o_proj"): "models.gemma4_vit.Gemma4Attention",
    Hook("proj", layout=Layout("B N D*H")): "models.nest.Attention",
}
_HOOKED: dict[str, Hook] = by_class(_SITES)


def _levit(module: nn.Module) -> Hook:
    return Hook("proj", layout=_IMAGE if module.use_conv else _TOKENS)


def _simpool(module: nn.Module) -> Hook | str:
    """The pooled heads are what the module returns, unless it takes a root of them."""
    return Hook(None, opt_in=_POOL) if module.gamma is None else "returns its heads to the power of 1 / gamma"


# class -> the hook for a module of it, or why there is none, where that depends on how the module was built
_CHOSEN: dict[str, Callable[[nn.Module], Hook | str]] = {
    "timm.layers.other_pool.SimPool1d": _simpool,
    "timm.layers.other_pool.SimPool2d": _simpool,
    "timm.models.levit.Attention": _levit,
    "timm.models.levit.AttentionDownsample": _levit,
}

# why heads cannot be reached, or why there are none -> classes
_REFUSALS: dict[str, str] = {
    NoAttention("weighs channels or places of its input, and computes no softmax(q kᵀ) v"): """
        layers.cbam.ChannelAttn layers.cbam.LightChannelAttn layers.cbam.LightSpatialAttn layers.cbam.SpatialAttn
        layers.coord_attn.CoordAttn layers.coord_attn.EfficientLocalAttn layers.coord_attn.SimpleCoordAttn
        layers.coord_attn.StripAttn layers.global_context.GlobalContext layers.non_local_attn.BatNonLocalAttn
        layers.non_local_attn.BilinearAttnTransform layers.selective_kernel.SelectiveKernelAttn
        layers.split_attn.SplitAttn
    """,
    "normalises every head behind softmax(q kᵀ) v by itself, so that C cancels": """
        layers.diff_attention.DiffAttention models.vision_transformer.DiffParallelScalingBlock
    """,
    "is linear attention: there is no softmax(q kᵀ) whose rows could be normalised": """
        layers.lambda_layer.LambdaLayer models.coat.FactorAttnConvRelPosEnc models.efficientvit_mit.LiteMLA
        models.mobilevit.LinearSelfAttention models.swiftformer.EfficientAdditiveAttention
    """,
    "has one head of width 1, of which C would leave only the sign": "models.csatv2.SpatialTransformerBlock",
    NoAttention("is a state space model, without softmax(q kᵀ) v"): "models.efficientvim.HSMSSD",
    NoAttention("is a convolution"): "models.nextvit.ConvAttention",
    "does not run in timm itself: its keys are not transposed": "models.mvitv2.MultiScaleAttentionPoolFirst",
}
_REFUSED: dict[str, str] = by_class(_REFUSALS)


def recognise(module: nn.Module) -> Mechanism | str | None:
    """The way to the heads of a module of timm, or the reason why there is none; None if it is no attention."""
    cls = plain_class(module)
    name = class_name(cls)
    if name in _SWAPPED:
        return swap_in(_SWAPPED[name], cls)
    found = _CHOSEN[name](module) if name in _CHOSEN else _HOOKED.get(name) or _REFUSED.get(name)
    if isinstance(found, Hook):
        return found.missing(module) or found
    if found is not None:
        return type(found)(f"{cls.__qualname__} {found}")
    return derived_reason(cls, {*_SWAPPED, *_HOOKED, *_CHOSEN})
