"""The two attentions of the Long Range Arena's model: Nyström with a convolution beside it, and softmax.

As in the code of Xiong et al. 2021 (arXiv 2102.03902), everything between the input projections and the output
projection is computed in float32 under mixed precision.

Shapes: B batch, H heads, N tokens, D head width, C = H · D channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conditioned_attention.experiments.models.nystrom import InverseStart, factors, hidden, shown
from conditioned_attention.functional import attend, behind
from conditioned_attention.preconditioner import TRANSFORM, check_rows
from conditioned_attention.sites.low_rank import norms_of_product
from conditioned_attention.sites.swap import swapped_for


class SequenceAttention(nn.Module, ABC):
    """Input and output projections, which are square and have biases, and the heads in between."""

    def __init__(self, hidden_size: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(hidden_size, hidden_size) for _ in range(4))

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """Maps tokens (B, N, C) to (B, N, C); ``seen`` (B, N) is False for padding, None without any."""
        projected = [projection(x) for projection in (self.q_proj, self.k_proj, self.v_proj)]
        q, k, v = (_at_least_float32(y).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in projected)
        with torch.autocast(x.device.type, enabled=False):
            heads = self.core(q, k, v, seen)
        merged: Tensor = self.o_proj(heads.transpose(1, 2).flatten(2).to(projected[0].dtype))
        return merged

    def core(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
        """Does everything that happens to heads (B, H, N, D) between the projections."""
        return self.heads(q, k, v, seen)

    @abstractmethod
    def heads(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
        """Returns the attention weights, or what approximates them, times the values: (B, H, N, D)."""


class NystromAttention(SequenceAttention):
    """Nyström attention F Z B v, plus a convolution of the values along the tokens with one kernel per head.

    Args:
        hidden_size: C.
        heads: H.
        landmarks: how many; with as many as tokens it is softmax attention, and no inverse is taken.
        convolution: length of the kernel, odd; 0 for no convolution.
        inverse_start: see `conditioned_attention.experiments.models.nystrom.first_inverse`.
        inverse_steps: steps of the iteration towards the inverse.

    Raises:
        ValueError: when called with a number of tokens that is not a multiple of the landmarks.
    """

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        landmarks: int,
        convolution: int = 35,
        inverse_start: InverseStart = "batch_columns",
        inverse_steps: int = 6,
    ) -> None:
        super().__init__(hidden_size, heads)
        self.landmarks, self.inverse_start, self.inverse_steps = landmarks, inverse_start, inverse_steps
        self.convolution = None
        if convolution:
            kernel, padding = (convolution, 1), (convolution // 2, 0)
            self.convolution = nn.Conv2d(heads, heads, kernel, padding=padding, groups=heads, bias=False)

    def core(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
        heads = self.heads(q, k, v, seen)
        if self.convolution is None:
            return heads
        beside: Tensor = self.convolution(shown(v, seen).to(self.convolution.weight.dtype))
        return heads + beside

    def heads(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
        left, right = self.weights(q, k, seen)
        return left @ v if right is None else left @ (right @ v)

    def weights(self, q: Tensor, k: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Returns F Z (B, H, N, L) and B (B, H, L, N); with as many landmarks as tokens, softmax(q kᵀ) and None."""
        if q.shape[-2] == self.landmarks:
            scores = shown(q, seen) @ k.mT * q.shape[-1] ** -0.5  # the authors set queries of padding to 0 here too
            return hidden(scores, seen).softmax(-1), None
        if q.shape[-2] % self.landmarks:
            raise ValueError(
                f"landmarks are means over segments of equal length, so {self.landmarks} of them need a multiple of "
                f"that many tokens, got {q.shape[-2]}: pad them with id 0"
            )
        to_landmarks, z, right = factors(q, k, seen, self.landmarks, self.inverse_start, self.inverse_steps)
        return to_landmarks @ z, right


class SoftmaxAttention(SequenceAttention):
    """softmax(q kᵀ / √D) v, the baseline of the same size, with dropout of the attention weights."""

    def __init__(self, hidden_size: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__(hidden_size, heads)
        self.dropout = dropout

    def heads(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, _mask(seen), self.dropout * self.training)


@swapped_for(NystromAttention, weights=False, norms=True)
class ConditionedNystromAttention(NystromAttention):
    """Nyström attention in which the rows of F Z B v are scaled before the convolution is added."""

    def heads(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
        transform = self.__dict__[TRANSFORM]
        check_rows(transform, masked=seen is not None)
        q, k = transform.queries(q, k)
        left, right = self.weights(q, k, seen)
        if right is None:
            return behind(transform, left @ v, left)
        norms = norms_of_product(left, right) if transform.needs_weights else None
        return behind(transform, left @ (right @ v), norms)


@swapped_for(SoftmaxAttention)
class ConditionedSoftmaxAttention(SoftmaxAttention):
    """Softmax attention that is conditioned, computed by this package's `attend`."""

    def heads(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
        return attend(self.__dict__[TRANSFORM], q, k, v, _mask(seen), self.dropout * self.training)


def _mask(seen: Tensor | None) -> Tensor | None:
    """Returns the mask (B, 1, 1, N), True where a key may be attended to."""
    return None if seen is None else seen[:, None, None]


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
