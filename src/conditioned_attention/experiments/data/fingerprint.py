"""Fingerprints of data sets: a few words and checksums that are the same on every machine.

They do not depend on where the data lie, when they were written, or how they are read: two runs with the same
fingerprint have seen the same samples.
"""

from __future__ import annotations

import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from conditioned_attention.storage.files import spelt

_SHOWN = 10  # if there are more classes, only the first ones and the last are named


def fingerprint_of(data: Any) -> dict[str, Any]:
    """The fingerprint of a data set: plain data that differ between different data sets.

    It comes from the data set's own method ``fingerprint`` if there is one.  For a `TensorDataset` every byte counts,
    for a `Subset` also its rows, for a `ConcatDataset` each part.  For any other data set it has only the number of
    items, and for a stream without a length nothing.

    >>> from conditioned_attention.experiments.data.recall import RecallSequences
    >>> fingerprint_of(RecallSequences(samples=9, vocabulary=16, pairs=2, length=8, stream=1))
    {'samples': 9, 'vocabulary': 16, 'pairs': 2, 'length': 8, 'stream': 1}
    >>> fingerprint_of(TensorDataset(torch.arange(3, dtype=torch.uint8)))
    {'items': 3, 'tensors': [{'shape': [3], 'dtype': 'torch.uint8', 'bytes': '0854897f'}]}
    >>> fingerprint_of([1, 2, 3])
    {'items': 3}
    """
    if hasattr(data, "fingerprint"):
        found: dict[str, Any] = data.fingerprint()
        return found
    if isinstance(data, Subset):
        return {**fingerprint_of(data.dataset), "rows": checksum(data.indices)}
    if isinstance(data, ConcatDataset):
        return {"parts": [fingerprint_of(part) for part in data.datasets]}
    if isinstance(data, TensorDataset):
        return {"items": len(data), "tensors": [_of_tensor(tensor) for tensor in data.tensors]}
    try:
        return {"items": len(data)}
    except TypeError:
        return {}


def _of_tensor(tensor: Tensor) -> dict[str, Any]:
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return {"shape": list(tensor.shape), "dtype": str(tensor.dtype), "bytes": checksum_of_bytes(values)}


def checksum(parts: Iterable[str | int]) -> str:
    """CRC-32 of names or numbers in their order; it does not depend on how a file system encodes accented letters.

    >>> checksum(["a", "b"]), checksum(["b", "a"])
    ('18572a97', '21cfd6ba')
    """
    lines = unicodedata.normalize("NFC", "".join(f"{part}\n" for part in parts))
    return checksum_of_bytes(lines.encode(errors="surrogatepass"))


def checksum_of_bytes(data: Any) -> str:
    """CRC-32 of bytes, or of an array's memory."""
    return f"{zlib.crc32(data):08x}"


def classes_in_words(names: Sequence[str]) -> str:
    """The number of classes and their names, in words.

    >>> classes_in_words(["rose", "tulip"])
    '2 classes: rose, tulip'
    """
    shown = list(names) if len(names) <= _SHOWN else [*names[: _SHOWN - 1], "…", names[-1]]
    return spelt(f"{len(names)} class{'es' * (len(names) > 1)}: {', '.join(shown)}")
