"""Applies C around PyTorch's flash operators with one Triton kernel each way, in place of several PyTorch operators.

Shapes: B batch, H heads, N queries, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from conditioned_attention.attention.triton.machine import power_of_two, refuses_machine

_ROWS = 32  # per program


def run_on(output: Tensor) -> bool:
    """Whether the kernels can take this output of a flash operator, (B, H, N, D)."""
    if output.dtype == torch.float64 or refuses_machine(output.device) is not None:
        return False
    return not torch._C._are_functorch_transforms_active()


def normalise_(output: Tensor, lse: Tensor, eps: float, folds: bool) -> Tensor:
    """Scales the rows of ``output`` to unit length in place; returns what they were divided by, (B, H, N, 1).

    With ``folds``, log C is also subtracted from ``lse``, (B, H, at least N), in place.
    """
    from conditioned_attention.attention.triton import rows

    b, h, n, d = output.shape
    norm = output.new_empty(b, h, n, 1, dtype=torch.float32)
    with torch.cuda.device_of(output):
        rows.normalise[(b * h * -(-n // _ROWS),)](
            output, norm, lse, output.stride(), norm.stride(), lse.stride(), eps, h, n,
            D=d, BLOCK_D=power_of_two(d), BLOCK_N=_ROWS, FOLD=folds,
        )  # fmt: skip
    return norm


def rebuild(
    y: Tensor, norm: Tensor, upstream: Tensor, eps: float, *, through: bool, folds: bool
) -> tuple[Tensor, Tensor]:
    """Returns (y / C, the upstream gradient as flash's backward takes it)."""
    from conditioned_attention.attention.triton import rows

    b, h, n, d = y.shape
    attention = torch.empty_like(y)
    prepared = torch.empty_like(y) if through or not folds else upstream
    with torch.cuda.device_of(y):
        rows.rebuild[(b * h * -(-n // _ROWS),)](
            y, norm, upstream, attention, prepared,
            y.stride(), norm.stride(), upstream.stride(), attention.stride(), eps, h, n,
            D=d, BLOCK_D=power_of_two(d), BLOCK_N=_ROWS, THROUGH=through, FOLD=folds,
        )  # fmt: skip
    return attention, prepared
