"""Conditioned subclasses for classes of transformers with attention of their own whose heads a hook cannot reach.

Imported only for models that contain one of them.  Shapes: B batch, H heads, N tokens, L landmarks, D head width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers.models.convbert.modeling_convbert import ConvBertSelfAttention
from transformers.models.lilt.modeling_lilt import LiltSelfAttention
from transformers.models.luke.modeling_luke import LukeSelfAttention
from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention
from transformers.models.squeezebert.modeling_squeezebert import SqueezeBertSelfAttention
from transformers.models.xlnet.modeling_xlnet import XLNetRelativeAttention

from conditioned_attention.functional import behind
from conditioned_attention.preconditioner import TRANSFORM
from conditioned_attention.sites.hook import Layout
from conditioned_attention.sites.low_rank import norms_of_product
from conditioned_attention.sites.swap import swapped_for


@swapped_for(NystromformerSelfAttention, weights=False, queries=False, norms=True)
class ConditionedNystromformer(NystromformerSelfAttention):
    """The rows of F Z B v are scaled before the convolution of the values is added to them.

    With fewer landmarks than tokens, padding is masked as its authors do it (Xiong et al. 2021, arXiv 2102.03902):
    queries, keys and the values that are convolved are 0 there, before means are taken.  transformers' own forward
    raises for every padding mask, and mixes the examples of a batch if they are shorter than
    ``segment_means_seq_len``; such lengths are refused here.

    Raises:
        ValueError: inputs of another length than ``segment_means_seq_len``, or a mask that is not padding.
    """

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, output_attentions: bool = False
    ) -> tuple[Tensor, ...]:
        q, k, v = (
            projection(hidden_states).unflatten(-1, (-1, self.attention_head_size)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        width = math.sqrt(math.sqrt(self.attention_head_size))
        q, k, convolved = q / width, k / width, v
        transform = self.__dict__[TRANSFORM]
        if self.num_landmarks == self.seq_len:
            weights = _masked(q @ k.mT, attention_mask).softmax(-1)
            heads = behind(transform, weights @ v, weights)
        else:
            if q.shape[-2] != self.seq_len:
                raise ValueError(
                    f"Nystromformer takes means over segments of inputs of exactly segment_means_seq_len="
                    f"{self.seq_len} tokens, got {q.shape[-2]}: pad them to that length, and say so in attention_mask"
                )
            attention_mask, seen = _padding(attention_mask)
            if seen is not None:
                q, k, convolved = q * seen, k * seen, v * seen
            q_landmarks, k_landmarks = self._landmarks(q), self._landmarks(k)
            to_landmarks = (q @ k_landmarks.mT).softmax(-1)
            inverse = self.iterative_inv((q_landmarks @ k_landmarks.mT).softmax(-1))  # type: ignore[no-untyped-call]
            weights = to_landmarks @ inverse
            from_landmarks = _masked(q_landmarks @ k.mT, attention_mask).softmax(-1)
            norms = norms_of_product(weights, from_landmarks) if transform.needs_weights else None
            heads = behind(transform, weights @ (from_landmarks @ v), norms)
        if self.conv_kernel_size is not None:
            heads = heads + self.conv(convolved)
        output = heads.transpose(1, 2).flatten(2)
        return (output, weights) if output_attentions else (output,)

    def _landmarks(self, x: Tensor) -> Tensor:
        """Means over segments: (B, H, N, D) to (B, H, L, D)."""
        segments = (self.num_landmarks, self.seq_len // self.num_landmarks, self.attention_head_size)
        return x.reshape(-1, self.num_attention_heads, *segments).mean(-2)


def _padding(attention_mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The mask to add to scores, (B, 1, 1, N), and what is 1 for tokens and 0 for padding, (B, 1, N, 1)."""
    if attention_mask is None:
        return None, None
    keys = attention_mask[..., :1, :]
    if not torch.compiler.is_compiling() and (attention_mask != keys).any():
        raise ValueError("Nystromformer's landmarks know no mask but padding: the same keys hidden from every query")
    seen = (keys == 0).to(keys.dtype).mT
    return keys, seen


def _masked(scores: Tensor, attention_mask: Tensor | None) -> Tensor:
    return scores if attention_mask is None else scores + attention_mask


@swapped_for(XLNetRelativeAttention, queries=False)
class ConditionedXLNet(XLNetRelativeAttention):
    """XLNet: its output projection is a parameter and not a module; heads are (N, B, H, D)."""

    def rel_attn_core(self, *args: Any, output_attentions: bool = False, **kwargs: Any) -> Any:
        kwargs["output_attentions"] = True
        # (N, B, H, D), (N, M, B, H)
        heads, weights = super().rel_attn_core(*args, **kwargs)  # type: ignore[no-untyped-call]
        heads = behind(self.__dict__[TRANSFORM], heads.permute(1, 2, 0, 3), weights.permute(2, 3, 0, 1)).permute(
            2, 0, 1, 3
        )
        return (heads, weights) if output_attentions else heads


@swapped_for(ConvBertSelfAttention, queries=False)
class ConditionedConvBert(ConvBertSelfAttention):
    """ConvBERT: attention heads and beside them as many heads of a convolution, which stay unchanged."""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        both, weights = super().forward(*args, **kwargs)
        attention, convolution = both.chunk(2, dim=-1)
        heads = attention.unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)
        heads = behind(self.__dict__[TRANSFORM], heads, weights).transpose(1, 2).flatten(2)
        return torch.cat([heads, convolution], -1), weights


@swapped_for(LukeSelfAttention, weights=False, queries=False)
class ConditionedLuke(LukeSelfAttention):
    """LUKE: it returns the heads of words and those of entities separately."""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor | None, ...]:
        words, entities, *rest = super().forward(*args, **kwargs)  # type: ignore[no-untyped-call]
        both = (None if x is None else _side_by_side(self, x, "B N H*D") for x in (words, entities))
        return (*both, *rest)


@swapped_for(LiltSelfAttention, weights=False, queries=False)
class ConditionedLilt(LiltSelfAttention):
    """LiLT: it returns the heads of the text and, with weights of their own, those of its layout."""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        text, layout, *rest = super().forward(*args, **kwargs)  # type: ignore[no-untyped-call]
        return (*(_side_by_side(self, x, "B N H*D") for x in (text, layout)), *rest)


@swapped_for(SqueezeBertSelfAttention, weights=False, queries=False)
class ConditionedSqueezeBert(SqueezeBertSelfAttention):
    """SqueezeBERT: it returns a dictionary, with the channels of the heads before the tokens."""

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        result: dict[str, Tensor] = super().forward(*args, **kwargs)  # type: ignore[no-untyped-call]
        return {**result, "context_layer": _side_by_side(self, result["context_layer"], "B H*D N")}


def _side_by_side(module: Any, x: Tensor, axes: str) -> Tensor:
    return Layout(axes).apply(module.__dict__[TRANSFORM], x, module.num_attention_heads)
