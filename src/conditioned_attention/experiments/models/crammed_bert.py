"""Crammed BERT: a BERT that is made to be trained in one day on one GPU."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, Literal

from torch import nn

from conditioned_attention.environment import needs
from conditioned_attention.experiments.models.built import remembered
from conditioned_attention.experiments.models.start import Start
from conditioned_attention.storage.settings import added


@dataclass(frozen=True)
class CrammedBert(Start):
    """Crammed BERT (Geiping and Goldstein 2022, arXiv 2212.14034) with fresh weights, to predict masked tokens.

    The defaults are the published model: 119,589,889 parameters at a vocabulary of 32,768.

    Attributes:
        context: number of tokens in a sequence.
        hidden_size: width of the tokens.
        layers: number of blocks.
        heads: attention heads per block; they must divide the width.
        mlp_size: width of the first layer of an MLP, half of which gates the other half.
        dropout: dropout of embeddings, attention weights and what blocks add; the authors pretrain without.
        init: as in `Start`; ``"library"`` is the authors' initialisation, and the same as ``"width"`` at 768.
    """

    context: int = 128
    hidden_size: int = 768
    layers: int = 16
    heads: int = 12
    mlp_size: int = 3072
    dropout: float = 0.0
    _: KW_ONLY
    init: float | Literal["library", "width"] = added("library")

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = self.context, self.hidden_size, self.layers, self.heads, self.mlp_size
        if min(sizes) < 1 or self.hidden_size % self.heads or self.hidden_size % 2 or self.mlp_size % 2:
            raise ValueError(
                "context, hidden_size, layers, heads and mlp_size must be at least 1, heads divide hidden_size, and "
                f"hidden_size and mlp_size be even, got {', '.join(map(str, sizes))}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    @remembered
    def build(self, vocabulary: int = 32768) -> nn.Module:
        """The model; it maps ids (B, N), int64, to logits (B, N, vocabulary)."""
        build = partial(self._hf, vocabulary)
        model: Any = self.first_weights(build, width=self.hidden_size, layers=self.layers)
        model.model.embeddings.start()
        return model  # type: ignore[no-any-return]

    def _hf(self, vocabulary: int) -> nn.Module:
        with needs("transformers"):
            from conditioned_attention.experiments.models.crammed_bert_network import (
                CrammedBertConfig,
                CrammedBertForMaskedLM,
            )

        return CrammedBertForMaskedLM(
            CrammedBertConfig(
                vocab_size=vocabulary,
                hidden_size=self.hidden_size,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                intermediate_size=self.mlp_size,
                max_position_embeddings=self.context,
                hidden_dropout_prob=self.dropout,
                attention_probs_dropout_prob=self.dropout,
            )
        )
