"""The claims of arXiv 2603.27153 about κ and μ of attention, as functions; docs/mathematics.md has the proofs.

Shapes: n rows (queries), m keys, d columns (head width), k = min(n, d).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from conditioned_attention.measure.numbers.spectra import check_floats, condition_number, log_complexity
from conditioned_attention.preconditioner import RowNorm


def complexity_slack(matrix: Tensor) -> Tensor:
    """``log μ(A) - log κ(A)``, never negative by Theorem 4.2 (Guggenheimer, Edelman and Johnson 1995): κ ≤ μ.

    It takes (..., n, d) as `condition_number` does, and raises the same errors.  The result is (...), float64, the
    natural logarithm, ``nan`` where κ and μ are infinite.

    >>> import torch
    >>> complexity_slack(torch.eye(4)).exp()  # μ = 2, κ = 1
    tensor(2., dtype=torch.float64)
    """
    return log_complexity(matrix) - condition_number(matrix).log()


def log_attention_bound(output: Tensor, value: Tensor) -> Tensor:
    """Logarithm of the bound of Theorem 4.3: ``2 / (σ₁ … σ_k) · (√n ‖v‖_F / √k)^k`` for a head A = softmax(q kᵀ) v.

    The bound is μ(A) with √n ‖v‖_F in place of ‖A‖_F, which is no smaller by Lemma A.1, ‖softmax(·)‖_F ≤ √n; so it is
    no less than μ(A) and κ(A).  The lemma does not cover weights after dropout, which do not sum to 1.

    It takes ``output`` A, (..., n, d), and ``value`` v, (..., m, d), floating point, with leading dimensions that
    broadcast.  It raises TypeError for other tensors, and ValueError for an empty matrix or widths that differ.  The
    result is (...), float64, the natural logarithm, ``inf`` and ``nan`` where `log_complexity` of A is.

    >>> import torch
    >>> from conditioned_attention import log_complexity
    >>> q, k, v = torch.randn(3, 10, 4)
    >>> head = torch.softmax(q @ k.T / 2, dim=-1) @ v
    >>> bool(log_attention_bound(head, v) >= log_complexity(head))
    True
    """
    log_mu = log_complexity(output)
    check_floats("value", value)
    n, d = output.shape[-2:]
    if value.dim() < 2 or value.shape[-1] != d:
        raise ValueError(f"value must be (..., m, {d}) as output is {tuple(output.shape)}, got {tuple(value.shape)}")
    norm, bound = (torch.linalg.matrix_norm(matrix.detach().double()) for matrix in (output, value))
    larger: Tensor = min(n, d) * (0.5 * math.log(n) + bound.log() - norm.log())
    return log_mu + larger


def never_raises_complexity(n: int, d: int) -> bool:
    """Whether μ(CA) ≤ μ(A) for every n × d matrix A: True if n ≤ d, the condition that Theorem 4.4 leaves out.

    For n > d, C raises μ and κ of some matrices and lowers μ of others: see `complexity_change`.  Raises ValueError
    for a size below 1.

    >>> never_raises_complexity(64, 64), never_raises_complexity(197, 64)  # tokens, head width
    (True, False)
    """
    if min(n, d) < 1:
        raise ValueError(f"n and d must be at least 1, got {n} and {d}")
    return n <= d


def complexity_change(matrix: Tensor, *, eps: float = 1e-6) -> Tensor:
    """``log μ(CA) - log μ(A)``: below 0 where C does what Theorem 4.4 promises.

    For n ≤ d it is ``Σ log ‖A_i‖ - n/2 · log(‖A‖_F² / n)`` and depends on the norms of the rows alone: never above 0 by
    the inequality of arithmetic and geometric means, and 0 for rows of equal length.

    It takes (..., n, d) as `condition_number` does, and raises the same errors; ``eps`` is the smallest row norm that C
    divides by (ValueError if out of range).  The result is (...), float64, the natural logarithm, ``nan`` where μ is
    infinite before and after.

    >>> import torch
    >>> head = torch.tensor([[1.0, 0.0], [0.0, 0.5**0.5], [0.0, 0.5**0.5]])
    >>> round(complexity_change(head).exp().item(), 4)  # 3 rows, 2 columns: μ rises by 6 %
    1.0607
    """
    before = log_complexity(matrix)  # checks it
    return log_complexity(RowNorm(eps=eps)(matrix.detach())) - before


def preconditioner_flops(n: int, d: int, heads: int = 1) -> int:
    """The operations that computing C takes in a layer: n (2 d + h), equation (20); for one head see equation (19).

    Per row of width d/h that is d/h multiplications, d/h - 1 additions, a square root and a division.  **Multiplying
    by C takes n · d more**, which section 4.3 leaves out: `application_flops`.

    It is for n tokens and a layer of width d, all h heads together.  Raises ValueError for a size below 1, or an h that
    does not divide d.

    >>> preconditioner_flops(197, 768, heads=12)  # a layer of ViT-B
    304956
    """
    _check_sizes(n, d, heads)
    return n * (2 * d + heads)


def application_flops(n: int, d: int) -> int:
    """The multiplications that C · A takes in a layer of width d, all heads together: n d.

    >>> application_flops(197, 768)
    151296
    """
    _check_sizes(n, d)
    return n * d


def attention_flops(n: int, d: int) -> int:
    """The multiplications and additions of the two matrix products of attention in a layer of width d: 4 n² d.

    The softmax, some five operations for each of h n² weights, and the projections, 8 n d², are not counted.

    >>> attention_flops(197, 768)
    119221248
    """
    _check_sizes(n, d)
    return 4 * n * n * d


def _check_sizes(n: int, d: int, heads: int = 1) -> None:
    if min(n, d, heads) < 1 or d % heads:
        raise ValueError(f"n, d and heads must be at least 1, and heads divide d, got {n}, {d} and {heads}")
