"""Labelled sequences of token ids in memory, padded at each access."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from conditioned_attention.experiments.data.fingerprint import checksum_of_bytes


class TokenSequences(Dataset[tuple[Tensor, Tensor]]):
    """Labelled sequences of ids, all in one array one after another.

    Args:
        tokens: ids of all sequences, (sum of the lengths,), uint8 or another integer; 0 is padding.
        lengths: of each sequence, (S,).
        labels: (S,).
        padded: length that sequences are padded to at their end; longer ones are cut.
        origin: plain data that say where the sequences come from, for the fingerprint.

    >>> data = TokenSequences(np.array([3, 4, 5], np.uint8), np.array([2, 1]), np.array([7, 9]), padded=4)
    >>> data.__getitems__([1, 0])
    (tensor([[5, 0, 0, 0],
            [3, 4, 0, 0]]), tensor([9, 7]))
    """

    def __init__(
        self,
        tokens: np.ndarray,
        lengths: np.ndarray,
        labels: np.ndarray,
        padded: int,
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokens, self.lengths, self.labels, self.padded = tokens, lengths, labels, padded
        self.origin = dict(origin or {})
        self._ends = np.cumsum(lengths)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Ids (padded,) and label (), int64."""
        ids, labels = self.__getitems__([index])
        return ids[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The same for a whole batch: (B, padded) and (B,)."""
        ids = np.zeros((len(indices), self.padded), np.int64)
        for row, index in enumerate(indices):
            sequence = self.sequence(index)[: self.padded]
            ids[row, : len(sequence)] = sequence
        return torch.from_numpy(ids), torch.from_numpy(self.labels[np.asarray(indices)].astype(np.int64))

    def sequence(self, index: int) -> np.ndarray:
        """The ids of one sequence, without padding."""
        end = self._ends[index]
        return self.tokens[end - self.lengths[index] : end]

    def part(self, first: int, count: int) -> TokenSequences:
        """``count`` sequences from number ``first`` on."""
        chosen = slice(first, first + count)
        begin = int(self.lengths[:first].sum())
        tokens = self.tokens[begin : begin + int(self.lengths[chosen].sum())]
        return TokenSequences(tokens, self.lengths[chosen], self.labels[chosen], self.padded, self.origin)

    def fingerprint(self) -> dict[str, Any]:
        """The number of sequences, their padded length and origin, and checksums of all ids, lengths and labels."""
        arrays = (self.tokens, self.lengths.astype(np.int64), self.labels.astype(np.int64))
        sums = "-".join(checksum_of_bytes(np.ascontiguousarray(array)) for array in arrays)
        return {"items": len(self), "padded": self.padded, **self.origin, "checksum": sums}


class TokenPairs(Dataset[tuple[Tensor, Tensor]]):
    """Labelled pairs of sequences, padded to the same length; the label is that of the first sequence.

    >>> one = TokenSequences(np.array([3, 4, 5], np.uint8), np.array([2, 1]), np.array([7, 9]), padded=2)
    >>> TokenPairs(one, one).__getitems__([1])
    (tensor([[[5, 0],
             [5, 0]]]), tensor([9]))
    """

    def __init__(self, first: TokenSequences, second: TokenSequences) -> None:
        self.first, self.second, self.padded = first, second, first.padded
        self.lengths = np.minimum(first.lengths, second.lengths)

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Ids (2, padded) and label (), int64."""
        ids, labels = self.__getitems__([index])
        return ids[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The same for a whole batch: (B, 2, padded) and (B,)."""
        (first, labels), (second, _) = (one.__getitems__(indices) for one in (self.first, self.second))
        return torch.stack([first, second], 1), labels

    def part(self, first: int, count: int) -> TokenPairs:
        """``count`` pairs from number ``first`` on."""
        return TokenPairs(self.first.part(first, count), self.second.part(first, count))

    def fingerprint(self) -> dict[str, Any]:
        """The fingerprints of both sides, and the number of pairs."""
        return {"first": self.first.fingerprint(), "second": self.second.fingerprint(), "items": len(self)}
