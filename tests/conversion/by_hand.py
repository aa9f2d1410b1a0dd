"""Corrections added to the weights themselves: what spectral conditioning has to compute, without its mechanism."""

import torch

from conditioned_attention.sites import find_projections, find_sites
from conditioned_attention.sites.projections import as_matrix

STRENGTH = 0.7


def corrections_by_hand(model, correction, roles="qkv"):
    """What ``correction(rows of a role, head width)`` says of every weight of W_Q, W_K, W_V, by parameter names."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for site in find_sites(model):
        projections = find_projections(site.module)
        widths = projections.head_widths(site.module)
        for projection in projections.weights:
            owner = projection.owner(site.module)
            weight = getattr(owner, projection.parameter)
            found[names[id(weight)]] = added = torch.zeros_like(weight)
            source, target = as_matrix(owner, weight.detach()), as_matrix(owner, added)
            for role, rows in projection.rows(site.module).items():
                if role in roles:
                    indices = rows.indices()
                    target[indices] = correction(source[indices], widths[role])
    return found


@torch.no_grad()
def weights_by_hand(model, correction, roles="qkv"):
    """The model, with that added."""
    for name, added in corrections_by_hand(model, correction, roles).items():
        model.get_parameter(name).add_(added)
    return model


def rectangular_identity(matrix, width):
    return STRENGTH * torch.eye(*matrix.shape)


def identity_of_each_head(matrix, width):
    return STRENGTH * torch.eye(width, matrix.shape[1]).repeat(matrix.shape[0] // width, 1)


def polar_of_each_head(matrix, width):
    u, s, vh = torch.linalg.svd(matrix.unflatten(0, (-1, width)).double(), full_matrices=False)
    return (s[:, :1, None] * (u @ vh)).flatten(0, 1).float()


def polar(matrix, width):
    return polar_of_each_head(matrix, matrix.shape[0])
