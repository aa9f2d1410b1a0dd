"""Blocks of one repeated token, for planning a run: its cost depends on the number and size of blocks alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


class BlankBlocks(Dataset[Tensor]):
    """``count`` blocks (N,) of token 0, returned as by `Blocks`."""

    def __init__(self, count: int, length: int, vocabulary: int) -> None:
        self.count, self.length, self.vocabulary = count, length, vocabulary

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        return torch.zeros(len(indices), self.length, dtype=torch.int64)

    def part(self, indices: np.ndarray[Any, Any]) -> BlankBlocks:
        """As many blocks as there are indices."""
        return BlankBlocks(len(indices), self.length, self.vocabulary)
