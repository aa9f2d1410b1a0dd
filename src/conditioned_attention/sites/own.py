"""Attention classes of this project's own networks: each declares its conditioned side beside itself.

Nothing of `experiments` is imported here; a model that holds one has been made there.
"""

from __future__ import annotations

from torch import nn

from conditioned_attention.sites.site import Mechanism, plain_class
from conditioned_attention.sites.swap import declared_swap


def recognise(module: nn.Module) -> Mechanism | str | None:
    """The way to the heads of a module of this project's that is swapped; None for any other."""
    return declared_swap(plain_class(module))
