"""Singular values of a matrix that is known only by its products: Lanczos with Golub-Kahan bidiagonalisation.

Shapes: n rows, m columns, S steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_EXHAUSTED = 1e-14  # relative to the first number: what is left of a vector is rounding error, and no step can follow


def lanczos(
    times: Callable[[Tensor], Tensor], transposed_times: Callable[[Tensor], Tensor], start: Tensor, steps: int
) -> Tensor:
    """Estimates the singular values of a matrix A, in descending order, from ``steps`` products with A and with Aᵀ.

    The estimates are the singular values of A on the space of Aᵀ u, (Aᵀ A) Aᵀ u, … for a start u.  Until they have
    converged, the largest is too small and, as long as they are fewer than those of A, the smallest is too large.
    Large ones converge first.

    Args:
        times: computes A v, (n), for v (m).
        transposed_times: computes Aᵀ u, (m), for u (n).
        start: u, (n), in float64.
        steps: at most min(n, m); if the space is exhausted earlier, fewer are taken.

    Raises:
        ArithmeticError: a product is not finite.
    """
    left = start.new_zeros(steps + 1, len(start))
    left[0] = start / start.norm()
    right: Tensor | float = 0.0
    bidiagonal = torch.zeros(steps + 1, steps, dtype=torch.float64)
    beta = 0.0
    for i in range(steps):
        right = transposed_times(left[i]) - beta * right
        bidiagonal[i, i] = alpha = _norm(right)
        if alpha <= _EXHAUSTED * bidiagonal[0, 0]:
            bidiagonal = bidiagonal[: i + 1, :i]
            break
        right /= alpha
        # Rounding soon turns the vectors back to the largest singular values, which would then be found again and
        # again.  The left vectors are kept, and new ones made orthogonal to them; the right ones, which may be many
        # times as long, need not be: they stay orthogonal through the left ones (Simon and Zha 2000).
        u = _without(times(right), left[: i + 1])
        bidiagonal[i + 1, i] = beta = _norm(u)
        if beta <= _EXHAUSTED * bidiagonal[0, 0]:
            bidiagonal = bidiagonal[: i + 2, : i + 1]
            break
        left[i + 1] = u / beta
    values: Tensor = torch.linalg.svdvals(bidiagonal)
    return values if len(values) else values.new_zeros(1)  # no step could be taken: A = 0


def _norm(vector: Tensor) -> float:
    norm = float(vector.norm())
    if not math.isfinite(norm):
        raise ArithmeticError("a product with the matrix is not finite")
    return norm


def _without(vector: Tensor, basis: Tensor) -> Tensor:
    """The vector without its components along the rows of an orthonormal basis; removed twice, because of rounding."""
    for _ in range(2):
        vector = vector - basis.t() @ (basis @ vector)
    return vector
