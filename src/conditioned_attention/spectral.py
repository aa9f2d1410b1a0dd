"""Spectral conditioning: W -> W + C for the projections W_Q, W_K, W_V, with C fixed and W trainable.

arXiv 2603.07162 (NeurIPS 2025).  This file is the mathematics, on matrices (out, in) as
``torch.nn.Linear`` holds them; where a model keeps its W_Q, W_K and W_V is the business of `sites`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CORRECTIONS = ("identity", "polar")


@dataclass(frozen=True)
class Spectral:
    """How the projections of an attention module are corrected.

    Attributes:
        strength: λ.  For ``"polar"`` the multiple of σ_max(W) that is added to every singular value.
        correction: ``"identity"``, C = λ I_k with the rectangular identity (Theorem 3.8), or ``"polar"``,
            C = λ σ_max(W) · U Vᵀ for W = U S Vᵀ (Theorem 3.5), computed once.
        per_head: whether each head's rows count as a matrix of their own, or all heads as one.
    """

    strength: float
    correction: str = "identity"
    per_head: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.strength, bool) or not isinstance(self.strength, (int, float)):
            raise TypeError(f"strength must be a number or 'auto', got {self.strength!r}")
        if not 0.0 < self.strength < math.inf:
            raise ValueError(f"strength must be positive and finite, got {self.strength}")
        if self.correction not in CORRECTIONS:
            raise ValueError(f"correction={self.correction!r} is unknown; valid are {CORRECTIONS}")
        if not isinstance(self.per_head, bool):
            raise TypeError(f"per_head must be True or False, got {self.per_head!r}")


def polar_correction(weight: Tensor, strength: float = 1.0) -> Tensor:
    """λ σ_max(W) · U Vᵀ for matrices W = U S Vᵀ (..., rows, columns), in their dtype; computed in float64.

    W + C has the singular values σ + λ σ_max, so κ(W + C) ≤ (1 + λ) / λ: at most 2 for λ = 1 (Theorem 3.5).

    >>> import torch
    >>> w = torch.randn(8, 16)
    >>> s = torch.linalg.svdvals(w + polar_correction(w))
    >>> bool(s[0] / s[-1] <= 2)
    True
    """
    u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    correction: Tensor = strength * s[..., :1, None] * (u @ vh)
    return correction.to(weight.dtype)
