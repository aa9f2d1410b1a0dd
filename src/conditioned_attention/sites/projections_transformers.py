"""W_Q, W_K and W_V of the attention classes of Hugging Face transformers.  Nothing of it is imported here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from conditioned_attention.sites.projections import Projection, Projections

_MODELS = "transformers.models."


def _gpt2(module: Any) -> Projections:
    """``c_attn`` as [Q | K | V], and for cross-attention [K | V] beside ``q_attn``."""
    if module.is_cross_attention:
        return Projections((Projection("q_attn", "q"), Projection("c_attn", "kv")), module.num_heads)
    return Projections((Projection("c_attn"),), module.num_heads)


# class -> what makes its queries, keys and values, or why that is no place for W + λ I
FOUND: dict[str, Callable[[Any], Projections] | str] = {
    _MODELS + "gpt2.modeling_gpt2.GPT2Attention": _gpt2,
}
