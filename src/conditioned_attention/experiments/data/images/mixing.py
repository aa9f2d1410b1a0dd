"""Training images blended in pairs, with labels to match: mixup and cutmix, as timm has them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor

from conditioned_attention.environment import needs


@dataclass(frozen=True)
class Mixing:
    """How the images of a batch are mixed, and how much their labels are smoothed.

    Attributes:
        mixup: α of the Beta distribution from which the share of the other image is drawn; 0 for no mixup (Zhang et
            al. 2018, arXiv 1710.09412).
        cutmix: the same for a rectangle of the other image (Yun et al. 2019, arXiv 1905.04899); if both are set, each
            batch gets one of them, with equal probability.
        smoothing: share of a label that is spread evenly over all classes, with mixing and without.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), got {self.smoothing}")

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def __call__(self, images: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """New images (B, C, H, W), and labels (B, classes) that add up to 1.

        What is random is drawn from numpy's global generator, once for the whole batch: image b is mixed with image
        B - 1 - b, so B is even.
        """
        if len(images) % 2:
            raise ValueError(f"mixup and cutmix need an even number of images a batch, got {len(images)}")
        with needs("timm"):
            data: Any = import_module("timm.data")
        mix = data.Mixup(
            mixup_alpha=self.mixup, cutmix_alpha=self.cutmix, label_smoothing=self.smoothing, num_classes=classes
        )
        mixed: tuple[Tensor, Tensor] = mix(images.clone(), labels)  # timm writes into what it is given
        return mixed
