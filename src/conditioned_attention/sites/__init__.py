"""Where the heads are: which modules of a model are attention, and how each head's output is reached."""

from conditioned_attention.sites.table import (
    BUILT_IN,
    Site,
    active_transform,
    find_sites,
    install,
    transform_of,
    uninstall,
)

__all__ = ["BUILT_IN", "Site", "active_transform", "find_sites", "install", "transform_of", "uninstall"]
