"""Initial values that make projections well conditioned, with no change afterwards: the cheapest control."""

from __future__ import annotations

import torch
from torch import nn

from conditioned_attention.conversion.selection import Patterns, select
from conditioned_attention.sites import find_projections, find_sites
from conditioned_attention.sites.projections import Projections


@torch.no_grad()
def orthogonal_projections(model: nn.Module, include: Patterns = None, exclude: Patterns = None) -> None:
    """Redraws W_Q, W_K and W_V, each as a multiple of a semi-orthogonal matrix with the Frobenius norm that it had.

    κ is then 1.  The norm is kept so that only the spectrum changes, and not the scale; `conditioned_projections` sets
    both.  Random numbers come from torch's global generator.

    Args:
        model: a freshly built module with attention of known classes, before any conversion.
        include, exclude: patterns of names of attention modules, as `precondition` takes them.

    Raises:
        ValueError: there is none, or the projections of one are not known.
    """
    for attention, projections in _attention(model, include, exclude):
        for _, matrix, rows in projections.matrices(attention):
            drawn = nn.init.orthogonal_(torch.empty(len(rows), matrix.shape[1]))
            scale = matrix[rows].float().norm().cpu() / drawn.norm()
            matrix[rows] = (drawn * scale).to(matrix)


@torch.no_grad()
def conditioned_projections(model: nn.Module, include: Patterns = None, exclude: Patterns = None) -> None:
    """Sets W_V to the identity and redraws W_Q and W_K of each head as semi-orthogonal: Conditioned Initialization.

    From openreview cKNOCYPo2W.  All singular values are then 1, whatever they were before.  Row i of W_V, counted over
    all heads, is row i mod D of the identity, for D features of the input, so that each head's values are its own
    columns of the input.  W_Q and W_K (d, D) of a head of width d are drawn independently of each other and of other
    heads, from torch's global generator.  If several query heads share a key head (grouped queries), that key head has
    one W_K, and W_V has only the first columns, one block per key head.  Biases are unchanged.

    Args:
        model: a freshly built module with attention of known classes, before any conversion.
        include, exclude: patterns of names of attention modules, as `precondition` takes them.

    Raises:
        ValueError: there is none, or the projections of one are not known.
    """
    for attention, projections in _attention(model, include, exclude):
        widths = projections.head_widths(attention)
        for role, matrix, rows in projections.matrices(attention):
            features = matrix.shape[1]
            if role == "v":
                columns = torch.arange(len(rows)) % features
                drawn = torch.eye(features)[columns]
            else:
                heads = len(rows) // widths[role]
                drawn = torch.cat([nn.init.orthogonal_(torch.empty(widths[role], features)) for _ in range(heads)])
            matrix[rows] = drawn.to(matrix)


def _attention(model: nn.Module, include: Patterns, exclude: Patterns) -> list[tuple[nn.Module, Projections]]:
    """The selected attention modules with their projections; raises ValueError if there is none."""
    found = []
    for site in select([site for site in find_sites(model) if site.attention], include, exclude):
        projections = find_projections(site.module)
        if isinstance(projections, str):
            raise ValueError(f"{site.name}: {projections}")
        found.append((site.module, projections))
    if not found:
        raise ValueError(f"{type(model).__name__} holds no attention whose projections are known")
    return found
