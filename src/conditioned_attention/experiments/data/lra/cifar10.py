"""CIFAR-10 (Krizhevsky 2009) from its own files, the binary version: 50,000 + 10,000 pictures in 10 classes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from conditioned_attention.experiments.data.lra.images import SIDE, grey
from conditioned_attention.experiments.data.split import listed

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HOW_TO_GET = (
    "CIFAR-10's binary version is six files, data_batch_1.bin to data_batch_5.bin and test_batch.bin, in the folder "
    "cifar-10-batches-bin of cifar-10-binary.tar.gz (https://www.cs.toronto.edu/~kriz/cifar.html). Name it with "
    "--data-dir."
)
_RECORD = 1 + 3 * SIDE * SIDE  # a label, then all red, all green and all blue pixels
_TRAIN, _TEST = [f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"]


class Pictures(NamedTuple):
    """Grey levels (S, 32, 32) and labels (S,), uint8, and what a report should say about them."""

    pixels: np.ndarray
    labels: np.ndarray
    notes: list[str]


def read_cifar10(folder: Path) -> tuple[Pictures, Pictures]:
    """Reads (training set, test set), with pictures in the order of the files.

    Records with an unknown label, and bytes at the end of a file that make no whole record, are left out and noted.

    Args:
        folder: ``cifar-10-batches-bin``, or the folder that contains it.

    Raises:
        FileNotFoundError: a file is missing, or only the version for Python or Matlab is there; the message says what
            to do.
        ValueError: a file holds no whole picture.
    """
    inside = folder / "cifar-10-batches-bin"
    folder = inside if inside.is_dir() else folder
    if not (folder / _TEST[0]).is_file() and (others := _other_versions(folder)):
        raise FileNotFoundError(
            f"{others[0]} is CIFAR-10 for Python (pickles, which may run code when read) or Matlab. {HOW_TO_GET}"
        )
    train, test = (_together([_read(folder / name) for name in names]) for names in (_TRAIN, _TEST))
    return train, test


def _other_versions(folder: Path) -> list[Path]:
    names = ("cifar-10-batches-py", "cifar-10-batches-mat", "data_batch_1", "data_batch_1.mat", "batches.meta")
    return [folder / name for name in names if (folder / name).exists()]


def _read(file: Path) -> Pictures:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing. {HOW_TO_GET}")
    data = np.fromfile(file, np.uint8)
    whole = len(data) // _RECORD
    if not whole:
        raise ValueError(f"{file} holds {len(data)} bytes, less than one picture of {_RECORD}. {HOW_TO_GET}")
    records, rest = data[: whole * _RECORD].reshape(whole, _RECORD), len(data) % _RECORD
    labels = records[:, 0]
    known = labels < len(CLASSES)
    broken = [f"record {i + 1} has the label {labels[i]}, not 0 to 9" for i in np.flatnonzero(~known)]
    broken += [f"the last {rest} bytes are no whole record of {_RECORD}"] if rest else []
    notes = [f"{file.name}: {len(broken)} broken records are left out: {listed(broken, '; ')}"] if broken else []
    if not known.any():
        raise ValueError(f"{file} has no picture of a class: {listed(broken, '; ')}. {HOW_TO_GET}")
    return Pictures(grey(records[known, 1:].reshape(-1, 3, SIDE, SIDE)), labels[known], notes)


def _together(parts: list[Pictures]) -> Pictures:
    pixels, labels = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    return Pictures(pixels, labels, [note for part in parts for note in part.notes])
