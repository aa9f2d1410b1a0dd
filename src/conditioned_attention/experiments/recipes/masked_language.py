"""Masked language modelling by Crammed BERT: the recipes ``crammed_bert`` and ``small_bert``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from conditioned_attention.experiments.data.scan import default_cache_dir, stamp_of
from conditioned_attention.experiments.data.text.packing import Blocks, packed
from conditioned_attention.experiments.data.text.wordpiece import train_wordpiece
from conditioned_attention.experiments.models.crammed_bert import CrammedBert
from conditioned_attention.experiments.recipes.text_source import TextSource
from conditioned_attention.experiments.tasks.masked_tokens import MaskedTokens
from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.storage.settings import place

_VERSION = 1  # of how text becomes blocks

# The rate rises from a quarter to the whole in three quarters of the run, and falls to 0 in the last one.
_PUBLISHED: dict[str, Any] = {
    "lr": 1e-3, "warmup_from": 2.5e-4, "warmup": 0.75, "final_lr": 0.0, "schedule": "triangle",
    "betas": (0.9, 0.98), "eps": 1e-12, "weight_decay": 0.01, "clip": 0.5, "order": "stored",
}  # fmt: skip


@dataclass(frozen=True)
class CrammedBertRecipe(TextSource):
    """Crammed BERT (Geiping and Goldstein 2022, arXiv 2212.14034), from your text, in a day of one GPU.

    In one pass over the text as it lies, or until the day is over, without dropout, batches grow to 8,192 blocks of 128
    tokens in the first 60 % of the run; give ``--tokens`` in place of ``--seconds`` for pairs that see equally much.
    Text becomes blocks at the first call: one document, a paragraph or a definition of WordNet, behind the other.
    Not as there: WordPiece is trained on your text, which may fill less than the vocabulary; documents are
    neither filtered nor sorted; mixed precision is bfloat16; and the factor on the positions does not decay.

    Attributes:
        vocabulary: at most so many pieces of words.
        masked: share of the tokens that are hidden, in every block as many.
        eval_blocks: score on so many blocks, spread over the held-out text; None for all.
        cache_dir: where the blocks are kept; default ``~/.cache/conditioned-attention``.
        model: the network; the default has 119.6 million parameters at a vocabulary of 32,768.
        training: how it is trained.
    """

    text: Literal["topics", "wordnet", "files"] = "files"
    vocabulary: int = 32768
    masked: float = 0.25
    eval_blocks: int | None = 2048
    cache_dir: Path | None = place(None)
    model: CrammedBert = field(default_factory=CrammedBert)
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

    def task(self, *, tuning: bool = False) -> Task:
        notes: list[str] = []
        train, held = self.read(notes)
        make = partial(train_wordpiece, vocabulary=self.vocabulary)
        blocks, tokenizer = self._packed(train, b"", make)
        if held is None:
            data = blocks.split(tuning=tuning)
            notes.append("no evaluation set: every tenth run of 32 blocks is held out; the tokenizer has seen it")
        else:
            data = blocks.split() if tuning else (blocks, self._packed(held, train, lambda _: tokenizer)[0])
        return MaskedTokens(data, self.model, tokenizer, self.masked, self.eval_blocks, notes)

    def _packed(self, text: bytes, beside: bytes, tokenizer: Any) -> tuple[Blocks, Any]:
        """A text's blocks, and the tokenizer that made them; ``beside`` is what that was trained on, if not this."""
        between = b"\n" if self.text == "wordnet" else b"\n\n"
        digests = [hashlib.sha256(part).hexdigest() for part in (text, beside)]
        stamp = stamp_of([_VERSION, *digests, len(between), self.vocabulary, self.model.context])
        folder = (self.cache_dir or default_cache_dir()).expanduser() / f"text-{stamp}"
        return packed(folder, lambda: _documents(text, between), tokenizer, self.model.context)


@dataclass(frozen=True)
class SmallBert(CrammedBertRecipe):
    """Crammed BERT of 1.6 million parameters, 0.9 of them its embedding, on English that every Python brings along.

    Attributes:
        model: the network.
        training: how it is trained.
    """

    text: Literal["topics", "wordnet", "files"] = "topics"
    model: CrammedBert = field(
        default_factory=lambda: CrammedBert(hidden_size=128, layers=4, heads=4, mlp_size=512, init="width")
    )
    training: Training = field(default_factory=lambda: Training(epochs=30, batch_size=32, **_PUBLISHED))


def _documents(text: bytes, between: bytes) -> Iterator[str]:
    """The parts of a text, without those that are empty; one at a time."""
    begin = 0
    while begin < len(text):
        end = text.find(between, begin)
        end = len(text) if end < 0 else end
        if document := text[begin:end].decode(errors="replace").strip():
            yield document
        begin = end + len(between)
