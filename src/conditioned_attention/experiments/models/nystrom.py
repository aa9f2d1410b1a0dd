"""Nyström attention (Xiong et al. 2021, arXiv 2102.03902), as its authors' code for the Long Range Arena computes it.

softmax(q kᵀ) is never built.  It is approximated by F Z B, where F and B are softmax attention to and from a few
landmarks and Z is approximately the inverse of the attention between landmarks.

Shapes: B batch, H heads, N tokens, L landmarks, D head width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

InverseStart = Literal["batch_columns", "batch_columns_and_rows", "head_columns"]

_HIDDEN = -1e9  # the score of a padded key


def factors(
    query: Tensor, key: Tensor, seen: Tensor | None, landmarks: int, start: InverseStart, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns F (B, H, N, L), Z (B, H, L, L) and B (B, H, L, N), whose product approximates softmax(q kᵀ / √D).

    Args:
        query: (B, H, N, D).
        key: (B, H, N, D).
        seen: (B, N), True for tokens and False for padding; None without padding.  Landmarks are means, in which
            padding counts as zeros, as in the authors' code; it is masked in B alone.
        landmarks: L; it must divide N.
        start: see `first_inverse`.
        steps: see `inverse`.

    >>> q = torch.zeros(1, 1, 8, 4)
    >>> F, Z, B = factors(q, q, None, 2, "batch_columns", 6)
    >>> F.shape, Z.shape, B.shape
    (torch.Size([1, 1, 8, 2]), torch.Size([1, 1, 2, 2]), torch.Size([1, 1, 2, 8]))
    """
    root = query.shape[-1] ** 0.25
    query, key = (shown(x / root, seen) for x in (query, key))
    of_queries, of_keys = (x.unflatten(-2, (landmarks, -1)).mean(-2) for x in (query, key))
    to_landmarks = (query @ of_keys.mT).softmax(-1)
    between = (of_queries @ of_keys.mT).softmax(-1)
    from_landmarks = hidden(of_queries @ key.mT, seen).softmax(-1)
    return to_landmarks, inverse(between, start, steps), from_landmarks


def shown(x: Tensor, seen: Tensor | None) -> Tensor:
    """Returns ``x`` (B, H, N, D) with zeros for padding."""
    return x if seen is None else x * seen[:, None, :, None]


def hidden(scores: Tensor, seen: Tensor | None) -> Tensor:
    """Masks the scores (B, H, L, N) of padded keys."""
    return scores if seen is None else scores.masked_fill(~seen[:, None, None], _HIDDEN)


def inverse(matrices: Tensor, start: InverseStart, steps: int) -> Tensor:
    """Approximates the inverse of matrices (..., L, L) of positive numbers, by ``steps`` of a cubic iteration.

    A step is Z ← Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4.
    """
    eye = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    z = first_inverse(matrices, start)
    for _ in range(steps):
        product = matrices @ z
        z = 0.25 * z @ (13 * eye - product @ (15 * eye - product @ (7 * eye - product)))
    return z


def first_inverse(matrices: Tensor, start: InverseStart) -> Tensor:
    """Returns the start of the iteration: Aᵀ divided by a number that keeps A Z below 1.

    Args:
        matrices: (B, H, L, L), softmax over the last dimension.
        start: which number.  ``"batch_columns"`` is the largest sum of a column in the whole batch, as in the authors'
            code.  ``"batch_columns_and_rows"`` is that times the largest sum of a row, as in their code until
            2021-02-28 (b646b0e), and is the same but for rounding, since rows sum to 1.  ``"head_columns"`` is the
            largest sum of a column of each head of each example; the authors recommend it, but their code never reaches
            it.  With the first two, the result for an example depends on the others in its batch.
    """
    columns = matrices.sum(-2)
    if start == "head_columns":
        return matrices.mT / columns.amax(-1)[..., None, None]
    largest = columns.max()
    if start == "batch_columns_and_rows":
        largest = largest * matrices.sum(-1).max()
    return matrices.mT / largest
