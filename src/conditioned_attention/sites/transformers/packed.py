"""Packed sequences in transformers: an attention implementation under which documents in one row do not see each other.

transformers keeps packed documents apart by a mask of N × N numbers, or by flash attention on a GPU.  This one takes
the lengths that its flash attention takes (``cu_seq_lens_q``, …) and no mask at all, for any length.

Shapes: H heads (G key heads under grouped queries), N tokens of all documents, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conditioned_attention.preconditioner import HeadTransform, RowNorm
from conditioned_attention.sites.transformers.sdpa import causal
from conditioned_attention.varlen import preconditioned_attention_varlen

PACKED = "packed_sdpa"


def register_packed() -> str:
    """Registers the implementation with transformers, for ``model.set_attn_implementation``; returns its name.

    A model that runs it is called with one row of documents, (1, N), and ``cu_seq_lens_q``, ``cu_seq_lens_k`` (int32),
    ``max_length_q`` and ``max_length_k``, as ``DataCollatorWithFlattening`` gives them; without those, as when it
    generates, it computes what sdpa does, but does not support padding.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(PACKED, attend_packed)
    AttentionMaskInterface.register(PACKED, _mask)
    return PACKED


def _mask(
    *, q_length: int, kv_length: int, attention_mask: Tensor | None = None, local_size: int | None = None, **others: Any
) -> Tensor | None:
    """No mask, except for tokens on top of a cache, where sdpa's mask says which keys they may attend to."""
    if local_size is not None:
        raise ValueError(f"{PACKED} knows no sliding window: call set_attn_implementation('sdpa')")
    if attention_mask is not None and not attention_mask.all():
        raise ValueError(f"{PACKED} knows no padding: put the sequences one behind the other, with cu_seq_lens_q")
    if q_length == kv_length:
        return None
    from transformers.masking_utils import sdpa_mask

    mask: Tensor | None = sdpa_mask(q_length=q_length, kv_length=kv_length, attention_mask=attention_mask, **others)
    return mask


def attend_packed(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    transform: HeadTransform | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Heads (1, N, H, D) of queries (1, H, N, D): each document by itself, and with C if that is the transform."""
    grouped = query.shape[1] != key.shape[1]
    if cu_seq_lens_q is None or cu_seq_lens_k is None:
        flag = attention_mask is None and causal(module, is_causal) and query.shape[2] > 1
        how: dict[str, Any] = {"dropout_p": dropout, "is_causal": flag, "scale": scaling, "enable_gqa": grouped}
        heads = F.scaled_dot_product_attention(query, key, value, attention_mask, **how)
        return heads.transpose(1, 2).contiguous(), None
    if attention_mask is not None:
        raise ValueError("packed sequences come without attention_mask, and with an empty cache or none")
    if len(query) != 1:
        raise ValueError(f"packed sequences come as one row, got a batch of {len(query)}")
    how = {"dropout_p": dropout, "is_causal": causal(module, is_causal), "scale": scaling, "enable_gqa": grouped}
    if isinstance(transform, RowNorm):
        q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        c: dict[str, Any] = {"rows": transform.rows, "gradient": transform.gradient, "eps": transform.eps}
        heads = preconditioned_attention_varlen(
            q, k, v, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k, **how, **c
        )
        return heads.unsqueeze(0), None
    lengths = [starts.diff().tolist() for starts in (cu_seq_lens_q, cu_seq_lens_k)]
    parts = zip(query.split(lengths[0], 2), key.split(lengths[1], 2), value.split(lengths[1], 2), strict=True)
    heads = torch.cat([F.scaled_dot_product_attention(*part, **how) for part in parts], 2)
    return heads.transpose(1, 2).contiguous(), None
