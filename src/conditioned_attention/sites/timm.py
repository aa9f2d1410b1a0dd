"""timm's attention classes: which module gets the heads, how they lie there, and which cannot be reached.

Nothing of timm is imported here; the classes that are swapped stand in files of their own beside this one.
"""

from __future__ import annotations

import importlib

from torch import nn

from conditioned_attention.sites.hook import Hook
from conditioned_attention.sites.site import Mechanism, class_name, plain_class
from conditioned_attention.sites.swap import subclass_reason, swap_of

# class -> the file that holds its conditioned subclass, and that subclass
_SWAPPED = {
    "timm.layers.attention.Attention": ("timm_forwards", "ConditionedAttention"),
    "timm.layers.attention.AttentionRope": ("timm_forwards", "ConditionedAttentionRope"),
    "timm.layers.attention2d.MultiQueryAttentionV2": ("timm_hybrids", "ConditionedMultiQueryAttentionV2"),
    "timm.models.beit.Attention": ("timm_forwards", "ConditionedBeitAttention"),
    "timm.models.efficientformer_v2.Attention2d": ("timm_hybrids", "ConditionedAttention2d"),
    "timm.models.efficientformer_v2.Attention2dDownsample": ("timm_hybrids", "ConditionedAttention2dDownsample"),
    "timm.models.efficientvit_msra.CascadedGroupAttention": ("timm_hybrids", "ConditionedCascadedGroupAttention"),
    "timm.models.eva.EvaAttention": ("timm_forwards", "ConditionedEvaAttention"),
    "timm.models.hiera.MaskUnitAttention": ("timm_forwards", "ConditionedMaskUnitAttention"),
    "timm.models.iformer.SHMA": ("timm_iformer", "ConditionedSHMA"),
    "timm.models.mvitv2.MultiScaleAttention": ("timm_hybrids", "ConditionedMultiScaleAttention"),
    "timm.models.shvit.SHSA": ("timm_hybrids", "ConditionedSHSA"),
    "timm.models.swin_transformer.WindowAttention": ("timm_forwards", "ConditionedWindowAttention"),
    "timm.models.vision_transformer.ParallelScalingBlock": ("timm_forwards", "ConditionedParallelScalingBlock"),
    "timm.models.volo.OutlookAttention": ("timm_hybrids", "ConditionedOutlookAttention"),
}

# class -> the module that gets the heads
_HOOKED: dict[str, Hook] = {
    "timm.models.metaformer.Attention": Hook("proj"),
    "timm.models.swin_transformer.WindowAttention": Hook("proj"),
}

# class -> why its heads cannot be reached
_REFUSED = {
    "timm.models.vision_transformer.DiffParallelScalingBlock": "computes attention in its own forward",
}


def recognise(module: nn.Module) -> Mechanism | str | None:
    """The way to the heads of a module of timm's, or the reason why there is none; None if it is no attention."""
    cls = plain_class(module)
    name = class_name(cls)
    if name in _SWAPPED:
        file, conditioned = _SWAPPED[name]
        return swap_of(getattr(importlib.import_module(f"conditioned_attention.sites.{file}"), conditioned))
    if name in _HOOKED:
        return _HOOKED[name].missing(module) or _HOOKED[name]
    if name in _REFUSED:
        return f"{cls.__qualname__} {_REFUSED[name]}"
    bases = [base for base in cls.__mro__[1:] if class_name(base) in {*_SWAPPED, *_HOOKED}]
    return subclass_reason(cls, bases[0]) if bases else None
