"""Fashion-MNIST from its four idx files: 60,000 + 10,000 pictures of clothes, 28 × 28 grey, 10 classes (MIT)."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from conditioned_attention.experiments.data.fingerprint import checksum_of_bytes
from conditioned_attention.experiments.data.images.arrays import ImageArrays

HOW_TO_GET = (
    "Fashion-MNIST is four files, train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz "
    "and t10k-labels-idx1-ubyte.gz. On Debian and Ubuntu 'apt-get install dataset-fashion-mnist' puts them into "
    "/usr/share/datasets/fashion-mnist; elsewhere take them from the zalandoresearch/fashion-mnist repository. "
    "Name their folder with --data-dir."
)
_COUNTS = {"train": 60_000, "t10k": 10_000}


def load_fashion_mnist(folder: str | Path, train_limit: int | None = None) -> tuple[ImageArrays, ImageArrays]:
    """Loads (training set, test set) from the folder with the four files, gzipped or not.

    Args:
        folder: where the files are.
        train_limit: number of training images to use, from the first on; None for all.

    Raises:
        FileNotFoundError: a file is missing; the message says how to get it.
        ValueError: a file is truncated, damaged, or a different file under this name; or ``train_limit`` is out of
            range.
    """
    if train_limit is not None and not 1 <= train_limit <= _COUNTS["train"]:
        raise ValueError(f"train_limit must be between 1 and {_COUNTS['train']}, got {train_limit}")
    splits = []
    for (images, labels), limit in zip(read_pixels(Path(folder)), (train_limit, None)):
        splits.append((torch.from_numpy(images[:limit]), torch.from_numpy(labels[:limit]).long()))
    pixels = splits[0][0].float()
    mean, std = pixels.mean(), pixels.std()
    if std == 0:
        raise ValueError(f"{folder} holds training images of one colour only. {HOW_TO_GET}")
    scale = mean.reshape(1, 1, 1), std.reshape(1, 1, 1)
    train, test = (
        ImageArrays(((images.float() - mean) / std).unsqueeze(1), labels, checksum_of_bytes(images.numpy()), scale)
        for images, labels in splits
    )
    return train, test


def read_pixels(folder: Path) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(training set, test set) as stored: images (S, 28, 28) and labels (S,), uint8; raises as `load_fashion_mnist`."""
    train, test = (
        (_read_idx(folder, f"{split}-images-idx3-ubyte", (count, 28, 28)), _labels(folder, split, count))
        for split, count in _COUNTS.items()
    )
    return train, test


def _labels(folder: Path, split: str, count: int) -> np.ndarray:
    labels = _read_idx(folder, f"{split}-labels-idx1-ubyte", (count,))
    if labels.max() > 9:
        raise ValueError(f"{folder}/{split}-labels-idx1-ubyte holds labels above 9. {HOW_TO_GET}")
    return labels


def _read_idx(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array of one idx file of unsigned bytes, which must have this shape."""
    path = next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder / name}.gz is missing. {HOW_TO_GET}")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is truncated or no gzip file ({error}). {HOW_TO_GET}") from error
    header = 4 + 4 * len(shape)
    sizes = tuple(int(n) for n in np.frombuffer(data[4:header], ">u4")) if len(data) >= header else ()
    if data[:4] != bytes((0, 0, 8, len(shape))) or sizes != shape:
        raise ValueError(
            f"{path} should be an idx file of unsigned bytes of shape {shape}; it starts with {data[:4].hex()} and "
            f"sizes {sizes}. Were files swapped or renamed? {HOW_TO_GET}"
        )
    if len(data) != header + math.prod(shape):
        raise ValueError(
            f"{path} holds {len(data)} bytes of {header + math.prod(shape)}: truncated or damaged. {HOW_TO_GET}"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()
