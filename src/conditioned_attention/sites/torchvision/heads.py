"""torchvision's attention classes; its ViT holds ``torch.nn.MultiheadAttention``, which `torch_nn` knows.

Nothing of torchvision is imported here; the conditioned subclasses are in `forwards`.
"""

from __future__ import annotations

from torch import nn

from conditioned_attention.sites.hook import Hook
from conditioned_attention.sites.site import Mechanism, class_name, plain_class
from conditioned_attention.sites.swap import derived_reason, swap_in

# classes with a conditioned subclass in `forwards`
_SWAPPED = {
    "torchvision.models.swin_transformer.ShiftedWindowAttention",
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2",
    "torchvision.models.video.swin_transformer.ShiftedWindowAttention3d",
    "torchvision.models.video.mvit.MultiscaleAttention",
}

# class -> the module that gets the heads
_HOOKED = {"torchvision.models.maxvit.RelativePositionalMultiHeadAttention": Hook("merge", "n_heads")}


def recognise(module: nn.Module) -> Mechanism | str | None:
    """The way to the heads of a module of torchvision, or the reason why there is none; None if it is no attention."""
    cls = plain_class(module)
    name = class_name(cls)
    if name in _SWAPPED:
        return swap_in("torchvision.forwards", cls)
    if name in _HOOKED:
        return _HOOKED[name].missing(module) or _HOOKED[name]
    return derived_reason(cls, {*_SWAPPED, *_HOOKED})
