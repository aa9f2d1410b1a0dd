"""Checks that a spectral correction has the effect it should, by running the projections themselves."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conditioned_attention._precision import exact
from conditioned_attention.attention.autocast import without_autocast
from conditioned_attention.sites.corrected import corrections_of, shown
from conditioned_attention.sites.projections import Projection, as_matrix
from conditioned_attention.spectral import Spectral


@torch.no_grad()
def check_effect(attention: nn.Module) -> None:
    """Raises RuntimeError unless every projection of a corrected module gives C x more than W x, to rounding.

    For C = λ I_k this is λ x[..., :k] in the rows of each role that is corrected and nothing in others; for the polar
    correction κ(W + C) ≤ 1 + 1/λ is checked, a weak check in half precision if λ is small.  Weights without values
    (meta) or spread over devices are not checked.
    """
    for correction in corrections_of(attention):
        projection, spectral = correction.projection, correction.spectral
        owner = projection.owner(attention)
        weight = getattr(owner, projection.parameter)
        if weight.is_meta or hasattr(weight, "device_mesh"):
            continue
        look = _gains_identity if spectral.correction == "identity" else _is_conditioned
        with without_autocast(weight.device.type):  # the user's would round what is compared
            right = look(attention, projection, correction.widths, spectral)
        if not right:
            raise RuntimeError(
                f"the correction of {projection.path or type(attention).__qualname__}.{projection.parameter} does not "
                f"have the effect it should, so nothing was changed: {type(owner).__qualname__} may compute something "
                "else than W x + b, or the entry of this class in the table of projections is wrong"
            )


def _gains_identity(attention: nn.Module, projection: Projection, widths: Any, spectral: Spectral) -> bool:
    owner = projection.owner(attention)
    matrix = as_matrix(owner, getattr(owner, projection.parameter))
    own = torch.Generator(matrix.device).manual_seed(0)  # so that conversion draws nothing from the user's
    x = torch.randn(3, matrix.shape[1], dtype=matrix.dtype, device=matrix.device, generator=own)
    with shown(attention, corrected=False):
        before = _project(owner, projection, x)
    with shown(attention):
        gain = exact(_project(owner, projection, x) - before)
    size = exact(x).abs() @ exact(matrix).abs().t() + exact(before).abs()
    expected = torch.zeros_like(gain)
    for role, rows in projection.rows(attention).items():
        if role not in spectral.roles:
            continue
        width = widths[role] if spectral.per_head else rows.count
        for i, row in enumerate(rows.indices()):
            if i % width < x.shape[1]:
                expected[:, row] = spectral.strength * exact(x[:, i % width])
    size += expected.abs()
    return bool(((gain - expected).abs() <= 8 * torch.finfo(matrix.dtype).eps * size).all())


def _is_conditioned(attention: nn.Module, projection: Projection, widths: Any, spectral: Spectral) -> bool:
    owner = projection.owner(attention)
    with shown(attention):
        rounded = as_matrix(owner, getattr(owner, projection.parameter))
    matrix, rounding = exact(rounded), 8 * torch.finfo(rounded.dtype).eps
    for role, rows in projection.rows(attention).items():
        if role not in spectral.roles:
            continue
        width = widths[role] if spectral.per_head else rows.count
        values = torch.linalg.svdvals(matrix[rows.indices()].unflatten(0, (-1, width)))
        largest, smallest = values[..., 0], values[..., -1] * (1 + 1e-2) + rounding * values[..., 0]
        if not bool((largest <= (1 + 1 / spectral.strength) * smallest).all()):
            return False
    return True


def _project(owner: nn.Module, projection: Projection, x: Tensor) -> Tensor:
    """What the projection makes of x, by the owner's own forward if that is nothing but this projection."""
    weight = getattr(owner, projection.parameter)
    if projection.path and weight.dim() == 2 and projection.parameter == "weight":
        y: Tensor = owner(x)
        return y
    return F.linear(x, as_matrix(owner, weight))
