"""Spectral conditioning: W -> W + C for the projections W_Q, W_K, W_V, with C fixed and W trainable.

The method is from arXiv 2603.07162 (NeurIPS 2025).  This file has the mathematics, on matrices (out, in) as
``torch.nn.Linear`` holds them; `sites` knows where a model keeps its W_Q, W_K and W_V.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from conditioned_attention._precision import exact

CORRECTIONS = ("identity", "polar")
ROLE_SETS = ("qkv", "qk", "v")
PUBLISHED = {
    "identity": 10.0,
    "polar": 1.0,
}  # λ of the paper: the best of its ablation, and the construction of Theorem 3.5

# λ for queries and keys alone, at which logits of different tokens get the deviation 1, so that a softmax has something
# to choose from: our choice, and no paper's.  `auto_strength` counts a token's logit with itself instead, which is √d.
# q · k / √d gains λ² x_h · y_h / √d for a query from x and a key from y, of which x_h and y_h are the d features that
# the identity gives to head h.  If these are independent, of mean 0 and variance 1 (as layer norms make them, on
# average), x_h · y_h is a sum of d products of mean 0 and variance 1, and the deviation λ² √d / √d = λ² is left.
ON_LOGITS = 1.0

# From here on a softmax over a few thousand tokens looks at the token itself and little else: log(4096) is 8.3.
SATURATED = 10.0


@dataclass(frozen=True)
class Spectral:
    """How the projections of an attention module are corrected.

    Attributes:
        strength: λ.  For ``"polar"`` the multiple of σ_max(W) that is added to every singular value.
        correction: ``"identity"``, C = λ I_k with the rectangular identity (Theorem 3.8), or ``"polar"``,
            C = λ σ_max(W) · U Vᵀ for W = U S Vᵀ (Theorem 3.5), computed once.
        per_head: whether each head's rows count as a matrix of their own, or all heads as one.
        folded: whether C has been added to the weights themselves.
        roles: letters of the projections that are corrected: q, k and v.
    """

    strength: float
    correction: str = "identity"
    per_head: bool = False
    folded: bool = False
    roles: str = "qkv"

    kind: ClassVar[str] = "spectral"

    def __post_init__(self) -> None:
        if isinstance(self.strength, bool) or not isinstance(self.strength, (int, float)):
            raise TypeError(f"strength must be a number or 'auto', got {self.strength!r}")
        if not 0.0 < self.strength < math.inf:
            raise ValueError(f"strength must be positive and finite, got {self.strength}")
        if self.correction not in CORRECTIONS:
            raise ValueError(f"correction={self.correction!r} is unknown; valid are {CORRECTIONS}")
        for name in ("per_head", "folded"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if self.roles not in ROLE_SETS:
            raise ValueError(f"roles={self.roles!r} is unknown; valid are {ROLE_SETS}")


def polar_correction(weight: Tensor, strength: float = 1.0) -> Tensor:
    """λ σ_max(W) · U Vᵀ for matrices W = U S Vᵀ (..., rows, columns), in their dtype; computed in float64.

    W + C has the singular values σ + λ σ_max, so κ(W + C) ≤ (1 + λ) / λ: at most 2 for λ = 1 (Theorem 3.5).

    >>> import torch
    >>> w = torch.randn(8, 16)
    >>> s = torch.linalg.svdvals(w + polar_correction(w))
    >>> bool(s[0] / s[-1] <= 2)
    True
    """
    u, s, vh = torch.linalg.svd(exact(weight), full_matrices=False)
    correction: Tensor = strength * s[..., :1, None] * (u @ vh)
    return correction.to(weight)


def auto_strength(width: int) -> float:
    """The λ at which ``"identity"`` adds about 1 to the logit of a token with itself: d^(-1/4) for heads of width d.

    For inputs x of unit root mean square q · k / √d gains λ² ‖x_h‖² / √d ≈ λ² √d, where x_h are the d features that the
    identity gives to head h.  Our choice, and not the paper's.

    >>> round(auto_strength(64), 3)
    0.354
    """
    return 1.0 / math.sqrt(math.sqrt(width))


def self_logit(strength: float, width: int) -> float:
    """What λ I adds to the logit of a token with itself, for inputs of unit root mean square: λ² √d.

    >>> round(self_logit(10.0, 64))  # the published λ
    800
    """
    return strength**2 * math.sqrt(width)


def swamps(largest: float, weight: Tensor) -> bool:
    """Whether adding numbers up to ``largest`` to a weight would round away more than a tenth of what its entries are.

    Only half precision can: bfloat16 has steps of 0.002 at λ = 0.3, and of 0.06 at λ = 10.
    """
    if weight.dtype not in (torch.float16, torch.bfloat16):
        return False
    typical = weight.detach().float().square().mean().sqrt().item()
    return torch.finfo(weight.dtype).eps * largest > 0.1 * typical
