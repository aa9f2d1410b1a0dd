"""Hugging Face transformers: attention on its interface, and classes with attention of their own.

Nothing of transformers is imported here.
"""

from __future__ import annotations

from torch import nn

from conditioned_attention.sites import interface
from conditioned_attention.sites.hook import Hook
from conditioned_attention.sites.site import Mechanism, class_name, plain_class

# class -> the module that gets the heads
_HOOKED: dict[str, Hook] = {}


def recognise(module: nn.Module) -> Mechanism | str | None:
    """The way to the heads of a module of transformers, or the reason why there is none; None if it is no attention."""
    name = class_name(plain_class(module))
    if name in _HOOKED:
        return _HOOKED[name].missing(module) or _HOOKED[name]
    return interface.recognise(module)
