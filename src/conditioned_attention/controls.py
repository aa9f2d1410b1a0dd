"""What else one could do to a head's output: the controls without which a claim about C says nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from conditioned_attention.preconditioner import HeadTransform, check_eps


@dataclass(frozen=True)
class HeadRMSNorm(HeadTransform):
    """Root-mean-square norm of each head's row, without gain: ``output · √D / ‖row‖``, with its ordinary gradient.

    Its forward is that of the preconditioner times √D, so both have the same condition numbers; what differs is the
    scale, and that the gradient passes through the norm.

    Args:
        eps: added to the mean square of the row, as in ``torch.nn.functional.rms_norm``.
    """

    eps: float = 1e-6

    kind: ClassVar[str] = "head_rmsnorm"

    def __post_init__(self) -> None:
        check_eps(self.eps)

    def __call__(self, output: Tensor, weights: Tensor | None = None) -> Tensor:
        return F.rms_norm(output, output.shape[-1:], eps=self.eps)
