"""Checks of a model before it is changed, and their error messages."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from conditioned_attention.preconditioner import HeadTransform
from conditioned_attention.sites import Site
from conditioned_attention.sites.corrected import spectral_of
from conditioned_attention.sites.torch_nn.heads import BuiltIn
from conditioned_attention.spectral import Spectral

Settings = HeadTransform | Spectral


def check_module(model: nn.Module) -> None:
    """Raises TypeError for anything but a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def check_not_folded(sites: Iterable[Site]) -> None:
    """Raises ValueError if C has been folded into the weights of a site, from which only `unfold` can take it."""
    if folded := [s.name for s in sites if (spectral := spectral_of(s.module)) is not None and spectral.folded]:
        raise ValueError(
            f"the correction has been folded into the weights of {', '.join(folded)}: call unfold(model) first"
        )


def already(site: Site, present: Settings) -> str:
    """The error for a module that runs with another transform than the one asked for."""
    name = site.name or type(site.module).__qualname__
    if isinstance(present, Spectral):
        return f"{name} is already corrected, with {present}; call restore(model) first"
    if isinstance(site.mechanism, BuiltIn):
        return f"{name} was built with {present}, which conversion does not change; build it with other options"
    return f"{name} is already converted, with {present}; call restore(model) first"
