"""Condition numbers, the complexity measure of arXiv 2603.27153, and ranks, for batches of matrices.

Shapes: n rows, d columns, k = min(n, d).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conditioned_attention._precision import exact


@dataclass(frozen=True)
class Spectrum:
    """Singular values σ₁ ≥ … ≥ σ_k of a batch of matrices, and numbers derived from them.

    Everything is float64, (...) unless stated otherwise, and NaN for a matrix with an entry that is not finite.

    Attributes:
        singular_values: (..., k), float64, descending.
        resolution: the largest κ that can be distinguished from infinity, ``1 / (max(n, d) · eps)`` with the machine
            precision ``eps`` of the dtype in which the matrices were given: a singular value below ``σ₁ / resolution``
            is rounding error.  About 4e4 for a 197 × 64 head in float32.

    >>> import torch
    >>> from conditioned_attention.measure import spectrum
    >>> found = spectrum(torch.diag(torch.tensor([4.0, 2.0, 1.0])))
    >>> found.singular_values.tolist(), found.kappa.item(), found.full_rank.item()
    ([4.0, 2.0, 1.0], 4.0, True)
    """

    singular_values: Tensor
    resolution: float

    @property
    def sigma_max(self) -> Tensor:
        """σ₁, the spectral norm."""
        return self.singular_values[..., 0]

    @property
    def sigma_min(self) -> Tensor:
        """σ_k as it was computed, even where it cannot be distinguished from rounding error."""
        return self.singular_values[..., -1]

    @property
    def full_rank(self) -> Tensor:
        """Whether σ_k can be distinguished from rounding error; False where it is NaN."""
        return self.sigma_min * self.resolution > self.sigma_max

    @property
    def kappa(self) -> Tensor:
        """κ = σ₁ / σ_k (Definition 4.1); ``inf`` at the numerical floor and for a zero matrix."""
        return self._unless_at_floor(self.sigma_max / self.sigma_min)

    @property
    def log_mu(self) -> Tensor:
        """The logarithm of μ = 2 / (σ₁ … σ_k) · (‖A‖_F / √k)^k (equation 10); ``inf`` where κ is."""
        k = self.singular_values.shape[-1]
        # relative to σ₁, so that neither the squares nor the product can overflow
        ratios = self.singular_values / self.singular_values[..., :1]
        log_mu = math.log(2.0) + 0.5 * k * ratios.square().mean(-1).log() - ratios.log().sum(-1)
        return self._unless_at_floor(log_mu)

    @property
    def stable_rank(self) -> Tensor:
        """‖A‖_F² / σ₁²: from 1 to k, and never more than the rank; 0 for a zero matrix."""
        return (self.singular_values / _nonzero(self.singular_values[..., :1])).square().sum(-1)

    @property
    def effective_rank(self) -> Tensor:
        """The exponential of the entropy of σ_i / Σσ (Roy and Vetterli, 2007): from 1 to k; 0 for a zero matrix."""
        shares = self.singular_values / _nonzero(self.singular_values.sum(-1, keepdim=True))
        entropy: Tensor = torch.special.entr(shares).sum(-1)
        return torch.where(self.sigma_max == 0, 0.0, entropy.exp())

    def _unless_at_floor(self, values: Tensor) -> Tensor:
        return torch.where(self.full_rank, values, math.inf).where(~self.sigma_max.isnan(), math.nan)


def _nonzero(values: Tensor) -> Tensor:
    return torch.where(values == 0, 1.0, values)


def spectrum(matrix: Tensor) -> Spectrum:
    """Computes the singular values of a batch of matrices, in float64.

    It takes (..., n, d) as `condition_number` does, and raises the same errors.  For thousands of rows and columns use
    `conditioned_attention.measure.numbers.randomised.estimate_condition`.

    >>> import torch
    >>> from conditioned_attention.measure import spectrum
    >>> found = spectrum(torch.diag(torch.tensor([2.0, 2.0, 1.0])))
    >>> found.kappa.item(), found.stable_rank.item(), round(found.effective_rank.item(), 3)
    (2.0, 2.25, 2.872)
    """
    check_floats("matrix", matrix)
    if matrix.dim() < 2 or 0 in matrix.shape[-2:]:
        raise ValueError(f"matrix must be (..., n, d) with n and d at least 1, got shape {tuple(matrix.shape)}")
    numbers = exact(matrix.detach())
    # A matrix that is not finite would make the decomposition of the whole batch fail.
    finite = numbers.isfinite().all(-1).all(-1)
    clean = torch.where(finite[..., None, None], numbers, 0.0)
    # By decomposition, and not by the eigenvalues of AᵀA: those square κ, and were hardly faster (docs/monitoring.md).
    values = torch.linalg.svdvals(clean).where(finite[..., None], math.nan)
    return Spectrum(values, resolution(matrix))


def check_floats(name: str, value: Any) -> None:
    """Raises TypeError for anything but a tensor of floating-point numbers."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        what = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {what}")


def resolution(matrix: Tensor) -> float:
    """The largest κ that can be distinguished from infinity for matrices of this size and dtype."""
    return 1 / (max(matrix.shape[-2:]) * torch.finfo(matrix.dtype).eps)


def condition_number(matrix: Tensor) -> Tensor:
    """Computes the condition number ``κ(A) = σ₁ / σ_k`` with ``k = min(n, d)`` (Definition 4.1 of arXiv 2603.27153).

    Singular values are computed in float64, but a matrix of lower precision carries its own rounding error: where
    ``σ_k ≤ σ₁ · max(n, d) · eps``, with the machine precision eps of the matrix's dtype, the smallest singular value
    cannot be distinguished from rounding error, and κ is ``inf``.  This numerical floor is about 4e4 for a 197 × 64
    head in float32, and most bfloat16 heads give nothing but ``inf``: measure in float32.

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
    return spectrum(matrix).kappa


def log_complexity(matrix: Tensor) -> Tensor:
    """Computes ``log μ(A)`` with ``μ(A) = 2 / (σ₁ … σ_k) · (‖A‖_F / √k)^k``, an upper bound on κ (equation (10)).

    It is the logarithm because μ itself overflows: its exponent grows with k.  By Theorem 4.4, scaling the rows to unit
    length does not raise it **if n ≤ d**; for n > d it may.

    It takes (..., n, d) as `condition_number` does, and raises the same errors.  The result is (...), float64, the
    natural logarithm, with ``inf`` and ``nan`` in the same places.

    >>> import torch
    >>> from conditioned_attention import log_complexity
    >>> log_complexity(3 * torch.eye(4)).exp()  # 2, the least there is, for any multiple of an orthogonal matrix
    tensor(2., dtype=torch.float64)
    """
    return spectrum(matrix).log_mu
