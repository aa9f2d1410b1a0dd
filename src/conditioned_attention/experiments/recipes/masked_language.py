"""Masked language modelling by Crammed BERT: the recipes ``crammed_bert`` and ``small_bert``."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from conditioned_attention.experiments.data.scan import default_cache_dir, stamp_of
from conditioned_attention.experiments.data.text.documents import Documents, Streamed, Unique, parts_of
from conditioned_attention.experiments.data.text.packing import Blocks, about_blocks, packed
from conditioned_attention.experiments.data.text.wordpiece import train_wordpiece
from conditioned_attention.experiments.models.crammed_bert import CrammedBert
from conditioned_attention.experiments.recipes.text_source import TextName, TextSource
from conditioned_attention.experiments.tasks.masked_tokens import MaskedTokens
from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.storage.settings import added, place

_VERSION = 2  # of how text becomes blocks
_TOKENIZER_DOCUMENTS = 1_000_000

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
    Not as there: WordPiece is trained on your text, which may fill less than the vocabulary; no document is
    filtered out; mixed precision is bfloat16; and the factor on the positions does not decay.

    Attributes:
        vocabulary: at most so many pieces of words.
        masked: share of the tokens that are hidden, in every block as many.
        eval_blocks: score on so many blocks, spread over the held-out text; None for all.
        dataset: of ``text="files"``, in place of ``path``: a Hugging Face data set with a column ``text``, its name on
            the hub or a folder of its files, which is streamed: read once for the tokenizer and once for the blocks,
            and never whole in memory or on disk.
        dataset_config, dataset_split: which part of it.
        documents: the first so many of it; None for all.
        unique: whether documents that were there before, letter for letter, are left out.
        curriculum: ``"sentences"`` reads the blocks with the most full stops first, as the authors do.
        cache_dir: where the blocks are kept; default ``~/.cache/conditioned-attention``.
        model: the network; the default has 119.6 million parameters at a vocabulary of 32,768.
        training: how it is trained.
    """

    text: TextName = "files"
    vocabulary: int = 32768
    masked: float = 0.25
    eval_blocks: int | None = 2048
    cache_dir: Path | None = place(None)
    model: CrammedBert = field(default_factory=CrammedBert)
    dataset: str | None = added(None)
    dataset_config: str | None = added(None)
    dataset_split: str = added("train")
    documents: int | None = added(None)
    unique: bool = added(False)
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
        if self.dataset is not None and (self.text != "files" or self.path is not None or self.eval_split is not None):
            raise ValueError(f"dataset={self.dataset!r} goes with text='files', in place of path and eval_split")
        if self.documents is not None and (self.documents < 1 or self.dataset is None):
            raise ValueError(f"documents must be at least 1, and goes with dataset, got {self.documents}")
        if self.curriculum != "none" and self.training.order != "stored":
            raise ValueError(f"curriculum={self.curriculum!r} needs order='stored', got {self.training.order!r}")

    def task(self, *, tuning: bool = False) -> Task:
        notes: list[str] = []
        if self.dataset is not None:
            stream = Streamed(self.dataset, self.dataset_config, self.dataset_split, self.documents)
            blocks, tokenizer, held = *self._packed(stream, stream.stamp(), self._tokenizer, notes), None
        else:
            train, held = self.read(notes)
            blocks, tokenizer = self._packed_text(train, b"", self._tokenizer, notes)
        if held is None:
            data = blocks.split(tuning=tuning)
            notes.append("no evaluation set: every tenth run of 32 blocks is held out; the tokenizer has seen it")
        else:
            known = self._packed_text(held, train, lambda _: tokenizer, [])[0] if not tuning else None
            data = blocks.split() if known is None else (blocks, known)
        if self.curriculum == "sentences":
            data = data[0].most_first(tokenizer.encode(".").ids[0]), data[1]
            notes.append("curriculum: blocks with the most full stops, and so the shortest sentences, come first")
        if (filled := tokenizer.get_vocab_size()) < self.vocabulary:
            notes.append(f"the text fills {filled:,} pieces of a vocabulary of {self.vocabulary:,}")
        return MaskedTokens(data, self.model, tokenizer, self.masked, self.eval_blocks, notes)

    def _tokenizer(self, documents: Iterable[str]) -> Any:
        """Of a stream the first million documents are read for it."""
        some = itertools.islice(documents, _TOKENIZER_DOCUMENTS if self.dataset is not None else None)
        return train_wordpiece(some, vocabulary=self.vocabulary)

    def _packed_text(self, text: bytes, beside: bytes, tokenizer: Any, notes: list[str]) -> tuple[Blocks, Any]:
        """A text's blocks, and the tokenizer that made them; ``beside`` is what that was trained on, if not this."""
        digests = [hashlib.sha256(part).hexdigest() for part in (text, beside)]
        documents = partial(parts_of, text, self.between)
        return self._packed(documents, [*digests, self.between.decode()], tokenizer, notes)

    def _packed(self, documents: Documents, of: list[Any], tokenizer: Any, notes: list[str]) -> tuple[Blocks, Any]:
        stamp = stamp_of([_VERSION, *of, self.vocabulary, self.model.context, self.unique])
        folder = (self.cache_dir or default_cache_dir()).expanduser() / f"text-{stamp}"
        documents = Unique(documents) if self.unique else documents
        found = packed(folder, documents, tokenizer, self.model.context, resumable=self.dataset is not None)
        about = about_blocks(folder)
        if about["duplicates"] is not None:
            kept = f"{about['documents']:,} stay"
            notes.append(f"{about['duplicates']:,} documents that were there before are left out, {kept}")
        return found


@dataclass(frozen=True)
class SmallBert(CrammedBertRecipe):
    """Crammed BERT of 1.6 million parameters, 0.9 of them its embedding, on English that every Python brings along.

    Attributes:
        model: the network.
        training: how it is trained.
    """

    text: TextName = "topics"
    model: CrammedBert = field(
        default_factory=lambda: CrammedBert(hidden_size=128, layers=4, heads=4, mlp_size=512, init="width")
    )
    training: Training = field(default_factory=lambda: Training(epochs=30, batch_size=32, **_PUBLISHED))
