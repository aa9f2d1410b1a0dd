"""Text as blocks of equally many tokens, in one file on disk that is built once and memory-mapped."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from conditioned_attention.experiments.data.fingerprint import checksum_of_bytes
from conditioned_attention.experiments.data.text.documents import Documents
from conditioned_attention.storage.files import UNFINISHED, naming, read_json, write_json, write_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_DOCUMENTS = 1024  # encoded at a time
_NEIGHBOURS, _PARTS = 32, 10  # neighbouring blocks that stay on one side of a split; one part in so many is held out
_SAVED = 16  # batches of documents after which progress is saved
_COUNTED = 1 << 16  # blocks that are counted at a time
_TOKENS, _TOKENIZER, _ABOUT, _PROGRESS = "tokens.bin", "tokenizer.json", "about.json", "progress.json"


class About(TypedDict):
    """What blocks are made of: tokens per block, size of the vocabulary, and number of documents.

    ``duplicates`` counts the duplicate documents that were left out; None if they were not looked for.
    """

    length: int
    vocabulary: int
    documents: int
    duplicates: int | None


class _Progress(TypedDict):
    documents: int
    blocks: int
    rest: list[int]


class Blocks(Dataset[Tensor]):
    """Blocks of tokens (S, N) in a file of little-endian integers; none of them is held in memory.

    `__getitems__` returns whole batches (B, N), int64.

    Args:
        file: the tokens, one block after another.
        length: N.
        vocabulary: every token is below it; the file has 16 bits per token if that is enough, else 32.
        rows: which blocks; default all, in their order.
    """

    def __init__(self, file: Path, length: int, vocabulary: int, rows: np.ndarray[Any, Any] | None = None) -> None:
        self.file, self.length, self.vocabulary = file, length, vocabulary
        self.rows = np.arange(len(self._tokens())) if rows is None else rows

    def _tokens(self) -> np.ndarray[Any, Any]:
        # Opened for each batch: an open file would be sent to a worker with all its tokens.
        return np.memmap(self.file, dtype_of(self.vocabulary), "r").reshape(-1, self.length)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        return torch.from_numpy(self._tokens()[self.rows[np.asarray(indices)]].astype(np.int64))

    def part(self, indices: np.ndarray[Any, Any]) -> Blocks:
        """The blocks with these indices."""
        return Blocks(self.file, self.length, self.vocabulary, self.rows[indices])

    def split(self, *, tuning: bool = False) -> tuple[Blocks, Blocks]:
        """(training set, evaluation set): the latter has the last 32 of every 320 blocks, with ``tuning`` the sixth 32.

        With ``tuning`` the last 32 are in neither set.

        Raises:
            ValueError: too few blocks for both.
        """
        part = np.arange(len(self)) // _NEIGHBOURS % _PARTS
        held = part == (_PARTS // 2 if tuning else _PARTS - 1)
        train = ~held & (part != _PARTS - 1)
        if not held.any():
            raise ValueError(
                f"the text fills {len(self)} blocks of {self.length} tokens; to be split it has to fill more than "
                f"{_NEIGHBOURS * (_PARTS - 1)}"
            )
        return self.part(np.flatnonzero(train)), self.part(np.flatnonzero(held))

    def most_first(self, token: int) -> Blocks:
        """The same blocks, with those first that have the most of a token; ties keep their order."""
        tokens = self._tokens()
        parts = [self.rows[begin : begin + _COUNTED] for begin in range(0, len(self), _COUNTED)]
        counts = np.concatenate([(tokens[part] == token).sum(1) for part in parts])
        return self.part(np.argsort(-counts, kind="stable"))

    def fingerprint(self) -> dict[str, Any]:
        """The number of blocks, their length, the vocabulary, and checksums of the file and of the rows."""
        return {
            "items": len(self),
            "length": self.length,
            "vocabulary": self.vocabulary,
            "tokens": checksum_of_bytes(self._tokens()),
            "rows": checksum_of_bytes(self.rows.astype("<i8")),
        }


def dtype_of(vocabulary: int) -> np.dtype[Any]:
    """The dtype of the tokens in a file."""
    return np.dtype("<u2" if vocabulary <= 2**16 else "<u4")


def packed(
    folder: Path,
    documents: Documents,
    tokenizer: Callable[[Iterable[str]], Tokenizer],
    length: int,
    *,
    resumable: bool = False,
) -> tuple[Blocks, Tokenizer]:
    """The documents as blocks, and the tokenizer; built at the first call, and read from ``folder`` afterwards.

    Documents follow each other without padding, each encoded with the tokenizer's template, and are cut every
    ``length`` tokens; an incomplete block at the end is dropped.  A thousand documents are in memory at a time.  The
    folder appears when it is complete; if several processes build it, all read what the first one has built.

    Args:
        folder: must have a different name for every text and every setting, since an existing one is used as it is.
        documents: returns the same documents at every call: once for the tokenizer and once for the blocks.
        tokenizer: makes a tokenizer from the documents.
        length: number of tokens in a block.
        resumable: a later call continues an interrupted one after the tokens that are written; documents are read again
            up to there, but not encoded.  Other processes wait for the one that builds.

    Raises:
        ValueError: the length is below 2, or the text fills no block.
        OSError: the folder cannot be written.
    """
    from tokenizers import Tokenizer

    if length < 2:
        raise ValueError(f"length must be at least 2 tokens, got {length}")
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        (_build_on if resumable else _build)(folder, documents, tokenizer, length)
    about = about_blocks(folder)
    found = Blocks(folder / _TOKENS, about["length"], about["vocabulary"])
    return found, Tokenizer.from_file(str(folder / _TOKENIZER))


def about_blocks(folder: Path) -> About:
    """What `packed` has noted about a folder."""
    about: About = read_json(folder / _ABOUT, About)
    return about


def _build(folder: Path, documents: Documents, make: Callable[[Iterable[str]], Tokenizer], length: int) -> None:
    unfinished = Path(tempfile.mkdtemp(UNFINISHED, f".{folder.name}.", folder.parent))
    try:
        _fill(unfinished, documents, make, length)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _build_on(folder: Path, documents: Documents, make: Callable[[Iterable[str]], Tokenizer], length: int) -> None:
    from filelock import FileLock

    unfinished = folder.parent / f".{folder.name}{UNFINISHED}"
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if not folder.is_dir():  # else another process has built it meanwhile
            unfinished.mkdir(exist_ok=True)
            _fill(unfinished, documents, make, length)
            (unfinished / _PROGRESS).unlink()
            unfinished.rename(folder)


def _fill(folder: Path, documents: Documents, make: Callable[[Iterable[str]], Tokenizer], length: int) -> None:
    """Writes the tokenizer, the tokens and the notes about them, as far as they are missing."""
    from tokenizers import Tokenizer

    if not (folder / _TOKENIZER).is_file():
        write_text(folder / _TOKENIZER, make(documents()).to_str())
    tokenizer = Tokenizer.from_file(str(folder / _TOKENIZER))
    vocabulary = tokenizer.get_vocab_size()
    done = _write(folder, tokenizer, documents(), length, dtype_of(vocabulary))
    if not done["blocks"]:
        raise ValueError(f"the text is shorter than one block of {length} tokens")
    duplicates = getattr(documents, "removed", None)
    about = About(length=length, vocabulary=vocabulary, documents=done["documents"], duplicates=duplicates)
    write_json(folder / _ABOUT, about)


def _write(
    folder: Path, tokenizer: Tokenizer, documents: Iterable[str], length: int, dtype: np.dtype[Any]
) -> _Progress:
    """Appends all whole blocks to those that are written already; returns the progress."""
    file, kept = folder / _TOKENS, folder / _PROGRESS
    done = read_json(kept, _Progress) if kept.is_file() else _Progress(documents=0, blocks=0, rest=[])
    blocks, rest, count = done["blocks"], np.array(done["rest"], dtype), done["documents"]
    waiting = itertools.islice(documents, count, None)
    with naming(file), file.open("r+b" if blocks else "wb") as out:
        out.truncate(blocks * length * dtype.itemsize)
        out.seek(0, os.SEEK_END)
        for batch in itertools.count(1):
            if not (some := list(itertools.islice(waiting, _DOCUMENTS))):
                break
            for encoding in tokenizer.encode_batch(some):
                rest = np.concatenate([rest, np.array(encoding.ids, dtype)])
                whole = len(rest) // length
                rest[: whole * length].tofile(out)
                blocks, rest = blocks + whole, rest[whole * length :]
            count += len(some)
            if batch % _SAVED == 0:
                out.flush()
                os.fsync(out.fileno())
                write_json(kept, _Progress(documents=count, blocks=blocks, rest=rest.tolist()))
    done = _Progress(documents=count, blocks=blocks, rest=rest.tolist())
    write_json(kept, done)
    return done
