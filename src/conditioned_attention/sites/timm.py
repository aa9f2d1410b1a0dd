"""timm's attention classes: which module gets the heads, how they lie there, and which cannot be reached.

Nothing of timm is imported here; the classes that are swapped stand in `timm_forwards`.
"""

from __future__ import annotations

import importlib

from torch import nn

from conditioned_attention.sites.hook import Hook
from conditioned_attention.sites.site import Mechanism, class_name, plain_class
from conditioned_attention.sites.swap import subclass_reason, swap_of

# class -> its conditioned subclass in `timm_forwards`
_SWAPPED = {"timm.layers.attention.Attention": "ConditionedAttention"}

# class -> the module that gets the heads
_HOOKED: dict[str, Hook] = {
    "timm.models.metaformer.Attention": Hook("proj"),
    "timm.models.swin_transformer.WindowAttention": Hook("proj"),
}

# class -> why its heads cannot be reached
_REFUSED = {
    "timm.models.vision_transformer.ParallelScalingBlock": "computes attention in its own forward",
    "timm.models.vision_transformer.DiffParallelScalingBlock": "computes attention in its own forward",
}


def recognise(module: nn.Module) -> Mechanism | str | None:
    """The way to the heads of a module of timm's, or the reason why there is none; None if it is no attention."""
    cls = plain_class(module)
    name = class_name(cls)
    if name in _SWAPPED:
        forwards = importlib.import_module("conditioned_attention.sites.timm_forwards")
        return swap_of(getattr(forwards, _SWAPPED[name]))
    if name in _HOOKED:
        return _HOOKED[name].missing(module) or _HOOKED[name]
    if name in _REFUSED:
        return f"{cls.__qualname__} {_REFUSED[name]}"
    bases = [base for base in cls.__mro__[1:] if class_name(base) in {*_SWAPPED, *_HOOKED}]
    return subclass_reason(cls, bases[0]) if bases else None
