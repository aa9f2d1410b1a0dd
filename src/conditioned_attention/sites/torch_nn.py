"""torch.nn: `MultiheadAttention`, alone or inside of ``nn.Transformer`` and its layers, and this library's own."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from conditioned_attention.modules import MultiheadAttention, guard, unguard
from conditioned_attention.preconditioner import TRANSFORM, HeadTransform
from conditioned_attention.sites.table import BUILT_IN, Site, transform_of


class ConditionedMultiheadAttention(MultiheadAttention):
    """``torch.nn.MultiheadAttention`` whose heads pass through a `HeadTransform` before the output projection.

    No module is ever built as this class: instances of the stock class are switched to it and back, which keeps
    parameters, hooks, state_dict keys and ``isinstance``.
    """


SWAPPED = ConditionedMultiheadAttention


def recognise(module: nn.Module) -> tuple[str, str] | None:
    """(mechanism, reason against or remark) for a module this file knows, else None."""
    if not isinstance(module, nn.MultiheadAttention):
        return None
    if type(module) is nn.MultiheadAttention or isinstance(module, ConditionedMultiheadAttention):
        return "class swap", ""
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    if isinstance(module, MultiheadAttention):
        return BUILT_IN, f"it was built as {name} and stays that"
    return "", f"{name} is a subclass of nn.MultiheadAttention and may compute something else"


def reaches_heads(module: nn.Module) -> bool:
    """Whether a transform left on the module acts."""
    return isinstance(module, MultiheadAttention)


def install(site: Site, transform: HeadTransform) -> Callable[[], None]:
    module, before = site.module, transform_of(site.module)
    assert isinstance(module, nn.MultiheadAttention)
    module.__dict__[TRANSFORM] = transform
    if type(module) is nn.MultiheadAttention:
        module.__class__ = ConditionedMultiheadAttention
        guard(module)

    def undo() -> None:
        if before is None:
            uninstall(site)
        else:
            module.__dict__[TRANSFORM] = before

    return undo


def uninstall(site: Site) -> bool:
    """Takes off what `install` put on; False where it put nothing, as on a module that was built conditioned."""
    module = site.module
    if not isinstance(module, ConditionedMultiheadAttention):
        return False
    del module.__dict__[TRANSFORM]
    unguard(module)
    module.__class__ = nn.MultiheadAttention  # type: ignore[assignment]
    return True
