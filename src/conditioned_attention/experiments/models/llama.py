"""Llama, the architecture that most decoders of today are built like."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Literal

from torch import nn

from conditioned_attention.environment import needs
from conditioned_attention.experiments.models.built import remembered
from conditioned_attention.experiments.models.start import Start
from conditioned_attention.storage.settings import added


@dataclass(frozen=True)
class Llama(Start):
    """Hugging Face's Llama with fresh weights: rotary positions, RMSNorm, SwiGLU, keys that several queries share.

    Attributes:
        context: largest number of tokens that it sees, and the number that it is trained on at a time.
        hidden_size: width of the tokens.
        layers: number of blocks.
        heads: query heads per block; they must divide the width.
        key_heads: heads of keys and values per block; they must divide ``heads``.
        mlp_size: width of the layer inside an MLP.
        rope_theta: base of the wavelengths of the rotary positions; 500,000 is usual for long contexts.
        tied: whether the output layer and the embedding share their weights.
        residual_scale: as in `Start`.
    """

    context: int = 128
    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    key_heads: int = 2
    mlp_size: int = 352
    rope_theta: float = 10_000.0
    tied: bool = True
    _: KW_ONLY
    residual_scale: Literal["none", "depth"] = added("depth")

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = self.context, self.hidden_size, self.layers, self.heads, self.key_heads, self.mlp_size
        if min(sizes) < 1 or self.hidden_size % (2 * self.heads) or self.heads % self.key_heads:
            raise ValueError(
                "context, hidden_size, layers, heads, key_heads and mlp_size must be at least 1, key_heads divide "
                f"heads, and heads divide hidden_size into an even width, got {', '.join(map(str, sizes))}"
            )
        if not self.rope_theta > 1:
            raise ValueError(f"rope_theta must be above 1, got {self.rope_theta}")

    @remembered
    def build(self, vocabulary: int = 32768) -> nn.Module:
        """The model; it maps ids (B, L), int64, to logits (B, L, vocabulary)."""
        return self.first_weights(partial(self._hf, vocabulary), width=self.hidden_size, layers=self.layers)

    def _hf(self, vocabulary: int) -> nn.Module:
        with needs("transformers"):
            from transformers import LlamaConfig, LlamaForCausalLM

        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=self.hidden_size,
                intermediate_size=self.mlp_size,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                num_key_value_heads=self.key_heads,
                max_position_embeddings=self.context,
                rope_parameters={"rope_theta": self.rope_theta, "rope_type": "default"},
                tie_word_embeddings=self.tied,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
