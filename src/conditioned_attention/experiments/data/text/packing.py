"""Text as blocks of equally many tokens, in one file on disk that is built once and read as memory."""

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
_NEIGHBOURS, _PARTS = 32, 10  # blocks that stay on one side of a split; one part of so many is held out
_SAVED = 16  # batches of documents after which what is done is noted
_COUNTED = 1 << 16  # blocks that are counted at a time
_TOKENS, _TOKENIZER, _ABOUT, _PROGRESS = "tokens.bin", "tokenizer.json", "about.json", "progress.json"


class About(TypedDict):
    """What blocks are made of: tokens of each, of how many kinds, and how many documents there were.

    ``duplicates`` were left out of these; None if nobody looked for them.
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
    """Blocks of tokens (S, N) in a file of little-endian whole numbers; none of them is held in memory.

    Handed out as whole batches (B, N), int64, by `__getitems__`.

    Args:
        file: the tokens, one block behind the other.
        length: N.
        vocabulary: every token is below it; the file has 16 bits a token where that is enough, else 32.
        rows: which blocks; default all, in their order.
    """

    def __init__(self, file: Path, length: int, vocabulary: int, rows: np.ndarray[Any, Any] | None = None) -> None:
        self.file, self.length, self.vocabulary = file, length, vocabulary
        self.rows = np.arange(len(self._tokens())) if rows is None else rows

    def _tokens(self) -> np.ndarray[Any, Any]:
        # Opened for each batch, since a worker would be sent the tokens themselves.
        return np.memmap(self.file, dtype_of(self.vocabulary), "r").reshape(-1, self.length)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        return torch.from_numpy(self._tokens()[self.rows[np.asarray(indices)]].astype(np.int64))

    def part(self, indices: np.ndarray[Any, Any]) -> Blocks:
        """These blocks of them."""
        return Blocks(self.file, self.length, self.vocabulary, self.rows[indices])

    def split(self, *, tuning: bool = False) -> tuple[Blocks, Blocks]:
        """(training set, evaluation set): of every ten times 32 blocks the last 32, with ``tuning`` the sixth ones.

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
        """The same, those with the most of a token first; where they have as many, in their order."""
        tokens = self._tokens()
        parts = [self.rows[begin : begin + _COUNTED] for begin in range(0, len(self), _COUNTED)]
        counts = np.concatenate([(tokens[part] == token).sum(1) for part in parts])
        return self.part(np.argsort(-counts, kind="stable"))

    def fingerprint(self) -> dict[str, Any]:
        """How many blocks, how long, of how many different tokens, and checksums of the file and of which blocks."""
        return {
            "items": len(self),
            "length": self.length,
            "vocabulary": self.vocabulary,
            "tokens": checksum_of_bytes(self._tokens()),
            "rows": checksum_of_bytes(self.rows.astype("<i8")),
        }


def dtype_of(vocabulary: int) -> np.dtype[Any]:
    """Of the tokens in a file."""
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

    Documents follow each other without padding, each as the tokenizer's template has it, and are cut every ``length``
    tokens; what is left at the end is less than a block.  A thousand documents are in memory at a time.  The folder
    appears when it is complete; of several processes that build it one is the first, and all read what that one built.

    Args:
        folder: has a name of its own for every text and every setting: its content is taken to be that.
        documents: gives them, anew and the same at every call: once for the tokenizer and once for the blocks.
        tokenizer: makes one of them.
        length: tokens of a block.
        resumable: a later call goes on where one was interrupted, behind the tokens that are written; documents are
            read again up to there, but not encoded.  Several processes wait for the one that builds.

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
    """What `packed` noted of a folder."""
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
    """Writes tokenizer, tokens and what they are, or what is missing of it."""
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
    """Writes all whole blocks behind those that are there already; returns how far it came."""
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
