"""Transforms from a picture to a tensor, with and without augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from PIL import Image, ImageOps
from torch import Tensor

from conditioned_attention.environment import needs

Augment = Literal["none", "light", "strong"]

_SHIFTED, _SHIFT = 32, 4  # pixels: DeiT's
_LIGHT: dict[str, Any] = {"is_training": True, "color_jitter": None}
_AUGMENT: dict[str, dict[str, Any]] = {
    "none": {"is_training": False},
    "light": _LIGHT,
    "strong": {**_LIGHT, "auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "re_mode": "pixel"},
}


class ImageTransform:
    """Transforms an RGB image to a tensor (3, image_size, image_size), with timm.

    "none" is the evaluation of DeiT and Swin: the short side is resized to ``image_size / crop`` (bicubic), the centre
    is cropped, and pixels are scaled by ImageNet's mean and standard deviation; ``crop`` is 0.875, and 1 in XCiT's
    evaluation.  "strong" is their training: random resized crops (8 % to 100 %), flips, RandAugment
    ``rand-m9-mstd0.5-inc1``, and a rectangle erased with probability 0.25.  "light" is the first two of these.  Random
    numbers come from the global generators of torch, numpy and Python.

    With ``shifts`` and an ``image_size`` of at most 32, images, which must have that size already, are shifted by up to
    4 pixels, with black filled in, instead of the resized crop, as DeiT does it (datasets.py, for CIFAR).  ``scale``
    has other means and standard deviations, of three channels from 0 to 1.
    """

    def __init__(
        self,
        image_size: int,
        augment: Augment,
        crop: float = 0.875,
        *,
        shifts: bool = False,
        scale: Sequence[tuple[float, ...]] = (),
    ) -> None:
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {image_size}")
        if augment not in _AUGMENT:
            raise ValueError(f"augment={augment!r} is unknown; valid are {', '.join(_AUGMENT)}")
        if not 0 < crop <= 1:
            raise ValueError(f"crop must be above 0 and at most 1, got {crop}")
        with needs("timm"):
            from timm.data.transforms_factory import create_transform
            from torchvision.transforms import RandomCrop  # timm brings it

        self._made = partial(type(self), image_size, augment, crop, shifts=shifts, scale=scale), ()
        how = {**_AUGMENT[augment], **dict(zip(("mean", "std"), scale))}
        self.steps = create_transform(image_size, interpolation="bicubic", crop_pct=crop, **how)
        if shifts and image_size <= _SHIFTED:
            self.steps.transforms[0] = RandomCrop(image_size, padding=_SHIFT)
        for step in self.steps.transforms:
            for operation in getattr(step, "ops", ()):
                if operation.name.startswith("Posterize"):
                    operation.aug_fn = _posterize

    def __call__(self, image: Image.Image) -> Tensor:
        result: Tensor = self.steps(image)
        return result

    def in_words(self) -> dict[str, Any]:
        """The matching evaluation transform, in the terms of timm's ``create_transform`` and its models' configs."""
        size, _, crop = self._made[0].args
        norm = self.steps.transforms[-1]
        mean, std = norm.mean.tolist(), norm.std.tolist()
        return {"input_size": [3, size, size], "interpolation": "bicubic", "crop_pct": crop, "mean": mean, "std": std}

    def __reduce__(self) -> tuple[Any, ...]:
        return self._made  # timm's steps hold functions that do not pickle


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Posterizes an image; 0 bits (timm's highest magnitude) give black as before Pillow 13, which refuses them."""
    return ImageOps.posterize(image, bits) if bits else Image.new(image.mode, image.size)
