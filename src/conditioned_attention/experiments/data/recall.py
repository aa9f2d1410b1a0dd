"""Multi-query associative recall (Arora et al. 2023, "Zoology", arXiv 2312.04927), generated on demand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from conditioned_attention.storage.settings import plain

IGNORED = -100  # the target where nothing is asked, which PyTorch's cross entropy ignores
_POWER = 0.01  # of the power law for the distance from the pairs to a query, as in the paper's code


@dataclass(frozen=True)
class RecallSequences(Dataset[tuple[Tensor, Tensor]]):
    """Sequences of key-value pairs, followed by the keys in another order: what was the value of each?

    As in the paper's code, the pairs come first, no key or value occurs in two of them, and every key is queried once
    after them; a place is more likely to have a query the nearer it is to the pairs.  Between the queries are keys that
    have no pair in the sequence.  (The paper's code draws these fillers from all tokens, so that some contradict the
    pairs; here every query has one answer.)  The lower half of the tokens are keys, the others values.

    Sequence i depends on ``stream`` and i alone and is generated at each access: nothing is kept in memory, and the
    sequences of two streams are independent.

    Attributes:
        samples: number of sequences.
        vocabulary: number of different tokens, even.
        pairs: number of pairs in a sequence.
        length: number of tokens in a sequence, even, at least four per pair.
        stream: another number gives other sequences.

    Raises:
        ValueError: sizes that do not fit together.

    >>> tokens, targets = RecallSequences(samples=100, vocabulary=16, pairs=2, length=10)[0]
    >>> tokens.tolist(), targets.tolist()
    ([5, 15, 0, 8, 5, 3, 4, 4, 0, 4], [-100, -100, -100, -100, 15, -100, -100, -100, 8, -100])
    """

    samples: int
    vocabulary: int
    pairs: int
    length: int
    stream: int = 0

    def __post_init__(self) -> None:
        if min(self.samples, self.pairs) < 1:
            raise ValueError(f"samples and pairs must be at least 1, got {self.samples} and {self.pairs}")
        if self.length % 2 or self.length < 4 * self.pairs:
            raise ValueError(
                "length must be even and at least 4 · pairs (key, value, query and the token behind it), "
                f"here {4 * self.pairs}, got {self.length}"
            )
        if self.vocabulary % 2 or self.vocabulary < 2 * self.pairs + 2:
            raise ValueError(
                "vocabulary must be even and at least 2 · pairs + 2 (as many keys as values, and a key to fill in), "
                f"here {2 * self.pairs + 2}, got {self.vocabulary}"
            )

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Tokens (n,) and targets (n,), int64; a target is the value that is queried there, or -100."""
        tokens, targets = self._made(index)
        return torch.from_numpy(tokens), torch.from_numpy(targets)

    def __getitems__(self, indices: Iterable[int]) -> tuple[Tensor, Tensor]:
        """The same for a whole batch: (B, n) each."""
        made = [self._made(index) for index in indices]
        return torch.from_numpy(np.stack([tokens for tokens, _ in made])), torch.from_numpy(
            np.stack([targets for _, targets in made])
        )

    def fingerprint(self) -> dict[str, Any]:
        """The settings, which determine the sequences."""
        return plain(self)

    def _made(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if not 0 <= index < self.samples:
            raise IndexError(f"there are {self.samples} sequences, and none with the index {index}")
        random = np.random.Generator(np.random.Philox(key=[self.stream, index]))
        half, begin = self.vocabulary // 2, 2 * self.pairs
        shuffled = random.permutation(half)
        keys, others = shuffled[: self.pairs], shuffled[self.pairs :]
        values = half + random.permutation(half)[: self.pairs]
        tokens = others[random.integers(len(others), size=self.length)]
        targets = np.full(self.length, IGNORED)
        tokens[0:begin:2], tokens[1:begin:2] = keys, values
        places = np.arange(1, (self.length - begin) // 2 + 1)  # every second token, counted from the last pair
        likely = places ** (_POWER - 1)
        asked = begin + 2 * (random.choice(places, self.pairs, replace=False, p=likely / likely.sum()) - 1)
        tokens[asked], targets[asked] = keys, values
        return tokens, targets
