"""The work of a detector's training step that does not depend on what is in the pictures, for planning runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from conditioned_attention.experiments.data.coco.annotations import Annotations, Picture
from conditioned_attention.experiments.data.coco.pictures import CocoPictures
from conditioned_attention.experiments.tasks.detection import Detection, DetectionModel


class BlankPictures(CocoPictures):
    """Black pictures without an object."""

    def _image(self, row: int) -> Tensor:
        picture = self.annotations.pictures[row]
        return torch.zeros(3, picture.height, picture.width)


def blank_pictures(count: int, size: tuple[int, int], classes: Sequence[str]) -> BlankPictures:
    """Makes ``count`` blank pictures of the same height and width."""
    pictures = tuple(Picture(i, "", *size) for i in range(count))
    things: defaultdict[int, Sequence[Any]] = defaultdict(tuple)
    annotations = Annotations(tuple(classes), tuple(range(1, len(classes) + 1)), pictures, things, "blank")
    return BlankPictures(annotations, folder=None, rows=range(count))  # type: ignore[arg-type]


class DenseDetection(Detection):
    """Runs the backbone, the FPN and all heads, on the largest number of regions that can be sampled.

    It leaves out the choice of proposals, their matching and the pooling, which depend on numbers in the pictures and
    are a small part of the arithmetic.
    """

    def __init__(
        self, counts: tuple[int, int], size: tuple[int, int], classes: int, model: DetectionModel, note: str
    ) -> None:
        names = [str(label) for label in range(1, classes + 1)]
        super().__init__(
            (blank_pictures(counts[0], size, names), blank_pictures(counts[1], size, names)), model, [note]
        )

    def build_model(self) -> nn.Module:
        return _Dense(super().build_model())

    def collate(self, items: Any) -> Any:
        return torch.stack([image for image, _ in items])

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = model(batch)
        return {name: output.mean() for name, output in outputs.items()}


class _Dense(nn.Module):
    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        heads, rpn = self.detector.roi_heads, self.detector.rpn
        maps = self.detector.backbone(images)
        found = [level.flatten() for some in rpn.head([*maps.values()]) for level in some]
        sampler = heads.fg_bg_sampler
        with_object = int(sampler.batch_size_per_image * sampler.positive_fraction)
        pooled = (_pooled(maps["0"], pool, count) for pool, count in (
            (heads.box_roi_pool, sampler.batch_size_per_image), (heads.mask_roi_pool, with_object)
        ))  # fmt: skip
        regions, objects = pooled
        logits, deltas = heads.box_predictor(heads.box_head(regions))
        masks = heads.mask_predictor(heads.mask_head(objects))
        return {"proposals": torch.cat(found), "logits": logits, "deltas": deltas, "masks": masks}


def _pooled(level: Tensor, pool: Any, count: int) -> Tensor:
    """Stands in for pooling: ``count`` pieces of the pooled size from each picture of a batch."""
    height, width = pool.output_size
    corner = level[:, :, :height, :width]
    return corner.repeat_interleave(count, 0)
