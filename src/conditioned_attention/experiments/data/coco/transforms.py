"""Augmentation of training pictures and their objects with torchvision's transforms, as in XCiT, from DETR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conditioned_attention.environment import needs

SIDES = tuple(range(480, 801, 32))


@dataclass(frozen=True)
class Augment:
    """Random flips, sizes and crops of training pictures.

    Attributes:
        flip: probability of a horizontal flip.
        sides: the short side is scaled to one of these, in pixels; if empty, pictures keep their size.
        longest: limit on the long side when a picture is scaled, in pixels.
        cut: smallest and largest side of the piece to which a picture is cropped before that, with probability one
            half; None never crops.
        sides_before: the short side is scaled to one of these before a picture is cropped.
    """

    flip: float = 0.5
    sides: tuple[int, ...] = SIDES
    longest: int = 1333
    cut: tuple[int, int] | None = (384, 600)
    sides_before: tuple[int, ...] = (400, 500, 600)

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip must be in [0, 1], got {self.flip}")
        if self.cut is not None and (not 0 < self.cut[0] <= self.cut[1] or not self.sides_before or not self.sides):
            raise ValueError(f"cut must be a smallest and a largest side, and goes with sides, got {self.cut}")

    def __call__(self, image: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """A picture (3, H, W) and its objects, augmented; random numbers come from torch's global generator."""
        with needs("timm", "augmentation"):
            from torchvision import tv_tensors
            from torchvision.transforms import v2

        size = image.shape[1:]
        boxes: Any = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=tuple(size))
        whole = {**target, "boxes": boxes, "masks": tv_tensors.Mask(target["masks"])}
        sample: Any = (tv_tensors.Image(image), whole)
        for step in self._steps(v2):
            sample = step(*sample)
        image, target = sample
        return image.as_subclass(Tensor), {name: value.as_subclass(Tensor) for name, value in target.items()}

    def _steps(self, v2: Any) -> list[Any]:
        steps = [v2.RandomHorizontalFlip(self.flip)]
        if self.cut is not None and torch.rand(()) < 0.5:
            steps += [self._to(v2, self.sides_before), _cut(self.cut)]
        if self.sides:
            steps.append(self._to(v2, self.sides))
        return [*steps, v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes(min_size=1)]

    def _to(self, v2: Any, sides: Sequence[int]) -> Any:
        # as mmcv's, without smoothing before pixels are dropped
        return v2.RandomShortestSize(list(sides), self.longest, antialias=False)


def _cut(bounds: tuple[int, int]) -> Any:
    """Cuts a piece from anywhere in a picture, with sides drawn between bounds that the picture's own sides limit."""
    from torchvision.transforms.v2 import functional as F

    def cut(image: Any, target: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        sides = [_drawn(min(side, bounds[0]), min(side, bounds[1])) for side in image.shape[1:]]
        top, left = (_drawn(0, whole - side) for whole, side in zip(image.shape[1:], sides))
        place = (top, left, *sides)
        cut_too = {name: F.crop(target[name], *place) for name in ("boxes", "masks")}
        return F.crop(image, *place), {**target, **cut_too}

    return cut


def _drawn(low: int, high: int) -> int:
    """A random integer between these two, both included."""
    return int(torch.randint(low, high + 1, ()))
