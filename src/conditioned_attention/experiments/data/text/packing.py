"""Text as blocks of equally many tokens, in one file on disk that is built once and read as memory."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from conditioned_attention.experiments.data.fingerprint import checksum_of_bytes
from conditioned_attention.storage.files import UNFINISHED, naming, read_json, write_json, write_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_DOCUMENTS = 1024  # encoded at a time
_NEIGHBOURS, _PARTS = 32, 10  # blocks that stay on one side of a split; one part of so many is held out
_TOKENS, _TOKENIZER, _ABOUT = "tokens.bin", "tokenizer.json", "about.json"


class _About(TypedDict):
    length: int
    vocabulary: int


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
    folder: Path, documents: Callable[[], Iterable[str]], tokenizer: Callable[[Iterable[str]], Tokenizer], length: int
) -> tuple[Blocks, Tokenizer]:
    """The documents as blocks, and the tokenizer; built at the first call, and read from ``folder`` afterwards.

    Documents follow each other without padding, each as the tokenizer's template has it, and are cut every ``length``
    tokens; what is left at the end is less than a block.  A thousand documents are in memory at a time.  The folder
    appears when it is complete; of several processes that build it one is the first, and all read what that one built.

    Args:
        folder: has a name of its own for every text and every setting: its content is taken to be that.
        documents: gives them, anew at every call: one for the tokenizer and one for the blocks.
        tokenizer: makes one of them.
        length: tokens of a block.

    Raises:
        ValueError: the length is below 2, or the text fills no block.
        OSError: the folder cannot be written.
    """
    from tokenizers import Tokenizer

    if length < 2:
        raise ValueError(f"length must be at least 2 tokens, got {length}")
    if not folder.is_dir():
        _build(folder, documents, tokenizer, length)
    about = read_json(folder / _ABOUT, _About)
    found = Blocks(folder / _TOKENS, about["length"], about["vocabulary"])
    return found, Tokenizer.from_file(str(folder / _TOKENIZER))


def _build(
    folder: Path, documents: Callable[[], Iterable[str]], make: Callable[[Iterable[str]], Tokenizer], length: int
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(UNFINISHED, f".{folder.name}.", folder.parent))
    try:
        tokenizer = make(documents())
        vocabulary = tokenizer.get_vocab_size()
        blocks = _write(unfinished / _TOKENS, _encoded(tokenizer, documents()), length, dtype_of(vocabulary))
        if not blocks:
            raise ValueError(f"the text is shorter than one block of {length} tokens")
        write_text(unfinished / _TOKENIZER, tokenizer.to_str())
        write_json(unfinished / _ABOUT, {"length": length, "vocabulary": vocabulary})
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _encoded(tokenizer: Tokenizer, documents: Iterable[str]) -> Iterator[list[int]]:
    waiting = iter(documents)
    while some := list(itertools.islice(waiting, _DOCUMENTS)):
        yield from (encoding.ids for encoding in tokenizer.encode_batch(some))


def _write(file: Path, documents: Iterable[list[int]], length: int, dtype: np.dtype[Any]) -> int:
    """Writes all whole blocks; returns how many they are."""
    blocks, rest = 0, np.empty(0, dtype)
    with naming(file), file.open("wb") as out:
        for ids in documents:
            rest = np.concatenate([rest, np.array(ids, dtype)])
            whole = len(rest) // length
            rest[: whole * length].tofile(out)
            blocks, rest = blocks + whole, rest[whole * length :]
    return blocks
