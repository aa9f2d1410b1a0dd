"""Initial values that condition projections, and nothing afterwards: the cheapest control."""

from __future__ import annotations

import torch
from torch import nn

from conditioned_attention.conversion.selection import Patterns, select
from conditioned_attention.sites import find_projections, find_sites


@torch.no_grad()
def orthogonal_projections(model: nn.Module, include: Patterns = None, exclude: Patterns = None) -> list[str]:
    """Draws W_Q, W_K and W_V anew, each a multiple of a semi-orthogonal matrix of the Frobenius norm that it had.

    κ is then 1 (Conditioned Initialization, openreview cKNOCYPo2W, does the same for queries and keys).  The norm is
    kept so that the spectrum alone changes, and not the scale.  Draws from torch's global generator.

    Args:
        model: a freshly built module with attention of known classes, before any conversion.
        include, exclude: patterns of names of attention modules, as `precondition` takes them.

    Returns:
        The names of the attention modules.

    Raises:
        ValueError: there is none, or the projections of one are not known.
    """
    changed = []
    for site in select([site for site in find_sites(model) if site.attention], include, exclude):
        projections = find_projections(site.module)
        if isinstance(projections, str):
            raise ValueError(f"{site.name}: {projections}")
        for _, matrix, rows in projections.matrices(site.module):
            drawn = nn.init.orthogonal_(torch.empty(len(rows), matrix.shape[1]))
            scale = matrix[rows].float().norm().cpu() / drawn.norm()
            matrix[rows] = (drawn * scale).to(matrix)
        changed.append(site.name)
    if not changed:
        raise ValueError(f"{type(model).__name__} holds no attention whose projections are known")
    return changed
