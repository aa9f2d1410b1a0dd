"""Other transforms of attention heads: the controls without which a claim about C says nothing.

Shapes: B batch, H heads, N queries, M keys, D head width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from conditioned_attention.preconditioner import HeadTransform, RowNorm, check_positive, row_norm


@dataclass(frozen=True)
class HeadRMSNorm(HeadTransform):
    """Root-mean-square norm of each head's row, without gain: ``output · √D / ‖row‖``, with its ordinary gradient.

    Its forward is that of the preconditioner times √D, so both have the same condition numbers; they differ in the
    scale, and in that the gradient passes through the norm.

    Args:
        eps: added to the mean square of the row, as in ``torch.nn.functional.rms_norm``.
    """

    eps: float = 1e-6

    kind: ClassVar[str] = "head_rmsnorm"

    def __post_init__(self) -> None:
        check_positive("eps", self.eps)

    def __call__(self, output: Tensor, weights: Tensor | None = None) -> Tensor:
        return F.rms_norm(output, output.shape[-1:], eps=self.eps)


@dataclass(frozen=True)
class PowerNorm(HeadTransform):
    """``output -> C^α · output``, times √D if ``scaled``; C is that of the output's rows, and gets no gradient.

    With α < 1 rows keep a part of their norms: ``‖row‖^(1-α)``.  With α = 1 and ``scaled`` it is head-wise RMSNorm in
    the forward pass and the preconditioner in the backward pass.

    Args:
        alpha: the power of C, in (0, 1].
        scaled: whether rows are multiplied by √D, so that their entries, and not their norms, are about 1 for α = 1.
        eps: smallest row norm that is divided by.
    """

    alpha: float = 0.5
    scaled: bool = False
    eps: float = 1e-6

    kind: ClassVar[str] = "power_norm"

    def __post_init__(self) -> None:
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, (int, float)):
            raise TypeError(f"alpha must be a number, got {type(self.alpha).__name__}")
        if not 0.0 < self.alpha <= 1.0:
            raise ValueError(f"alpha must be in (0, 1], got {self.alpha}")
        if not isinstance(self.scaled, bool):
            raise TypeError(f"scaled must be True or False, got {self.scaled!r}")
        check_positive("eps", self.eps)

    def __call__(self, output: Tensor, weights: Tensor | None = None) -> Tensor:
        norm = row_norm(output, RowNorm(eps=self.eps).floor(output.dtype)) ** self.alpha
        factor = math.sqrt(output.shape[-1]) if self.scaled else 1.0
        return (output * (factor / norm)).to(output.dtype)


@dataclass(frozen=True)
class ConstantGain(HeadTransform):
    """``output -> gain · output``: one number for all rows of a layer, such as the mean of C at the start of training.

    It tests whether C helps because of its scale alone; the variant ``constant_gain`` measures that mean.

    Args:
        gain: the factor.
    """

    gain: float

    kind: ClassVar[str] = "constant_gain"

    def __post_init__(self) -> None:
        check_positive("gain", self.gain)

    def __call__(self, output: Tensor, weights: Tensor | None = None) -> Tensor:
        return output * self.gain


@dataclass(frozen=True)
class QKNorm(HeadTransform):
    """Norms queries and keys of every head to root mean square 1, without gain; the heads themselves are left alone.

    Logits are then at most √D in size.  Without a gain the norm commutes with rotary position embeddings.

    Args:
        eps: added to the mean square, as in ``torch.nn.functional.rms_norm``.
    """

    eps: float = 1e-6

    kind: ClassVar[str] = "qk_norm"

    def __post_init__(self) -> None:
        check_positive("eps", self.eps)

    @property
    def changes_queries(self) -> bool:
        return True

    def queries(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return F.rms_norm(query, query.shape[-1:], eps=self.eps), F.rms_norm(key, key.shape[-1:], eps=self.eps)

    def __call__(self, output: Tensor, weights: Tensor | None = None) -> Tensor:
        return output


@dataclass(frozen=True)
class PreconditionedQKNorm(QKNorm):
    """`QKNorm` and the preconditioner on one head: C, without gradient, also brings the head's rows to unit length.

    Args:
        eps: for both: added to the mean square of queries and keys, and the smallest row norm that C divides by.
    """

    kind: ClassVar[str] = "preconditioned_qk_norm"

    def __call__(self, output: Tensor, weights: Tensor | None = None) -> Tensor:
        return RowNorm(eps=self.eps)(output)
