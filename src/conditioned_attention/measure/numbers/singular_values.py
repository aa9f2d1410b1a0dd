"""Singular values of matrices in batches, in float64, by the route that is asked for.

Shapes: n rows, d columns, k = min(n, d).
"""

from __future__ import annotations

import torch
from torch import Tensor

METHODS = ("svd", "gram")

_ROUNDING = 2.0**-53  # of one operation in float64
_EIGENVALUES = 10  # LAPACK promises errors of p(k) · rounding with a "modestly growing" p; taken as 10 k


def singular_values(matrix: Tensor, *, method: str = "svd", tolerance: float = 1e-3) -> Tensor:
    """Singular values, descending, in float64.

    ``"svd"`` decomposes the matrix, and is right to rounding: σ_i within σ₁ · 1e-16 times a small power of the size.

    ``"gram"`` takes the roots of the eigenvalues of AᵀA (or AAᵀ, if that is smaller), which squares κ: it was off by
    1e-9 at κ = 1e4, 8e-6 at 1e6 and 17 % at 1e8.  So every matrix gets a bound of its own error, and those whose
    smallest singular value is not proven to ``tolerance`` are decomposed after all.  By Weyl's inequality no eigenvalue
    moves by more than the error of the product, γ_n ‖A‖_F² at most, and that of the eigenvalues, 10 k u ‖AᵀA‖:

        |σ̂_k - σ_k| / σ_k ≤ (n + 10 k) u ‖A‖_F² / σ̂_k²   if that is below 1/2,   u = 2⁻⁵³

    Where all are proven (at 197 × 64 and a tolerance of 1e-3 up to a κ of about 1e5) it takes 0.75 to 1 of the time of
    ``"svd"``; where few are, up to 1.8 of it (``results/bench/spectra.csv``).

    Args:
        matrix: (..., n, d), floating point and finite, n and d at least 1.
        method: one of ``METHODS``.
        tolerance: relative error of the smallest singular value that ``"gram"`` may make.

    Returns:
        (..., k), float64.

    Raises:
        ValueError: unknown method, or a tolerance that is not positive.

    >>> import torch
    >>> from conditioned_attention.measure.numbers.singular_values import singular_values
    >>> singular_values(torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]), method="gram")
    tensor([4., 3.], dtype=torch.float64)
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; valid are {METHODS}")
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance}")
    exact = matrix.detach().double()
    return torch.linalg.svdvals(exact) if method == "svd" else _by_gram(exact, tolerance)


def _by_gram(matrix: Tensor, tolerance: float) -> Tensor:
    # To a largest entry of 1, so that squares neither overflow nor vanish.
    scale = matrix.abs().amax(dim=(-2, -1), keepdim=True)
    scale = torch.where(scale == 0, 1.0, scale)
    tall = (matrix if matrix.shape[-2] >= matrix.shape[-1] else matrix.mT) / scale
    squares = torch.linalg.eigvalsh(tall.mT @ tall).flip(-1)
    proven = _relative_error(squares, *tall.shape[-2:]) <= tolerance
    values: Tensor = squares.clamp_min(0).sqrt()
    if not proven.all():
        values[~proven] = torch.linalg.svdvals(tall[~proven])
    return values * scale[..., 0]


def _relative_error(squares: Tensor, n: int, k: int) -> Tensor:
    """A bound on the relative error of the smallest root, (...); inf where there is none."""
    error = (n + _EIGENVALUES * k) * _ROUNDING * squares.clamp_min(0).sum(-1)
    bound = error / squares[..., -1].clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(bound < 0.5, bound, torch.inf)
