"""Images and labels that fit in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset


class ImageArrays(Dataset[tuple[Tensor, Tensor]]):
    """Images (S, C, H, W) and labels (S,), handed out as whole batches by `__getitems__`.

    A batch is one indexing operation and needs no collation, which for small images is most of the loader's time.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        if images.dim() != 4 or len(images) != len(labels):
            raise ValueError(f"images (S, C, H, W) and labels (S,) do not fit: {images.shape}, {labels.shape}")
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, rows: Sequence[int]) -> ImageArrays:
        """Some of the images, in this order."""
        return ImageArrays(*self.__getitems__(rows))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        rows = torch.as_tensor(indices)
        return self.images[rows], self.labels[rows]
