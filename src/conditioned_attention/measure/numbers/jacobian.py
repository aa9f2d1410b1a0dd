"""The Jacobian of an attention head with respect to W_Q, W_K and W_V, and its condition number (arXiv 2603.07162).

For a head A = P X W_Vᵀ with P = softmax(s X W_Qᵀ W_K Xᵀ), token i changes with the weights by

    dA_i = M_i dW_Q x_i + N_i dW_Kᵀ q_i + dW_V (P X)_i
    M_i = s Vᵀ Λ_i K,   N_i = s Vᵀ Λ_i X,   Λ_i = diag(p_i) - p_i p_iᵀ

So every part of J has rows B_i ⊗ a_iᵀ, and J v and Jᵀ u need nothing larger than B and a: J itself, n·e × d·D, need
not be built.  The weights of a head affect only that head's output, so the singular values of a layer are those of its
heads together.

Shapes: n tokens, D features, d head width, e value width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from conditioned_attention.measure.numbers.lanczos import lanczos

WRT = ("query", "key", "value")
METHODS = ("auto", "svd", "gram", "lanczos")

_LARGEST_SVD = 1 << 23  # numbers in J: 64 MiB, seconds on a CPU
_LARGEST_GRAM = 4096  # rows of J: 128 MiB for J Jᵀ, seconds on a CPU


@dataclass(frozen=True)
class JacobianCondition:
    """κ of the Jacobian of a head.

    Attributes:
        kappa: ``largest / smallest``.
        largest: the largest singular value.
        smallest: the smallest one that can be distinguished from 0.
        zeros: how many of the min(rows, columns) singular values cannot be; None if they were not all computed.
        exact: False after Lanczos: κ is then a lower bound, because the smallest value that it finds is too large until
            it has converged.
    """

    kappa: float
    largest: float
    smallest: float
    zeros: int | None
    exact: bool


def jacobian_condition(
    x: Tensor,
    w_q: Tensor,
    w_k: Tensor,
    w_v: Tensor,
    *,
    wrt: str | Sequence[str] = WRT,
    is_causal: bool = False,
    scale: float | None = None,
    method: str = "auto",
    steps: int = 300,
) -> JacobianCondition:
    """Computes κ of the Jacobian of one attention head with respect to its weights; all arithmetic is in float64.

    Zero singular values are left out and counted.  J has them by nature, because (W_Q S, W_K S⁻ᵀ) gives the same logits
    for every S, and the first token of a causal head attends to itself whatever W_Q and W_K are.

    Args:
        x: (n, D), the tokens that go into attention.
        w_q, w_k, w_v: (d, D), (d, D) and (e, D), the rows of one head.  A bias is one more column of a weight, for a
            feature of x that is 1; the paper has none.
        wrt: with respect to which weights: ``"query"``, ``"key"`` or ``"value"``, or several together as in the paper.
        is_causal: whether tokens attend only to themselves and those before them.
        scale: s, default 1 / √d.
        method: ``"svd"`` decomposes J; ``"gram"`` decomposes J Jᵀ, which resolves κ up to 1e7; ``"lanczos"`` takes
            ``steps`` products with J and Jᵀ and gives a lower bound of κ; ``"auto"`` takes the first of these for which
            J is small enough.
        steps: the number of Lanczos steps.

    Raises:
        TypeError: something that is not a tensor of real numbers.
        ValueError: shapes that do not fit, an unknown option, or ``steps`` below 1.

    >>> import torch
    >>> x, (w_q, w_k, w_v) = torch.randn(5, 12), torch.randn(3, 4, 12)
    >>> jacobian_condition(x, w_q, w_k, w_v, wrt="value").zeros
    0
    """
    names = _names(wrt)
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; valid are {METHODS}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    x, w_q, w_k, w_v = _checked(x, w_q, w_k, w_v)
    parts = _parts(x, w_q, w_k, w_v, is_causal, 1 / math.sqrt(w_q.shape[0]) if scale is None else scale)
    chosen = [parts[name] for name in names]
    rows, columns = x.shape[0] * w_v.shape[0], sum(part.columns for part in chosen)
    if method == "auto":
        method = "svd" if rows * columns <= _LARGEST_SVD else "gram" if rows <= _LARGEST_GRAM else "lanczos"
    if method == "svd":
        return _condition(torch.linalg.svdvals(torch.cat([p.dense() for p in chosen], dim=1)), max(rows, columns))
    if method == "gram":
        squares = torch.linalg.eigvalsh(torch.stack([p.gram() for p in chosen]).sum(0)).flip(0)
        values = squares[: min(rows, columns)].clamp_min(0).sqrt()
        return _condition(values, max(rows, columns), precision=0.5)
    found = _condition(_by_lanczos(chosen, rows, min(steps, rows, columns)), max(rows, columns))
    return JacobianCondition(found.kappa, found.largest, found.smallest, None, exact=False)


def jacobian_bound(
    x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, *, is_causal: bool = False, scale: float | None = None
) -> float:
    """The right side of Theorem 3.4: κ(X)³ κ(Λ) κ(W_V) (κ(W_Q) + κ(W_K)) + κ(X) κ(P), Λ the derivative of the softmax.

    Λ_i = diag(p_i) - p_i p_iᵀ has the eigenvector (1, …, 1) with eigenvalue 0, so that κ(Λ) and the bound, as they are
    written, are infinite.  Here, as in `jacobian_condition`, zero singular values of every matrix are left out.  The
    result is then not a bound: with W_V → c W_V two of the three parts of J grow c-fold, and κ(J) with them, while this
    stays the same.  The arguments are those of `jacobian_condition`.
    """
    x, w_q, w_k, w_v = _checked(x, w_q, w_k, w_v)
    p = _weights(x @ w_q.t(), x @ w_k.t(), is_causal, 1 / math.sqrt(w_q.shape[0]) if scale is None else scale)
    derivatives = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    blocks = torch.linalg.svdvals(derivatives).flatten().sort(descending=True).values
    softmax = _condition(blocks, x.shape[0], subtracted=1.0).kappa
    kappa = {
        name: _condition(torch.linalg.svdvals(m), max(m.shape)).kappa
        for name, m in {"x": x, "p": p, "q": w_q, "k": w_k, "v": w_v}.items()
    }
    return kappa["x"] ** 3 * softmax * kappa["v"] * (kappa["q"] + kappa["k"]) + kappa["x"] * kappa["p"]


@dataclass(frozen=True)
class _Part:
    """Columns of J: row block i is B_i ⊗ a_iᵀ, for B (n, e, p) and a (n, q); they belong to a matrix (p, q)."""

    blocks: Tensor
    vectors: Tensor

    @property
    def columns(self) -> int:
        return self.blocks.shape[2] * self.vectors.shape[1]

    def dense(self) -> Tensor:
        """(n e, p q)."""
        return torch.einsum("iap,iq->iapq", self.blocks, self.vectors).flatten(2).flatten(0, 1)

    def gram(self) -> Tensor:
        """J Jᵀ, (n e, n e): blocks (a_i · a_j) B_i B_jᵀ."""
        flat = self.blocks.flatten(0, 1)
        e = self.blocks.shape[1]
        weights = (self.vectors @ self.vectors.t()).repeat_interleave(e, 0).repeat_interleave(e, 1)
        return (flat @ flat.t()).mul_(weights)

    def apply(self, v: Tensor) -> Tensor:
        """J v for v (p q), as (n e)."""
        moved = self.vectors @ v.view(self.blocks.shape[2], -1).t()  # (n, p)
        return torch.einsum("iap,ip->ia", self.blocks, moved).flatten()

    def transposed(self, u: Tensor) -> Tensor:
        """Jᵀ u for u (n e), as (p q)."""
        n, e, _ = self.blocks.shape
        moved = torch.bmm(u.view(n, 1, e), self.blocks).squeeze(1)  # einsum would take four times as long
        return (moved.t() @ self.vectors).flatten()


def _parts(x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, is_causal: bool, scale: float) -> dict[str, _Part]:
    q, k, v = x @ w_q.t(), x @ w_k.t(), x @ w_v.t()
    p = _weights(q, k, is_causal, scale)

    def through_softmax(right: Tensor) -> Tensor:
        """s Vᵀ Λ_i right for every i: the covariance of v and ``right`` under p_i."""
        # both minus their means, because E[vr] - E[v]E[r] is nothing but rounding error where attention is sharp
        means = zip(p, p @ v, p @ right)
        return scale * torch.stack([(p_i * (v - of_v).t()) @ (right - of_right) for p_i, of_v, of_right in means])

    identity = torch.eye(w_v.shape[0], dtype=x.dtype, device=x.device).expand(x.shape[0], -1, -1)
    return {"query": _Part(through_softmax(k), x), "key": _Part(through_softmax(x), q), "value": _Part(identity, p @ x)}


def _weights(q: Tensor, k: Tensor, is_causal: bool, scale: float) -> Tensor:
    logits = scale * q @ k.t()
    if is_causal:
        logits = logits.masked_fill(~torch.ones_like(logits, dtype=torch.bool).tril(), -math.inf)
    return logits.softmax(dim=-1)


def _by_lanczos(parts: Sequence[_Part], rows: int, steps: int) -> Tensor:
    sizes = [part.columns for part in parts]

    def times(v: Tensor) -> Tensor:
        return torch.stack([part.apply(piece) for part, piece in zip(parts, v.split(sizes))]).sum(0)

    def transposed_times(u: Tensor) -> Tensor:
        return torch.cat([part.transposed(u) for part in parts])

    start = torch.randn(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return lanczos(times, transposed_times, start.to(parts[0].blocks.device), steps)


def _condition(values: Tensor, size: int, precision: float = 1.0, subtracted: float = 0.0) -> JacobianCondition:
    """The result from singular values in descending order.

    ``precision`` is ½ if they are roots of eigenvalues.  If the matrix is a difference of numbers that may be larger
    than its own, ``subtracted`` is their size.
    """
    floor = max(float(values[0]), subtracted) * (size * torch.finfo(torch.float64).eps) ** precision
    kept = values[values > floor]
    if len(kept) == 0:
        return JacobianCondition(math.inf, float(values[0]), 0.0, len(values), exact=True)
    largest, smallest = float(kept[0]), float(kept[-1])
    return JacobianCondition(largest / smallest, largest, smallest, len(values) - len(kept), exact=True)


def _names(wrt: str | Sequence[str]) -> list[str]:
    names = [wrt] if isinstance(wrt, str) else list(wrt)
    if unknown := [name for name in names if name not in WRT]:
        raise ValueError(f"wrt={unknown[0]!r} is unknown; valid are {WRT}")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"wrt must name at least one of {WRT}, each once; got {names}")
    return names


def _checked(x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor) -> list[Tensor]:
    for name, matrix in (("x", x), ("w_q", w_q), ("w_k", w_k), ("w_v", w_v)):
        if not isinstance(matrix, Tensor) or matrix.is_complex():
            what = matrix.dtype if isinstance(matrix, Tensor) else type(matrix).__name__
            raise TypeError(f"{name} must be a tensor of real numbers, got {what}")
        if matrix.dim() != 2 or 0 in matrix.shape:
            raise ValueError(f"{name} must be a matrix, got shape {tuple(matrix.shape)}")
        if matrix.shape[1] != x.shape[1]:
            raise ValueError(f"{name} has {matrix.shape[1]} columns, and x {x.shape[1]}: they must be equal")
    if w_q.shape != w_k.shape:
        raise ValueError(f"w_q and w_k must have one shape, got {tuple(w_q.shape)} and {tuple(w_k.shape)}")
    return [tensor.detach().double() for tensor in (x, w_q, w_k, w_v)]
