"""Images and labels that fit in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from conditioned_attention.experiments.data.fingerprint import checksum, checksum_of_bytes
from conditioned_attention.experiments.data.images.transforms import ImageTransform


class ImageArrays(Dataset[tuple[Tensor, Tensor]]):
    """Images (S, C, H, W) and labels (S,); `__getitems__` returns whole batches.

    A batch is one indexing operation and needs no collation, which takes most of a loader's time for small images.

    ``origin`` is a checksum of the pixels as stored, before scaling, because rounding differs on other machines.
    ``scale`` has the mean and the standard deviation of each channel, (C, 1, 1) each, if the images are pixels from 0
    to 255 that were scaled by them; `Augmented` needs it.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, origin: str | None = None, scale: tuple[Tensor, Tensor] | None = None
    ) -> None:
        if images.dim() != 4 or len(images) != len(labels):
            raise ValueError(f"images (S, C, H, W) and labels (S,) do not fit: {images.shape}, {labels.shape}")
        self.images, self.labels, self.origin, self.scale = images, labels, origin, scale

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, rows: Sequence[int]) -> ImageArrays:
        """The images in these rows, in this order."""
        return ImageArrays(*self.__getitems__(rows), self.origin, self.scale)

    def fingerprint(self) -> dict[str, Any]:
        """The number of images, their shape, and checksums of their labels and of the pixels of their whole set."""
        shape, labels = list(self.images.shape[1:]), checksum(self.labels.tolist())
        origin = self.origin or checksum_of_bytes(self.images.contiguous().numpy())
        return {"items": len(self), "shape": shape, "labels": labels, "pixels": origin}

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        rows = torch.as_tensor(indices)
        return self.images[rows], self.labels[rows]


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Images in memory with DeiT's augmentation, drawn anew at each access from the global random generators.

    Timm works on colour pictures; the three channels of a grey image stay equal, and the first is used.
    """

    def __init__(self, arrays: ImageArrays) -> None:
        if arrays.scale is None or arrays.images.shape[1] not in (1, 3):
            raise ValueError("augmentation takes images of 1 or 3 channels that know how their pixels were scaled")
        mean, std = arrays.scale
        self.arrays, self.channels = arrays, arrays.images.shape[1]
        self.pixels = (arrays.images * std + mean).round().to(torch.uint8).permute(0, 2, 3, 1)
        to_colour = [tuple((numbers / 255).flatten().expand(3).tolist()) for numbers in (mean, std)]
        self.transform = ImageTransform(arrays.images.shape[-1], "strong", shifts=True, scale=to_colour)

    def __len__(self) -> int:
        return len(self.arrays)

    def fingerprint(self) -> dict[str, Any]:
        """The fingerprint of the images."""
        return self.arrays.fingerprint()

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        picture = Image.fromarray(self.pixels[index].expand(-1, -1, 3).numpy())
        return self.transform(picture)[: self.channels], self.arrays.labels[index]
