"""GPT-2 on bytes."""

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
class GPT(Start):
    """Hugging Face's GPT-2 on bytes or other tokens, with fresh weights; output layer and embedding share theirs.

    Attributes:
        context: largest number of bytes or other tokens that it sees, and the number that it is trained on at a time.
        hidden_size: width of the tokens.
        layers: number of blocks.
        heads: attention heads per block; they must divide the width.
        dropout: dropout of embeddings, attention weights and what blocks add.
        residual_scale: as in `Start`; ``"depth"`` is what GPT-2 has.
    """

    context: int = 128
    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    dropout: float = 0.0
    _: KW_ONLY
    residual_scale: Literal["none", "depth"] = added("depth")

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.context, self.hidden_size, self.layers, self.heads) < 1 or self.hidden_size % self.heads:
            raise ValueError(
                "context, hidden_size, layers and heads must be at least 1, and heads divide hidden_size, got "
                f"{self.context}, {self.hidden_size}, {self.layers} and {self.heads}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    @remembered
    def build(self, vocabulary: int = 256) -> nn.Module:
        """The model; it maps bytes or other tokens (B, L), int64, to logits (B, L, vocabulary)."""
        return self.first_weights(
            partial(self._hf, vocabulary), width=self.hidden_size, layers=self.layers, library_scales=True
        )

    def _hf(self, vocabulary: int) -> nn.Module:
        with needs("transformers"):
            from transformers import GPT2Config, GPT2LMHeadModel

        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary,
                n_positions=self.context,
                n_embd=self.hidden_size,
                n_layer=self.layers,
                n_head=self.heads,
                resid_pdrop=self.dropout,
                embd_pdrop=self.dropout,
                attn_pdrop=self.dropout,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
