"""Documents that are read one at a time: parts of a text or of a streamed data set, each only once."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conditioned_attention.environment import needs
from conditioned_attention.experiments.data.scan import reason_of

Documents = Callable[[], Iterable[str]]  # gives all of them, anew at every call


def parts_of(text: bytes, between: bytes) -> Iterator[str]:
    """The parts of a text that are separated by ``between``, without empty ones."""
    begin = 0
    while begin < len(text):
        end = text.find(between, begin)
        end = len(text) if end < 0 else end
        if document := text[begin:end].decode(errors="replace").strip():
            yield document
        begin = end + len(between)


class Unique:
    """Documents without exact duplicates, where white space at the ends of a document does not count.

    It remembers 16 bytes of each, which take about 100 in memory.

    >>> once = Unique(lambda: ["a", "b", " a"])
    >>> list(once()), once.removed
    (['a', 'b'], 1)
    """

    def __init__(self, documents: Documents) -> None:
        self._documents, self.removed = documents, 0

    def __call__(self) -> Iterator[str]:
        seen, self.removed = set[bytes](), 0
        for document in self._documents():
            digest = hashlib.blake2b(document.strip().encode(errors="surrogatepass"), digest_size=16).digest()
            if digest in seen:
                self.removed += 1
            else:
                seen.add(digest)
                yield document


@dataclass(frozen=True)
class Streamed:
    """The column ``text`` of a Hugging Face data set, streamed from the hub or from a folder of its files.

    Attributes:
        dataset: its name on the hub, or a folder with .parquet, .jsonl, .csv or .txt files.
        config: which of its parts; None for its only one.
        split: which of its splits.
        count: number of documents to read, from the first on; None for all.
    """

    dataset: str
    config: str | None = None
    split: str = "train"
    count: int | None = None

    def __call__(self) -> Iterator[str]:
        """The documents, without empty ones.

        Raises:
            ModuleNotFoundError: ``datasets`` is not installed; the message says how to get it.
            ValueError: the data set cannot be opened, or has no column ``text``.
        """
        with needs("datasets", f"the data set {self.dataset}"):
            from datasets import load_dataset
        try:
            rows: Any = load_dataset(self.dataset, self.config, split=self.split, streaming=True)
            first = next(iter(rows))
        except StopIteration:
            raise ValueError(f"split {self.split!r} of {self.dataset} is empty") from None
        except Exception as error:  # no network, no such name, no such split, damaged files
            raise ValueError(f"the data set {self.dataset} cannot be streamed ({reason_of(error)})") from error
        if not isinstance(first.get("text"), str):
            raise ValueError(f"{self.dataset} has no column 'text' with strings, only {', '.join(first)}")
        texts = (row["text"].strip() for row in itertools.islice(rows, self.count) if row["text"])
        return (text for text in texts if text)

    def stamp(self) -> list[Any]:
        """What identifies the data set: its name and, for a folder, the files; one on the hub may change unnoticed."""
        folder = Path(self.dataset).expanduser()
        files = sorted(file for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else []
        there = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        return [self.dataset, self.config, self.split, self.count, there]
