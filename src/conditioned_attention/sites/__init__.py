"""Where the heads are: which modules of a model are attention, and how each head's output is reached."""

from conditioned_attention.sites.table import (
    Site,
    active_transform,
    find_sites,
    install,
    transform_of,
    uninstall,
)

__all__ = ["Site", "active_transform", "find_sites", "install", "transform_of", "uninstall"]
