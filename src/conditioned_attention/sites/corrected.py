"""Lets an attention module compute with W + C for a fixed C, while the parameter stays W.

Each module that owns a weight of W_Q, W_K or W_V adds C where the weight is computed with (see `summed`).  So it does
not matter whether the attention module calls the projection or reads the weight, nor what else runs it at the same
time; parameters and state_dict keys stay the same.  The gradient reaches W; weight decay, which acts on the parameter,
acts on W alone.

If something else has since taken the place of a module or of its weight (torch.nn.utils.parametrize, a quantizer), a
hook before the attention module raises.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from conditioned_attention.sites.correction import SUFFIX, Correction, corrections_for
from conditioned_attention.sites.projections import Projections, held
from conditioned_attention.sites.site import HOOK_KEY
from conditioned_attention.sites.summed import add, is_added, seen, take_off
from conditioned_attention.spectral import Spectral

SPECTRAL = "_spectral"  # attribute of an attention module: how it is corrected.  Plain data: no key of the state_dict
_KEY = HOOK_KEY - 1
_OPEN = "_spectral_open"  # on the module until a state_dict has brought the corrections


def spectral_of(attention: nn.Module) -> Spectral | None:
    """How an attention module is corrected, or None."""
    return attention.__dict__.get(SPECTRAL)


def corrections_of(attention: nn.Module) -> tuple[Correction, ...]:
    """The corrections that a module computes with; empty if it is not corrected, or if C is part of W."""
    look: Any = attention._forward_pre_hooks.get(_KEY)
    return () if look is None else look.corrections


def correct(
    attention: nn.Module, projections: Projections, spectral: Spectral, *, loading: bool = False
) -> Callable[[], object]:
    """Makes the module compute with W + C from now on; the returned function undoes that.

    With ``loading``, a correction that would have to be computed is left open for a state_dict to bring.
    """
    corrections = corrections_for(attention, projections, spectral)
    if spectral.correction == "polar":
        for owner, correction in corrections:
            kept = correction.open(owner) if loading else correction.polar(owner)
            if loading:
                attention.__dict__[_OPEN] = True
            owner.register_buffer(correction.projection.parameter + SUFFIX, kept)
    attention.__dict__[SPECTRAL] = spectral
    if not spectral.folded:
        _put_on(attention, corrections)
    return partial(uncorrect, attention, projections)


def uncorrect(attention: nn.Module, projections: Projections | None = None) -> bool:
    """Makes the module compute with W again; returns whether there was a correction to remove."""
    if attention.__dict__.pop(SPECTRAL, None) is None:
        return False
    attention.__dict__.pop(_OPEN, None)
    weights = projections.weights if projections else tuple(c.projection for c in corrections_of(attention))
    _take_off(attention)
    for projection in weights:
        projection.owner(attention)._buffers.pop(projection.parameter + SUFFIX, None)
    return True


def _put_on(attention: nn.Module, corrections: list[tuple[nn.Module, Correction]]) -> None:
    for owner, correction in corrections:
        add(owner, correction)
    attention._forward_pre_hooks[_KEY] = _Look(tuple(correction for _, correction in corrections))


def _take_off(attention: nn.Module) -> None:
    for correction in corrections_of(attention):
        take_off(correction.projection.owner(attention), correction.projection.parameter)
    attention._forward_pre_hooks.pop(_KEY, None)


def set_folded(attention: nn.Module, projections: Projections, *, folded: bool) -> None:
    """Makes the module compute with its weights as they are, of which C is now part, or else with W + C again."""
    spectral = replace(attention.__dict__[SPECTRAL], folded=folded)
    attention.__dict__[SPECTRAL] = spectral
    if folded:
        _take_off(attention)
    else:
        _put_on(attention, corrections_for(attention, projections, spectral))


def shown(attention: nn.Module, *, corrected: bool = True) -> AbstractContextManager[None]:
    """Within the block, in this thread, projections show what the module computes with: W + C if it is corrected.

    If ``corrected`` is False they show W, and projections that are called compute with W.
    """
    return seen([c.projection.owner(attention) for c in corrections_of(attention)], corrected=corrected)


@dataclass(frozen=True)
class _Look:
    """A hook before the attention module, which raises if one of its projections would compute without C."""

    corrections: tuple[Correction, ...]

    def __call__(self, attention: nn.Module, args: tuple[Any, ...]) -> None:
        if _OPEN in attention.__dict__:
            self._close(attention)
        for correction in self.corrections:
            projection = correction.projection
            owner = projection.owner(attention)
            if held(owner, projection.parameter) is None:
                raise _lost(attention, projection.replaced(owner))
            if torch.compiler.is_compiling():
                continue
            if not is_added(owner, correction):
                cls = f"{type(owner).__module__}.{type(owner).__qualname__}"
                raise _lost(attention, f"the module of {projection.name}, now a {cls}, or its class has been replaced")

    def _close(self, attention: nn.Module) -> None:
        """Raises RuntimeError unless a state_dict has brought the corrections."""
        for projection in (correction.projection for correction in self.corrections):
            kept = projection.owner(attention)._buffers[projection.parameter + SUFFIX]
            if torch.compiler.is_compiling() or kept is None or kept.isnan().any():
                raise RuntimeError(
                    f"the correction {projection.parameter + SUFFIX!r} of {projection.path!r} is not there yet: after "
                    "apply_conditioning(model), load the checkpoint's state_dict into the model"
                    + (", and run it once before torch.compile" if torch.compiler.is_compiling() else "")
                )
        attention.__dict__.pop(_OPEN, None)


def _lost(attention: nn.Module, what: str) -> RuntimeError:
    return RuntimeError(
        f"this {type(attention).__qualname__} was given to spectral_condition, and since then {what}. Undo that, or "
        "call restore(model); to keep C, call fold(model) before that change"
    )
