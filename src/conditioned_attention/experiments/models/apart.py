"""Decoders whose documents do not see each other, though several lie in one row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from conditioned_attention.experiments.models.gpt import GPT
from conditioned_attention.experiments.models.llama import Llama
from conditioned_attention.sites.transformers.packed import register_packed


@dataclass(frozen=True)
class Apart:
    """A decoder that is called with one row of documents and where each begins; see `register_packed`."""

    model: GPT | Llama

    @property
    def context(self) -> int:
        """Tokens of a block."""
        return self.model.context

    def build(self, vocabulary: int) -> nn.Module:
        """The model with fresh weights."""
        model: Any = self.model.build(vocabulary)
        model.set_attn_implementation(register_packed())
        return model  # type: ignore[no-any-return]
