"""Text as bytes, cut into windows: the help texts of the standard library, WordNet's definitions, or any files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from conditioned_attention.experiments.data.fingerprint import checksum_of_bytes

_WINDOWS = 32  # of a block: neighbouring windows, which resemble each other, stay on one side of a split
_PARTS = 10

WORDNET_FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
HOW_TO_GET_WORDNET = (
    "WordNet's definitions are in four files, data.noun, data.verb, data.adj and data.adv. On Debian and Ubuntu "
    "'apt-get install wordnet-base' puts them into /usr/share/wordnet; elsewhere take WordNet 3.0's dict folder. "
    "Name their folder with --path."
)


class ByteWindows(Dataset[Tensor]):
    """Windows of bytes (S, L + 1), uint8: L bytes to read, and for each the next one to predict.

    `__getitems__` returns whole batches (B, L + 1), int64.
    """

    vocabulary = 256

    def __init__(self, windows: Tensor) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Tensor:
        return self.windows[index].long()

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        return self.windows[torch.as_tensor(indices)].long()

    def part(self, indices: np.ndarray[Any, Any]) -> ByteWindows:
        """The windows with these indices."""
        return ByteWindows(self.windows[torch.from_numpy(indices)])

    def fingerprint(self) -> dict[str, Any]:
        """How many windows, how long, and a checksum of their bytes."""
        count, length = self.windows.shape
        return {"items": count, "bytes": length, "checksum": checksum_of_bytes(self.windows.contiguous().numpy())}


def windows_of(text: bytes, context: int) -> ByteWindows:
    """All windows of a text; an incomplete one at its end is dropped.

    Raises:
        ValueError: the text is shorter than one window.
    """
    _check_context(context)
    if len(text) <= context:
        raise ValueError(f"the text has {len(text)} bytes, and a window with context={context} needs {context + 1}")
    return ByteWindows(_cut(text, context))


def split_windows(text: bytes, context: int, *, tuning: bool = False) -> tuple[ByteWindows, ByteWindows]:
    """(training set, evaluation set) of one text.

    The text is cut into blocks of 32 windows of ``context`` bytes, and every tenth block is for evaluation.  With
    ``tuning`` another block of every ten takes its place, and the evaluation set itself is not touched.

    Raises:
        ValueError: the text is too short for both.
    """
    _check_context(context)
    count = (len(text) - 1) // context
    block = torch.arange(count) // _WINDOWS
    held = block % _PARTS == _PARTS - 1
    train = ~held
    if tuning:
        held = block % _PARTS == _PARTS // 2
        train &= ~held
    if not (held.any() and train.any()):
        need = _PARTS * _WINDOWS * context
        raise ValueError(
            f"the text has {len(text)} bytes; to be split in blocks with context={context} it needs {need}"
        )
    windows = _cut(text, context)
    return ByteWindows(windows[train]), ByteWindows(windows[held])


def _check_context(context: int) -> None:
    if context < 2:
        raise ValueError(f"context must be at least 2 bytes, got {context}")


def _cut(text: bytes, context: int) -> Tensor:
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return data[: (len(data) - 1) // context * context + 1].unfold(0, context + 1, context)


def standard_library_text() -> bytes:
    """0.46 MB of English text: the topics of Python's own help, as in the installed Python."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics)).encode()


def wordnet_glosses(folder: Path) -> bytes:
    """WordNet's 117,659 definitions with their examples, one line each: 9.3 MB.

    Raises:
        FileNotFoundError: a file is missing; the message says how to get it.
        ValueError: a file is not one of WordNet's.
    """
    glosses: list[bytes] = []
    for name in WORDNET_FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing. {HOW_TO_GET_WORDNET}")
        lines = (folder / name).read_bytes().splitlines()
        found = [line.partition(b"| ")[2].strip() for line in lines if not line.startswith(b" ")]
        if not found or not all(found):
            raise ValueError(
                f"{folder / name} has lines without a definition: it is not WordNet's. {HOW_TO_GET_WORDNET}"
            )
        glosses += found
    return b"\n".join(glosses)
