"""Masked language modelling by Crammed BERT: the recipes ``crammed_bert`` and ``small_bert``."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from conditioned_attention.experiments.data.text.wordpiece import train_wordpiece
from conditioned_attention.experiments.models.crammed_bert import CrammedBert
from conditioned_attention.experiments.recipes.packed_text import PackedText, filling
from conditioned_attention.experiments.recipes.text_source import TextName
from conditioned_attention.experiments.tasks.masked_tokens import MaskedTokens
from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.storage.settings import added

# The rate rises from a quarter to the whole in three quarters of the run, and falls to 0 in the last one.
_PUBLISHED: dict[str, Any] = {
    "lr": 1e-3, "warmup_from": 2.5e-4, "warmup": 0.75, "final_lr": 0.0, "schedule": "triangle",
    "betas": (0.9, 0.98), "eps": 1e-12, "weight_decay": 0.01, "clip": 0.5, "order": "stored",
}  # fmt: skip


@dataclass(frozen=True)
class CrammedBertRecipe(PackedText):
    """Crammed BERT (Geiping and Goldstein 2022, arXiv 2212.14034), pretrained on your text in a day on one GPU.

    A run makes one pass over the text in its stored order, or ends when the day is over.  There is no dropout, and
    batches grow to 8,192 blocks of 128 tokens in the first 60 % of the run.  Give ``--tokens`` in place
    of ``--seconds`` for paired runs that see the same amount of text.

    The text is turned into blocks at the first call, one document (a paragraph, or a definition of WordNet) after
    another.  Unlike in the authors' code, WordPiece is trained on your text, which may fill less than the vocabulary;
    no document is filtered out; blocks are read in their stored order, unless ``curriculum`` asks for the authors';
    mixed precision is bfloat16; and the factor on the position embeddings does not decay.

    Attributes:
        vocabulary: largest number of word pieces.
        masked: share of the tokens that are masked, the same number in every block.
        curriculum: ``"sentences"`` reads the blocks with the most full stops first, as the authors do.
        model: the network; the default has 119.6 million parameters at a vocabulary of 32,768.
        training: how it is trained.
    """

    text: TextName = "files"
    vocabulary: int = 32768
    masked: float = 0.25
    model: CrammedBert = field(default_factory=CrammedBert)
    curriculum: Literal["none", "sentences"] = added("none")
    training: Training = field(
        default_factory=lambda: Training(
            epochs=1,
            seconds=86_400.0,
            batch_size=8192,
            accumulation=64,
            ramp=0.6,
            precision="bf16",
            evaluate_every=0.05,
            **_PUBLISHED,
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.curriculum != "none" and self.training.order != "stored":
            raise ValueError(f"curriculum={self.curriculum!r} needs order='stored', got {self.training.order!r}")

    def task(self, *, tuning: bool = False) -> Task:
        notes: list[str] = []
        make = partial(train_wordpiece, vocabulary=self.vocabulary)
        data, tokenizer = self.blocks(self.model.context, make, [self.vocabulary], notes, tuning=tuning)
        if self.curriculum == "sentences":
            data = data[0].most_first(tokenizer.encode(".").ids[0]), data[1]
            notes.append("curriculum: blocks with the most full stops, and so the shortest sentences, come first")
        notes += filling(tokenizer, self.vocabulary)
        return MaskedTokens(data, self.model, tokenizer, self.masked, self.eval_blocks, notes)


@dataclass(frozen=True)
class SmallBert(CrammedBertRecipe):
    """A Crammed BERT of 1.6 million parameters (embedding: 0.9 million), on English text that comes with Python.

    Attributes:
        model: the network.
        training: how it is trained.
    """

    text: TextName = "topics"
    model: CrammedBert = field(
        default_factory=lambda: CrammedBert(hidden_size=128, layers=4, heads=4, mlp_size=512, init="width")
    )
    training: Training = field(default_factory=lambda: Training(epochs=30, batch_size=32, **_PUBLISHED))
