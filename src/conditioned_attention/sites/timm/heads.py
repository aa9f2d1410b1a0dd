"""timm's attention classes: which module gets the heads, how they lie there, and which cannot be reached.

Nothing of timm is imported here; the classes that are swapped stand in files of their own beside this one.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from conditioned_attention.sites.hook import Hook, Layout
from conditioned_attention.sites.site import Mechanism, NoAttention, class_name, plain_class
from conditioned_attention.sites.swap import derived_reason, swap_in

# class -> the file that holds its conditioned subclass, and that subclass
_SWAPPED = {
    "timm.layers.attention.Attention": ("timm.forwards", "ConditionedAttention"),
    "timm.layers.attention.AttentionRope": ("timm.forwards", "ConditionedAttentionRope"),
    "timm.layers.attention2d.MultiQueryAttentionV2": ("timm.hybrids", "ConditionedMultiQueryAttentionV2"),
    "timm.models.beit.Attention": ("timm.forwards", "ConditionedBeitAttention"),
    "timm.models.efficientformer_v2.Attention2d": ("timm.hybrids", "ConditionedAttention2d"),
    "timm.models.efficientformer_v2.Attention2dDownsample": ("timm.hybrids", "ConditionedAttention2dDownsample"),
    "timm.models.efficientvit_msra.CascadedGroupAttention": ("timm.hybrids", "ConditionedCascadedGroupAttention"),
    "timm.models.eva.EvaAttention": ("timm.forwards", "ConditionedEvaAttention"),
    "timm.models.hiera.MaskUnitAttention": ("timm.forwards", "ConditionedMaskUnitAttention"),
    "timm.models.iformer.SHMA": ("timm.iformer", "ConditionedSHMA"),
    "timm.models.mvitv2.MultiScaleAttention": ("timm.hybrids", "ConditionedMultiScaleAttention"),
    "timm.models.shvit.SHSA": ("timm.hybrids", "ConditionedSHSA"),
    "timm.models.swin_transformer.WindowAttention": ("timm.forwards", "ConditionedWindowAttention"),
    "timm.models.vision_transformer.ParallelScalingBlock": ("timm.forwards", "ConditionedParallelScalingBlock"),
    "timm.models.volo.OutlookAttention": ("timm.hybrids", "ConditionedOutlookAttention"),
}

_TOKENS = Layout("B N H*D")
_TOKENS_D_FIRST = Layout("B N D*H")
_IMAGE = Layout("B H*D N")
_CHANNELS = Layout("B N H*D", along="N")  # attention between channels: a row is one channel over all tokens

_POOL = "it pools tokens into the features of the head, and is converted only if include names it"

# class -> the module that gets the heads
_HOOKED: dict[str, Hook] = {
    "timm.layers.attention2d.Attention2d": Hook("proj", layout=_IMAGE),
    "timm.layers.attention2d.MultiQueryAttention2d": Hook("output", layout=_IMAGE),
    "timm.layers.attention_pool.AttentionPoolLatent": Hook("proj", opt_in=_POOL),
    "timm.layers.attention_pool.AttentionPoolPrr": Hook("post_norm", opt_in=_POOL),
    "timm.layers.attention_pool2d.AttentionPool2d": Hook("drop", opt_in=_POOL),
    "timm.layers.attention_pool2d.RotAttentionPool2d": Hook("drop", opt_in=_POOL),
    "timm.layers.bottleneck_attn.BottleneckAttn": Hook("pool", layout=_IMAGE),
    "timm.layers.halo_attn.HaloAttn": Hook("pool", layout=_IMAGE),
    "timm.layers.non_local_attn.NonLocalAttn": Hook("z", heads=1, layout=_IMAGE),
    "timm.models.cait.ClassAttn": Hook("proj"),
    "timm.models.cait.TalkingHeadAttn": Hook("proj"),
    "timm.models.convit.GPSA": Hook("proj"),
    "timm.models.convit.MHSA": Hook("proj"),
    "timm.models.cpubone.ConvAttention": Hook("o_proj", layout=_IMAGE),
    "timm.models.crossvit.CrossAttention": Hook("proj"),
    "timm.models.davit.ChannelAttention": Hook("proj", layout=_CHANNELS),
    "timm.models.davit.ChannelAttentionV2": Hook("proj", "groups", _CHANNELS),
    "timm.models.davit.WindowAttention": Hook("proj"),
    "timm.models.edgenext.CrossCovarianceAttn": Hook("proj", layout=_CHANNELS),
    "timm.models.efficientformer.Attention": Hook("proj"),
    "timm.models.fastvit.Attention": Hook("proj"),
    "timm.models.gcvit.WindowAttentionGlobal": Hook("proj"),
    "timm.models.gemma4_vit.Gemma4Attention": Hook("o_proj"),
    "timm.models.hieradet_sam2.MultiScaleAttention": Hook("proj"),
    "timm.models.lowformer.ConvAttention": Hook("o_proj", layout=_IMAGE),
    "timm.models.maxxvit.Attention2d": Hook("proj", layout=_IMAGE),
    "timm.models.maxxvit.AttentionCl": Hook("proj"),
    "timm.models.metaformer.Attention": Hook("proj"),
    "timm.models.nest.Attention": Hook("proj", layout=_TOKENS_D_FIRST),
    "timm.models.nextvit.EfficientAttention": Hook("proj"),
    "timm.models.pvt_v2.Attention": Hook("proj"),
    "timm.models.swin_transformer_v2.WindowAttention": Hook("proj"),
    "timm.models.swin_transformer_v2_cr.WindowMultiHeadAttention": Hook("proj"),
    "timm.models.tiny_vit.Attention": Hook("proj"),
    "timm.models.tnt.Attention": Hook("proj"),
    "timm.models.twins.GlobalSubSampleAttn": Hook("proj"),
    "timm.models.twins.LocallyGroupedAttn": Hook("proj"),
    "timm.models.vision_transformer_relpos.RelPosAttention": Hook("proj"),
    "timm.models.vision_transformer_sam.Attention": Hook("proj"),
    "timm.models.visformer.Attention": Hook("proj", layout=_IMAGE),
    "timm.models.volo.Attention": Hook("proj"),
    "timm.models.volo.ClassAttention": Hook("proj"),
    "timm.models.xcit.XCA": Hook("proj", layout=_CHANNELS),
}


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

_GATE = NoAttention("weighs channels or places of its input, and computes no softmax(q kᵀ) v")
_LINEAR = "is linear attention: there is no softmax(q kᵀ) whose rows could be normalised"
_DIFFERENTIAL = "normalises every head behind softmax(q kᵀ) v by itself, so that C cancels"

# class -> why its heads cannot be reached, or why it has none
_REFUSED = {
    "timm.layers.cbam.ChannelAttn": _GATE,
    "timm.layers.cbam.LightChannelAttn": _GATE,
    "timm.layers.cbam.LightSpatialAttn": _GATE,
    "timm.layers.cbam.SpatialAttn": _GATE,
    "timm.layers.coord_attn.CoordAttn": _GATE,
    "timm.layers.coord_attn.EfficientLocalAttn": _GATE,
    "timm.layers.coord_attn.SimpleCoordAttn": _GATE,
    "timm.layers.coord_attn.StripAttn": _GATE,
    "timm.layers.diff_attention.DiffAttention": _DIFFERENTIAL,
    "timm.layers.global_context.GlobalContext": _GATE,
    "timm.layers.lambda_layer.LambdaLayer": _LINEAR,
    "timm.layers.non_local_attn.BatNonLocalAttn": _GATE,
    "timm.layers.non_local_attn.BilinearAttnTransform": _GATE,
    "timm.layers.selective_kernel.SelectiveKernelAttn": _GATE,
    "timm.layers.split_attn.SplitAttn": _GATE,
    "timm.models.coat.FactorAttnConvRelPosEnc": _LINEAR,
    "timm.models.csatv2.SpatialTransformerBlock": "has one head of width 1, of which C would leave only the sign",
    "timm.models.efficientvim.HSMSSD": NoAttention("is a state space model, without softmax(q kᵀ) v"),
    "timm.models.efficientvit_mit.LiteMLA": _LINEAR,
    "timm.models.mobilevit.LinearSelfAttention": _LINEAR,
    "timm.models.nextvit.ConvAttention": NoAttention("is a convolution"),
    "timm.models.swiftformer.EfficientAdditiveAttention": _LINEAR,
    "timm.models.mvitv2.MultiScaleAttentionPoolFirst": "does not run in timm itself: its keys are not transposed",
    "timm.models.vision_transformer.DiffParallelScalingBlock": _DIFFERENTIAL,
}


def recognise(module: nn.Module) -> Mechanism | str | None:
    """The way to the heads of a module of timm's, or the reason why there is none; None if it is no attention."""
    cls = plain_class(module)
    name = class_name(cls)
    if name in _SWAPPED:
        return swap_in(*_SWAPPED[name])
    found = _CHOSEN[name](module) if name in _CHOSEN else _HOOKED.get(name) or _REFUSED.get(name)
    if isinstance(found, Hook):
        return found.missing(module) or found
    if found is not None:
        return type(found)(f"{cls.__qualname__} {found}")
    return derived_reason(cls, {*_SWAPPED, *_HOOKED, *_CHOSEN})
