"""The norms of the rows of attention weights that are a product of two thin matrices, without computing the product.

Shapes: B batch, H heads, N queries, M keys, L landmarks.
"""

from __future__ import annotations

import torch
from torch import Tensor


def norms_of_product(left: Tensor, right: Tensor) -> Tensor:
    """‖row‖₂ of ``left @ right`` as (..., N, 1), in the product's dtype: row i's square is left_i G left_iᵀ.

    G = right · rightᵀ is L × L, so that memory grows with N and M and never with N · M.  Squares are summed in float64,
    because large terms cancel where ``left`` has entries far above the product's: twelve steps of Nyström attention's
    iteration towards an inverse leave float32 five digits.

    Args:
        left: (..., N, L).
        right: (..., L, M).

    >>> left, right = torch.randn(2, 5, 3), torch.randn(2, 3, 7)
    >>> torch.allclose(norms_of_product(left, right)[..., 0], (left @ right).norm(dim=-1))
    True
    """
    exact, other = left.double(), right.double()
    squares = (exact @ (other @ other.mT) * exact).sum(-1, keepdim=True)
    # The smallest normal number stands for 0, where the root has no derivative; its root is 0 again in float32.
    return squares.clamp_min(torch.finfo(torch.float64).tiny).sqrt().to(left.dtype)
