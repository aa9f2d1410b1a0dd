"""torch.nn: `MultiheadAttention`, alone or inside of ``nn.Transformer`` and its layers, and this library's own."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from conditioned_attention.modules import MultiheadAttention, guard, unguard
from conditioned_attention.preconditioner import TRANSFORM, HeadTransform
from conditioned_attention.sites.site import Mechanism, Site, class_name, plain_class
from conditioned_attention.sites.swap import Swap, subclass_reason, swap_of, swapped_for


class _GuardedSwap(Swap):
    """A class swap with a hook that keeps the fast paths of torch.nn from bypassing the heads."""

    def put(self, site: Site, transform: HeadTransform) -> None:
        super().put(site, transform)
        assert isinstance(site.module, nn.MultiheadAttention)
        guard(site.module)

    def uninstall(self, site: Site) -> bool:
        if not super().uninstall(site):
            return False
        assert isinstance(site.module, nn.MultiheadAttention)
        unguard(site.module)
        return True


@swapped_for(nn.MultiheadAttention, _GuardedSwap)
class ConditionedMultiheadAttention(MultiheadAttention):
    """``torch.nn.MultiheadAttention`` whose heads pass through a `HeadTransform` before the output projection."""


class BuiltIn(Mechanism):
    """A module that was built with its transform: nothing to convert, and nothing to restore."""

    name: ClassVar[str] = "built in"

    def remark(self, module: nn.Module) -> str:
        return f"it was built as {class_name(type(module))} and stays that"

    def put(self, site: Site, transform: HeadTransform) -> None:
        site.module.__dict__[TRANSFORM] = transform

    def uninstall(self, site: Site) -> bool:
        return False


def recognise(module: nn.Module) -> Mechanism | str | None:
    """The way to the heads of a `MultiheadAttention`, or the reason why there is none; None for other modules."""
    if not isinstance(module, nn.MultiheadAttention):
        return None
    cls = plain_class(module)
    if cls is nn.MultiheadAttention:
        return swap_of(ConditionedMultiheadAttention)
    return BuiltIn() if issubclass(cls, MultiheadAttention) else subclass_reason(cls, nn.MultiheadAttention)
