"""A refinement of C for heads with more rows than columns, where Theorem 4.4 fails: the D-optimal design of the rows.

This is the library's own research, found in no paper on attention, and is off by default.  With unit rows u_i and
weights p that sum to 1, the matrix diag(√(n p)) U has the complexity measure log μ = const - ½ log det M with
M = Uᵀ diag(p) U.  Uniform p gives C; the p with the smallest μ is what statistics calls a D-optimal design.
docs/mathematics.md has the proofs.

Shapes: n rows (queries), d columns (head width), B batch, H heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from conditioned_attention.preconditioner import HeadTransform, RowNorm, check_positive, row_norm

# Added to M, whose trace is 1: directions in which the rows have a singular value below 1e-6 √n count as absent.  Any
# float32 head has rounding of that size, and Cholesky's own in float64 is about d · 1e-16.
_RIDGE = 1e-12


def d_optimal_weights(output: Tensor, steps: int, *, eps: float = 1e-6) -> Tensor:
    """Computes weights p of a head's rows with which ``diag(√(n p)) · C · output`` has a smaller complexity measure μ.

    Each step is ``p_i ← p_i · u_iᵀ M⁻¹ u_i / k`` with unit rows u_i and ``M = Uᵀ diag(p) U``, from uniform p, which is
    the paper's C: the multiplicative algorithm for D-optimal designs (Silvey, Titterington and Torsney 1978).  No step
    raises μ, and every step that changes p lowers it (docs/mathematics.md).

    If the rows do not span all d columns, M is singular and μ infinite; M + 1e-12 I replaces it, and the steps lower
    the same product over the directions that exist.  So a singular value below 1e-6 √n counts as absent, and μ itself
    is certain to fall only if κ is well below 1e6.  For n ≤ d uniform weights are already optimal, and are returned as
    they are.  A zero row has no direction: it keeps the weight 1/n, so that its factor is 1 as in C, and the others
    share the rest.

    Args:
        output: (..., n, d), heads; any floating-point dtype.  Everything is computed in float64.
        steps: number of steps, 0 or more.
        eps: the smallest row norm that is divided by.

    Returns:
        (..., n), float64: not negative, with sum 1; no gradient flows through them.  NaN for a head that is not
        finite.

    Raises:
        TypeError: not a floating-point tensor, or ``steps`` not an integer.
        ValueError: fewer than two dimensions, or nothing in the last two; ``steps`` below 0; ``eps`` out of range.

    >>> import torch
    >>> from conditioned_attention.d_optimal import d_optimal_weights
    >>> head = torch.tensor([[1.0, 0.0], [0.0, 0.7], [0.0, 0.7]])  # one row in one direction, two in the other
    >>> d_optimal_weights(head, steps=1)
    tensor([0.5000, 0.2500, 0.2500], dtype=torch.float64)
    """
    if not isinstance(output, Tensor) or not output.is_floating_point():
        what = output.dtype if isinstance(output, Tensor) else type(output).__name__
        raise TypeError(f"output must be a floating-point tensor, got {what}")
    if output.dim() < 2 or 0 in output.shape[-2:]:
        raise ValueError(f"output must be (..., n, d) with n and d at least 1, got shape {tuple(output.shape)}")
    check_steps(steps)
    check_positive("eps", eps)
    n, d = output.shape[-2:]
    output = output.detach()
    p = output.new_full(output.shape[:-1], 1 / n, dtype=torch.float64)
    if n > d and steps > 0:
        unit = output.double() / row_norm(output.double(), eps)
        for _ in range(steps):
            p = _step(unit, p)
    return torch.where(output.isfinite().all(-1).all(-1, keepdim=True), p, math.nan)


def _step(unit: Tensor, p: Tensor) -> Tensor:
    """p (..., n) after one step, for unit rows (..., n, d)."""
    ridge = _RIDGE * torch.eye(unit.shape[-1], dtype=unit.dtype, device=unit.device)
    root, _ = torch.linalg.cholesky_ex(unit.mT @ (p.unsqueeze(-1) * unit) + ridge)
    # u_iᵀ M⁻¹ u_i is the square of row i of U L⁻ᵀ, where M = L Lᵀ
    leverage = p * torch.linalg.solve_triangular(root.mT, unit, upper=True, left=False).square().sum(-1)
    zero = leverage == 0
    rest = 1 - torch.where(zero, p, 0.0).sum(-1, keepdim=True)
    return torch.where(zero, p, rest * (leverage / leverage.sum(-1, keepdim=True)))


def check_steps(steps: int) -> None:
    """Raises unless ``steps`` is a whole number of steps, 0 or more."""
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"steps must be an integer, got {type(steps).__name__}")
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}")


@dataclass(frozen=True)
class DOptimal(HeadTransform):
    """``output -> diag(√(n p)) · C · output`` with p from `d_optimal_weights`; no gradient flows through the factors.

    With 0 steps, and for heads with no more rows than columns, it is the preconditioner.  **A row's factor depends on
    the other rows**: under a causal mask later tokens would change earlier ones, and padded rows count.  Attention
    that is known to be causal or masked is therefore refused.

    Args:
        steps: number of steps of `d_optimal_weights`.
        eps: smallest row norm that is divided by; float16 uses at least 6.1e-5.
    """

    steps: int = 1
    eps: float = 1e-6

    kind: ClassVar[str] = "d_optimal"

    def __post_init__(self) -> None:
        check_steps(self.steps)
        check_positive("eps", self.eps)

    @property
    def mixes_rows(self) -> bool:
        return True

    def __call__(self, output: Tensor, weights: Tensor | None = None) -> Tensor:
        if output.is_nested:
            raise ValueError(f"{self} is not available for nested tensors: take one sequence at a time")
        eps = RowNorm(eps=self.eps).floor(output.dtype)
        norm = row_norm(output, eps)
        factor = (d_optimal_weights(output, self.steps, eps=eps) * output.shape[-2]).sqrt().unsqueeze(-1)
        return (output / norm * factor.to(norm.dtype)).to(output.dtype)
