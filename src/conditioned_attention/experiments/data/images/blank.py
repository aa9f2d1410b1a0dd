"""Black images that stand in for as many real ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset


class BlankImages(Dataset[tuple[Tensor, int]]):
    """``count`` black images (3, side, side) of class 0: the cost of a run depends on their number and size alone."""

    def __init__(self, count: int, side: int) -> None:
        self.count, self.side = count, side

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.zeros(3, self.side, self.side), 0

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(indices), 3, self.side, self.side), torch.zeros(len(indices), dtype=torch.int64)
