"""Finds the attention modules of a model, and the way to the output of their heads."""

from conditioned_attention.sites.registered import register_attention
from conditioned_attention.sites.site import Mechanism, Site, active_transform, transform_of
from conditioned_attention.sites.table import (
    against,
    correct_sites,
    find_projections,
    find_sites,
    forget_compiled,
    install,
    reset_compiled,
    uninstall,
    unwrap,
)
from conditioned_attention.sites.transformers.marker import MARKER, is_conditioned, marked, settled, watch

__all__ = [
    "MARKER",
    "Mechanism",
    "Site",
    "active_transform",
    "against",
    "correct_sites",
    "find_projections",
    "find_sites",
    "forget_compiled",
    "install",
    "is_conditioned",
    "marked",
    "register_attention",
    "reset_compiled",
    "settled",
    "transform_of",
    "uninstall",
    "unwrap",
    "watch",
]
