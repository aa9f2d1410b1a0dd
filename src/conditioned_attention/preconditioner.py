"""The idea: the rows of an attention head -> one factor a row.

``C = diag(1 / ‖row‖₂)`` (arXiv 2603.27153, Theorem 4.4) is defined here and nowhere else.  Whatever multiplies
attention heads, a fused kernel or a converted model, takes C, its ``eps`` and its stopped gradient from this file.

Shapes: B batch, H heads, N queries, M keys, D head width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

ROWS = ("output", "weights")
GRADIENTS = ("stopped", "through")

# Attribute of an attention module that holds its transform.  Plain data: no key of the state_dict.
TRANSFORM = "_head_transform"

# Below its smallest normal number float16 keeps fewer and fewer bits, so a row norm there is mostly rounding.
_FLOAT16_EPS = 6.1e-5


class HeadTransform(ABC):
    """What is done to an attention head's output before the output projection.

    The row norm (`RowNorm`) is one; every control of a comparison is another.  Instances are small immutable values:
    they are stored on the attention modules they act on, and travel with ``deepcopy`` and ``pickle``.
    """

    kind: ClassVar[str]

    @property
    def needs_weights(self) -> bool:
        """True if the transform reads the attention weights, which fused attention never builds."""
        return False

    @abstractmethod
    def __call__(self, output: Tensor, weights: Tensor | None = None) -> Tensor:
        """Maps head outputs (B, H, N, D) to head outputs; ``weights`` (B, H, N, M) come only if needed."""


@dataclass(frozen=True)
class RowNorm(HeadTransform):
    """``output -> C · output`` with ``C_ii = 1 / max(‖row_i‖, eps)``, and ``C_ii = 1`` where the row is zero.

    Args:
        rows: whose rows set C: ``"output"`` (Theorem 4.4, section 4.3 of the paper) or ``"weights"`` (Algorithm 1
            read literally: the rows of ``softmax(q kᵀ)``).
        gradient: ``"stopped"`` treats C as a constant in backward, as the paper does; ``"through"`` gives the
            ordinary derivative of the normalisation.
        eps: smallest row norm that is divided by, in units of the head output.  float16 uses at least 6.1e-5.
    """

    rows: str = "output"
    gradient: str = "stopped"
    eps: float = 1e-6

    kind: ClassVar[str] = "row_norm"

    def __post_init__(self) -> None:
        if self.rows not in ROWS:
            raise ValueError(f"rows={self.rows!r} is unknown; valid are {ROWS}")
        if self.gradient not in GRADIENTS:
            raise ValueError(f"gradient={self.gradient!r} is unknown; valid are {GRADIENTS}")
        check_eps(self.eps)

    @property
    def needs_weights(self) -> bool:
        return self.rows == "weights"

    def __call__(self, output: Tensor, weights: Tensor | None = None) -> Tensor:
        if self.rows == "weights":
            if weights is None:
                raise ValueError("rows='weights' needs the attention weights, and none were given")
            source = weights
        else:
            source = output
        eps = max(self.eps, _FLOAT16_EPS) if output.dtype == torch.float16 else self.eps
        scale = row_scale(source, eps, gradient=self.gradient)
        # A half-precision output meets a float32 scale, so the product is taken in float32 and rounded once.
        return (output * scale).to(output.dtype)


def check_eps(eps: float) -> None:
    """Raises unless ``eps`` is a positive, finite number."""
    if isinstance(eps, bool) or not isinstance(eps, (int, float)):
        raise TypeError(f"eps must be a number, got {type(eps).__name__}")
    if not 0.0 < eps < math.inf:
        raise ValueError(f"eps must be positive and finite, got {eps}")


def row_scale(rows: Tensor, eps: float, *, gradient: str = "stopped") -> Tensor:
    """The diagonal of C for rows (..., N, D), as (..., N, 1); float32, or float64 for float64 rows.

    A row of exactly zero (a fully masked query, a zero-initialised W_V) gets 1: it stays zero in forward and sends
    back what plain attention would, where 1/eps would make the first gradient a million times too large.
    Squares are summed in float32, so entries below about 1e-23 count as zero and rows above about 1e19 overflow.
    """
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    source = rows.detach() if gradient == "stopped" else rows
    if rows.is_nested:  # jagged tensors have no vector_norm, and their sum no backward
        if gradient == "through":
            raise ValueError("gradient='through' is not available for nested tensors; use 'stopped' or pad them")
        norm = source.to(dtype).square().sum(-1, keepdim=True).sqrt()
    else:
        norm = torch.linalg.vector_norm(source, dim=-1, keepdim=True, dtype=dtype)
    # clamp_min passes no gradient below eps and vector_norm none at zero: exactly "nothing removed below eps".
    return torch.where(norm == 0, 1.0, norm.clamp_min(eps).reciprocal())
