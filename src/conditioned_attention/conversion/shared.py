"""Finds projections that another module calls as well, where they would compute with W + C too."""

from __future__ import annotations

from torch import nn

from conditioned_attention.sites.projections import Projection, Projections

Holders = dict[int, list[nn.Module]]  # by the id of a module: those that have it as a child


def holders_in(model: nn.Module) -> Holders:
    """The modules that have each module of the model as a child."""
    found: Holders = {}
    for module in model.modules():
        for child in module._modules.values():
            if child is not None:
                found.setdefault(id(child), []).append(module)
    return found


def against_sharing(attention: nn.Module, projections: Projections, holders: Holders) -> str:
    """Why the projections cannot be corrected for this attention module alone; empty if they can."""
    for projection in projections.weights:
        for holder, child in _steps(attention, projection):
            others = [other for other in holders.get(id(child), ()) if other is not holder]
            if others:
                other = f"another {type(others[0]).__qualname__}"
                return f"{projection.path} belongs to {other} too, which would compute with W + C as well"
    return ""


def _steps(attention: nn.Module, projection: Projection) -> list[tuple[nn.Module, nn.Module]]:
    """From the attention module down to the one that has the weight: each module with its child."""
    steps, module, owner = [], attention, projection.owner(attention)
    for name in projection.path.split(".") if projection.path else ():
        steps.append((module, module.get_submodule(name)))
        module = module.get_submodule(name)
    while module is not owner:
        inner = module.base_layer
        assert isinstance(inner, nn.Module)
        steps.append((module, inner))
        module = inner
    return steps
