"""Singular values of W_Q, W_K and W_V, as trained and with their corrections, as in the figures of arXiv 2603.07162."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from conditioned_attention.sites import Site, find_projections, find_sites
from conditioned_attention.sites.corrected import shown
from conditioned_attention.sites.projections import Projections, as_matrix, whole
from conditioned_attention.storage.files import finite

_ROLES = {"q": "query", "k": "key", "v": "value"}


@dataclass(frozen=True)
class ProjectionRecord:
    """One of W_Q, W_K and W_V of one attention module, all heads together.

    Attributes:
        module: the attention module.
        role: ``"query"``, ``"key"`` or ``"value"``.
        shape: (rows, columns).
        kappa, smallest, norm: κ, σ_min and the Frobenius norm of W as it is trained.
        kappa_corrected, smallest_corrected: those of W + C; of W where nothing is corrected.
    """

    module: str
    role: str
    shape: tuple[int, int]
    kappa: float
    smallest: float
    norm: float
    kappa_corrected: float
    smallest_corrected: float

    def to_json(self) -> dict[str, Any]:
        """Returns the record as plain data that JSON can hold, with None for κ = inf."""
        return dict(finite(asdict(self)))


def projection_records(model: nn.Module) -> list[ProjectionRecord]:
    """W_Q, W_K and W_V of every attention module whose projections are known; singular values in float64.

    >>> import torch
    >>> from conditioned_attention import spectral_condition
    >>> layer = torch.nn.TransformerEncoderLayer(64, 4, 128)
    >>> _ = spectral_condition(layer, correction="polar")
    >>> [record.kappa_corrected <= 2 for record in projection_records(layer)]
    [True, True, True]
    """
    records = []
    for site, projections in known_projections(model):
        plain = role_matrices(site.module, projections)
        with shown(site.module):
            corrected = role_matrices(site.module, projections)
        for role, name in _ROLES.items():
            values, others = (torch.linalg.svdvals(m[role].double()) for m in (plain, corrected))
            shape, norm = (plain[role].shape[0], plain[role].shape[1]), float(values.norm())
            before, after = ((_kappa(found), float(found[-1])) for found in (values, others))
            records.append(ProjectionRecord(site.name, name, shape, *before, norm, *after))
    return records


@torch.no_grad()
def value_norm(model: nn.Module) -> float:
    """The root mean square over attention modules of ‖W_V‖_F, W_V as it is trained; NaN if none is known.

    The gradient that the preconditioner leaves along the rows does nothing for the loss, and could drive this up.
    """
    found = [role_matrices(site.module, projections).get("v") for site, projections in known_projections(model)]
    squares = [matrix.double().square().sum() for matrix in found if matrix is not None]
    return torch.stack(squares).mean().sqrt().item() if squares else math.nan


def known_projections(model: nn.Module) -> list[tuple[Site, Projections]]:
    """Every attention module whose W_Q, W_K and W_V are known, with where they are."""
    pairs = ((site, find_projections(site.module)) for site in find_sites(model))
    return [(site, found) for site, found in pairs if isinstance(found, Projections)]


def role_matrices(attention: nn.Module, projections: Projections, *, biases: bool = False) -> dict[str, Tensor]:
    """The rows of each role as a matrix (out, in) of its own, with the bias, or zeros, as last column if ``biases``."""
    found = {}
    for projection in projections.weights:
        owner = projection.owner(attention)
        matrix = as_matrix(owner, whole(getattr(owner, projection.parameter))).detach()
        its = projection.biases(attention) if biases else {}
        if biases:
            matrix = torch.cat((matrix, matrix.new_zeros(matrix.shape[0], 1)), dim=1)
        for role, rows in projection.rows(attention).items():
            found[role] = matrix[rows.indices()]
            if role in its:
                bias, entries = its[role]
                found[role][:, -1] = whole(bias).detach()[entries]
    return found


def _kappa(values: Tensor) -> float:
    return float(values[0] / values[-1]) if values[-1] > 0 else math.inf
