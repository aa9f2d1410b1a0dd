"""Condition numbers and the complexity measure of arXiv 2603.27153, of matrices in batches.

Shapes: n rows, d columns, k = min(n, d).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def condition_number(matrix: Tensor) -> Tensor:
    """``κ(A) = σ₁ / σ_k`` with ``k = min(n, d)``: Definition 4.1.

    Singular values are computed in float64.  A matrix born in lower precision carries rounding of its own: where
    ``σ_k ≤ σ₁ · max(n, d) · eps``, eps being the machine precision of the dtype it came in, the smallest singular
    value is not told from rounding, and κ is ``inf``.  That floor is about 4e4 for a 197 × 64 head in float32, and
    nothing but ``inf`` is left of most bfloat16 heads: measure in float32.

    Args:
        matrix: (..., n, d), floating point, n and d at least 1.

    Returns:
        (...), float64: at least 1, ``inf`` at the floor and for a zero matrix, ``nan`` where an entry is not finite.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: fewer than two dimensions, or an empty matrix.

    >>> import torch
    >>> from conditioned_attention import condition_number
    >>> condition_number(torch.tensor([[[2.0, 0.0], [0.0, 0.5]], [[1.0, 1.0], [1.0, 1.0]]]))
    tensor([4., inf], dtype=torch.float64)
    """
    singular_values, full_rank = _singular_values(matrix)
    largest, smallest = singular_values[..., 0], singular_values[..., -1]
    return torch.where(full_rank, largest / smallest, math.inf).where(~largest.isnan(), math.nan)


def log_complexity(matrix: Tensor) -> Tensor:
    """``log μ(A)`` with ``μ(A) = 2 / (σ₁ … σ_k) · (‖A‖_F / √k)^k``: equation (10), an upper bound of κ.

    The logarithm, because μ itself overflows: its exponent grows with k.  By Theorem 4.4 scaling the rows to unit
    length does not raise it **if n ≤ d**; for n > d it may.

    Args:
        matrix: (..., n, d), floating point, n and d at least 1.

    Returns:
        (...), float64, natural logarithm; ``inf`` and ``nan`` where `condition_number` has them.

    Raises:
        TypeError, ValueError: as `condition_number`.

    >>> import torch
    >>> from conditioned_attention import log_complexity
    >>> log_complexity(3 * torch.eye(4)).exp()  # 2, the least there is, for any multiple of an orthogonal matrix
    tensor(2., dtype=torch.float64)
    """
    singular_values, full_rank = _singular_values(matrix)
    k = singular_values.shape[-1]
    # log(‖A‖_F / √k) relative to σ₁, so that neither the squares nor the product can overflow
    largest = singular_values[..., :1]
    ratios = singular_values / largest
    log_mu = math.log(2.0) + 0.5 * k * ratios.square().mean(-1).log() - ratios.log().sum(-1)
    return torch.where(full_rank, log_mu, math.inf).where(~largest[..., 0].isnan(), math.nan)


def _singular_values(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values in float64, descending, NaN for matrices that are not finite; and where the rank is full."""
    if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
        what = matrix.dtype if isinstance(matrix, Tensor) else type(matrix).__name__
        raise TypeError(f"matrix must be a floating-point tensor, got {what}")
    if matrix.dim() < 2 or 0 in matrix.shape[-2:]:
        raise ValueError(f"matrix must be (..., n, d) with n and d at least 1, got shape {tuple(matrix.shape)}")
    matrix = matrix.detach()
    finite = matrix.isfinite().all(-1).all(-1)
    clean = torch.where(finite[..., None, None], matrix, 0.0).double()
    singular_values = torch.linalg.svdvals(clean).where(finite[..., None], math.nan)
    floor = singular_values[..., 0] * max(matrix.shape[-2:]) * torch.finfo(matrix.dtype).eps
    return singular_values, singular_values[..., -1] > floor
