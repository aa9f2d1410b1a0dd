"""Random linear functions, each given by some of its points: sequences that are generated on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from conditioned_attention.storage.settings import plain


@dataclass(frozen=True)
class LinearFunctions(Dataset[tuple[Tensor, Tensor]]):
    """Points (x, y) with y = w · x + noise, where every sequence has its own w (Garg et al. 2022, arXiv 2208.01066).

    x and w are standard normal.  Sequence i depends on ``stream`` and i alone and is generated at each access: nothing
    is kept in memory, and the sequences of two streams are independent.

    Attributes:
        samples: number of sequences.
        dimension: of x.
        points: number of points in a sequence.
        noise: standard deviation of the noise that is added to y.
        stream: another number gives other sequences.

    Raises:
        ValueError: sizes below 1, fewer than two points, or noise that is negative or infinite.

    >>> x, y = LinearFunctions(samples=100, dimension=3, points=8)[0]
    >>> x.shape, y.shape
    (torch.Size([8, 3]), torch.Size([8]))
    """

    samples: int
    dimension: int
    points: int
    noise: float = 0.0
    stream: int = 0

    def __post_init__(self) -> None:
        if min(self.samples, self.dimension) < 1 or self.points < 2:
            raise ValueError(
                "samples and dimension must be at least 1 and points at least 2, got "
                f"{self.samples}, {self.dimension} and {self.points}"
            )
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"noise must be finite and not negative, got {self.noise}")

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """x (k, d) and y (k,), float32."""
        x, y = self.__getitems__([index])
        return x[0], y[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The same for a whole batch: (B, k, d) and (B, k)."""
        drawn = np.stack([self._drawn(index) for index in indices])
        noise, weights, x = np.split(drawn, [self.points, self.points + self.dimension], axis=1)
        x = x.reshape(len(drawn), self.points, self.dimension)
        y = np.einsum("bkd,bd->bk", x, weights) + self.noise * noise
        return torch.from_numpy(x).float(), torch.from_numpy(y).float()

    def fingerprint(self) -> dict[str, Any]:
        """The settings, which determine the sequences."""
        return plain(self)

    def _drawn(self, index: int) -> np.ndarray:
        if not 0 <= index < self.samples:
            raise IndexError(f"there are {self.samples} sequences, and none with the index {index}")
        random = np.random.Generator(np.random.Philox(key=[self.stream, index]))
        return random.standard_normal(self.points + self.dimension + self.points * self.dimension)


def ridge_prediction(x: Tensor, y: Tensor, noise: float) -> Tensor:
    """The best estimate of the last y, given the points before it and the last x.

    Since w is standard normal, this is ridge regression with the penalty noise²; without noise it is ordinary least
    squares, with the solution of least norm if there are fewer points than dimensions.

    Args:
        x: (B, k, d).
        y: (B, k).
        noise: standard deviation of the noise that was added to y.

    Returns:
        (B,), float64.
    """
    x, y = x.double(), y.double()
    known, values, asked = x[:, :-1], y[:, :-1, None], x[:, -1:]
    if noise:
        penalty = noise**2 * torch.eye(x.shape[2], dtype=x.dtype, device=x.device)
        weights = torch.linalg.solve(known.mT @ known + penalty, known.mT @ values)
    else:
        weights = torch.linalg.pinv(known) @ values
    expected: Tensor = asked @ weights
    return expected.flatten()
