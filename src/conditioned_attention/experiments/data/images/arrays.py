"""Images and labels that fit in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from conditioned_attention.experiments.data.fingerprint import checksum, checksum_of_bytes


class ImageArrays(Dataset[tuple[Tensor, Tensor]]):
    """Images (S, C, H, W) and labels (S,), handed out as whole batches by `__getitems__`.

    A batch is one indexing operation and needs no collation, which for small images is most of the loader's time.

    ``origin`` is a checksum of the pixels as they were stored, before they were scaled: rounding differs on other
    machines.
    """

    def __init__(self, images: Tensor, labels: Tensor, origin: str | None = None) -> None:
        if images.dim() != 4 or len(images) != len(labels):
            raise ValueError(f"images (S, C, H, W) and labels (S,) do not fit: {images.shape}, {labels.shape}")
        self.images, self.labels, self.origin = images, labels, origin

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, rows: Sequence[int]) -> ImageArrays:
        """Some of the images, in this order."""
        return ImageArrays(*self.__getitems__(rows), self.origin)

    def fingerprint(self) -> dict[str, Any]:
        """How many, their shape, their labels, and the pixels of the set that they are from."""
        shape, labels = list(self.images.shape[1:]), checksum(self.labels.tolist())
        origin = self.origin or checksum_of_bytes(self.images.contiguous().numpy())
        return {"items": len(self), "shape": shape, "labels": labels, "pixels": origin}

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        rows = torch.as_tensor(indices)
        return self.images[rows], self.labels[rows]
