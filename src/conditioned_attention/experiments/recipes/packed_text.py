"""What recipes have in common whose text becomes blocks of tokens on disk."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from conditioned_attention.experiments.data.scan import default_cache_dir, stamp_of
from conditioned_attention.experiments.data.text.documents import Documents, Streamed, Unique, parts_of
from conditioned_attention.experiments.data.text.packing import Blocks, about_blocks, packed
from conditioned_attention.experiments.recipes.text_source import TextName, TextSource
from conditioned_attention.storage.settings import added, place

_VERSION = 2  # of how text becomes blocks
_TOKENIZER_DOCUMENTS = 1_000_000

Make = Callable[[Iterable[str]], Any]  # makes a tokenizer of the documents to train it on


@dataclass(frozen=True)
class PackedText(TextSource):
    """The settings that all recipes have which turn text into blocks of tokens on disk.

    Attributes:
        eval_blocks: evaluate on this many blocks, spread over the held-out text; None for all.
        dataset: for ``text="files"``, instead of ``path``: a Hugging Face data set with a column ``text``, by its name
            on the hub or as a folder of its files.  It is streamed: read once for the tokenizer and once for the
            blocks, and never held whole in memory or on disk.  Documents are its rows, which in .txt files are lines;
            the documents of ``path`` are paragraphs.
        dataset_config: which configuration of the data set.
        dataset_split: which split of the data set.
        documents: read this many documents of ``dataset``, from the first; None for all.
        unique: leave out documents that are exact copies of earlier ones.
        cache_dir: where the blocks are kept; default ``~/.cache/conditioned-attention``.
    """

    text: TextName = "topics"
    eval_blocks: int | None = 2048
    cache_dir: Path | None = place(None)
    dataset: str | None = added(None)
    dataset_config: str | None = added(None)
    dataset_split: str = added("train")
    documents: int | None = added(None)
    unique: bool = added(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset is not None and (self.text != "files" or self.path is not None or self.eval_split is not None):
            raise ValueError(f"dataset={self.dataset!r} goes with text='files', in place of path and eval_split")
        if self.documents is not None and (self.documents < 1 or self.dataset is None):
            raise ValueError(f"documents must be at least 1, and goes with dataset, got {self.documents}")

    def blocks(
        self,
        length: int,
        make: Make,
        how: Sequence[Any],
        notes: list[str],
        *,
        tuning: bool = False,
        trained: bool = True,
        behind: str = "",
    ) -> tuple[tuple[Blocks, Blocks], Any]:
        """Blocks to train and to evaluate on, and their tokenizer; built at the first call.

        Args:
            length: number of tokens in a block.
            make: makes the tokenizer.
            how: what the tokenizer depends on besides the text, as plain data.
            notes: gets lines about the data.
            tuning: whether what is held out should be part of the training set.
            trained: whether the tokenizer is trained on the text.
            behind: text to put behind every document.
        """
        packing = _Packing(self, length, how, behind)
        if self.dataset is not None:
            stream = Streamed(self.dataset, self.dataset_config, self.dataset_split, self.documents)
            some = partial(_first, make) if trained else make
            blocks, tokenizer, held = *packing.of(stream, stream.stamp(), some, notes), None
        else:
            train, held = self.read(notes)
            blocks, tokenizer = packing.of_text(train, b"", make, notes)
        if held is None:
            words = "no evaluation set: every tenth run of 32 blocks is held out"
            notes.append(words + "; the tokenizer has seen it" * trained)
        known = None if held is None or tuning else packing.of_text(held, train, lambda _: tokenizer, [])[0]
        return blocks.split(tuning=tuning and held is None) if known is None else (blocks, known), tokenizer


def _first(make: Make, documents: Iterable[str]) -> Any:
    """Of a stream the first million documents are read for the tokenizer."""
    return make(itertools.islice(documents, _TOKENIZER_DOCUMENTS))


def filling(tokenizer: Any, vocabulary: int) -> list[str]:
    """What is to be said where a text fills less than the vocabulary."""
    filled = tokenizer.get_vocab_size()
    return [f"the text fills {filled:,} pieces of a vocabulary of {vocabulary:,}"] * (filled < vocabulary)


@dataclass(frozen=True)
class _Packing:
    """How text becomes blocks."""

    recipe: PackedText
    length: int
    how: Sequence[Any]
    behind: str

    def of_text(self, text: bytes, beside: bytes, make: Make, notes: list[str]) -> tuple[Blocks, Any]:
        """A text's blocks, and the tokenizer that made them; ``beside`` is what that was trained on, if not this."""
        text, beside = (part.replace(b"\r\n", b"\n") for part in (text, beside))  # else one has no empty lines
        digests = [hashlib.sha256(part).hexdigest() for part in (text, beside)]
        between = self.recipe.between
        return self.of(partial(parts_of, text, between), [*digests, between.decode()], make, notes)

    def of(self, documents: Documents, of: list[Any], make: Make, notes: list[str]) -> tuple[Blocks, Any]:
        recipe = self.recipe
        stamp = stamp_of([_VERSION, *of, *self.how, self.length, recipe.unique])
        folder = (recipe.cache_dir or default_cache_dir()).expanduser() / f"text-{stamp}"
        documents = partial(_ended, documents, self.behind) if self.behind else documents
        documents = Unique(documents) if recipe.unique else documents
        found = packed(folder, documents, make, self.length, resumable=recipe.dataset is not None)
        about = about_blocks(folder)
        if about["duplicates"] is not None:
            kept = f"{about['documents']:,} stay"
            notes.append(f"{about['duplicates']:,} documents that were there before are left out, {kept}")
        return found


def _ended(documents: Documents, behind: str) -> Iterator[str]:
    """Documents with something behind each."""
    return (document + behind for document in documents())
