"""κ of one large matrix, estimated from a random start, with an interval that holds with a stated probability.

A singular value decomposition of thousands of rows and columns takes minutes; one QR and some dozens of products take
seconds.  σ₁² is the largest eigenvalue of RᵀR and 1/σ_k² that of (RᵀR)⁻¹; Lanczos finds both.

Shapes: n rows, d columns, k = min(n, d).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from conditioned_attention.measure.numbers.lanczos import lanczos
from conditioned_attention.measure.numbers.spectra import check_floats, resolution


@dataclass(frozen=True)
class ConditionEstimate:
    """What `estimate_condition` found: with probability ``1 - failure`` every value lies in its interval.

    Attributes:
        kappa: the estimate of κ, and the lower end of its interval; ``inf`` at the floor of the matrix's dtype.
        kappa_high: the upper end.
        sigma_max: the estimate of σ₁, and the lower end of its interval; the upper one is higher by ``tolerance``.
        sigma_min: the estimate of σ_k, and the upper end of its interval; the lower one is lower by ``tolerance``.
        log_mu: log μ (equation 10), from the diagonal of R and so not estimated.
        stable_rank: ‖A‖_F² / σ₁², the upper end of its interval.
        failure: the probability that an interval misses.
        steps: the number of Lanczos steps for each end of the spectrum.
    """

    kappa: float
    kappa_high: float
    sigma_max: float
    sigma_min: float
    log_mu: float
    stable_rank: float
    failure: float
    steps: int


def estimate_condition(
    matrix: Tensor, *, tolerance: float = 0.01, failure: float = 1e-3, seed: int = 0
) -> ConditionEstimate:
    """Estimates κ of a matrix with thousands of rows and columns within a factor ``1 + tolerance``, in float64.

    For a positive definite matrix of size k and a start that is uniform on the sphere, Lanczos misses the largest
    eigenvalue by more than the share ε after m steps with a probability of at most ``1.648 √k exp(-√ε (2m - 1))``
    (Kuczyński and Woźniakowski, 1992, theorem 4.2).  The number of steps is what this requires for both ends: 63 at a
    tolerance of 1 % and k = 4096.

    Args:
        matrix: (n, d), floating point and finite.  For batches of small matrices use `condition_number`.
        tolerance: κ lies between the estimate and ``(1 + tolerance)`` times it.
        failure: the probability with which it may lie elsewhere, whatever the matrix is.
        seed: the seed of the random starts.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: not one matrix, an entry that is not finite, or a tolerance or probability outside (0, 1).

    >>> import torch
    >>> found = estimate_condition(torch.diag(torch.linspace(1, 50, 300)))
    >>> found.kappa <= 50.0 <= found.kappa_high
    True
    """
    _check(matrix, tolerance, failure)
    values = matrix.detach().double()
    tall = values if values.shape[0] >= values.shape[1] else values.mT
    k = tall.shape[1]
    norm = torch.linalg.matrix_norm(tall).item()
    if norm == 0:
        return ConditionEstimate(math.inf, math.inf, 0.0, 0.0, math.inf, math.nan, 0.0, 0)
    r = torch.linalg.qr(tall / norm, mode="r").R
    # κ is a quotient of two estimates: each may miss by half, which for σ² is the share 1 - (1 + tolerance)⁻¹.
    share = 1 - 1 / (1 + tolerance)
    steps = min(k, _steps(k, share, failure / 2))
    # Uniform on the sphere, as the theorem requires, once they have been scaled to unit length.
    generator = torch.Generator().manual_seed(seed)
    starts = [torch.randn(k, dtype=torch.float64, generator=generator).to(r.device) for _ in range(2)]
    # Of Rᵀ, so that the start is one for RᵀR, which the theorem is about.  Bidiagonalisation takes the same products as
    # Lanczos on RᵀR would and never squares κ; its estimate is no smaller, so that the bound holds for it.
    largest = lanczos(lambda v: r.mT @ v, lambda u: r @ u, starts[0], steps)[0].item()
    smallest = _smallest(r, steps, starts[1])
    told = smallest * resolution(matrix) > largest
    kappa = largest / smallest if told else math.inf
    logs = r.diagonal().abs().log()
    log_mu = math.log(2) - k / 2 * math.log(k) - logs.sum().item() if told else math.inf  # ‖R‖_F is 1
    return ConditionEstimate(
        kappa, kappa * (1 + tolerance), largest * norm, smallest * norm, log_mu, 1 / largest**2, failure, steps
    )


def _steps(k: int, share: float, failure: float) -> int:
    """How many Lanczos steps are needed to find the largest of k eigenvalues to within ``share``.

    They miss it by more with a probability of at most ``failure``.
    """
    return math.ceil((math.log(1.648 * math.sqrt(k) / failure) / math.sqrt(share) + 1) / 2)


def _smallest(r: Tensor, steps: int, start: Tensor) -> float:
    """σ_k of an upper triangular matrix; 0 where R cannot be inverted."""
    if (r.diagonal() == 0).any():
        return 0.0

    def solve(matrix: Tensor, x: Tensor, upper: bool) -> Tensor:
        solved: Tensor = torch.linalg.solve_triangular(matrix, x[:, None], upper=upper)
        return solved[:, 0]

    try:
        inverse = lanczos(lambda v: solve(r, v, True), lambda u: solve(r.mT, u, False), start, steps)
    except ArithmeticError:  # a number in R⁻¹ is beyond float64
        return 0.0
    return 1 / inverse[0].item()


def _check(matrix: Tensor, tolerance: float, failure: float) -> None:
    check_floats("matrix", matrix)
    if matrix.dim() != 2 or 0 in matrix.shape:
        raise ValueError(f"matrix must be (n, d) with n and d at least 1, got shape {tuple(matrix.shape)}")
    if not matrix.isfinite().all():
        raise ValueError("matrix has entries that are not finite")
    for name, value in {"tolerance": tolerance, "failure": failure}.items():
        if not 0 < value < 1:
            raise ValueError(f"{name} must be between 0 and 1, got {value}")
