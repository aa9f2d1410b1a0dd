"""Blocks of one token over and over, for plans: what a run will take depends on their number and size alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


class BlankBlocks(Dataset[Tensor]):
    """So many blocks (N,) of token 0, handed out as `Blocks` are."""

    def __init__(self, count: int, length: int, vocabulary: int) -> None:
        self.count, self.length, self.vocabulary = count, length, vocabulary

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        return torch.zeros(len(indices), self.length, dtype=torch.int64)

    def part(self, indices: np.ndarray[Any, Any]) -> BlankBlocks:
        """So many of them."""
        return BlankBlocks(len(indices), self.length, self.vocabulary)
