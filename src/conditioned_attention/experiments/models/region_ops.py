"""torchvision's parts of Mask R-CNN, changed to match mmdetection's configurations: anchors, pooling and losses.

Needs torchvision, and is imported only when such a model is built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign, roi_align

FINEST = 56  # regions of up to twice this side, in pixels, are pooled from the first level, as in mmdetection


class Anchors(AnchorGenerator):
    """One scale and three shapes at each place of every level, at fixed strides.

    torchvision rounds the sides, and derives strides from the size of the padded picture, which are wrong for the fifth
    level where its size is odd.

    Args:
        strides: strides of the levels, in pixels.
        scale: side of the square anchor, in strides.
    """

    def __init__(self, strides: Sequence[int], scale: float = 8.0) -> None:
        self.strides = tuple(strides)
        super().__init__(tuple((scale * stride,) for stride in strides), ((0.5, 1.0, 2.0),) * len(self.strides))

    def generate_anchors(
        self,
        scales: Any,
        aspect_ratios: Any,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Returns anchors (3, 4) around 0; a shape is height over width, and all have the same area."""
        ratios = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        sides = torch.as_tensor(scales, dtype=dtype, device=device)
        widths, heights = ((factor[:, None] * sides).flatten() for factor in (1 / ratios, ratios))
        return torch.stack([-widths, -heights, widths, heights], dim=1) / 2

    def forward(self, image_list: Any, feature_maps: list[Tensor]) -> list[Tensor]:
        first = feature_maps[0]
        self.set_cell_anchors(_wide(first.dtype), first.device)
        strides = [[torch.tensor(stride, device=first.device)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors([list(level.shape[-2:]) for level in feature_maps], strides))
        return [anchors] * len(image_list.image_sizes)


class RegionPool(MultiScaleRoIAlign):
    """RoIAlign from the level that fits a region's size: aligned to the pixels, and at known strides.

    torchvision's own shifts regions by half a pixel, and infers the strides from the first batch it sees, whose sizes a
    resumed run does not know.

    Args:
        size: side of the pooled map, in cells.
        strides: strides of the levels "0", "1", …, in pixels.
        sampling_ratio: points each way that are averaged for a cell; 0 for as many as cover it.
    """

    def __init__(self, size: int, strides: Sequence[int], sampling_ratio: int = 0) -> None:
        super().__init__([str(level) for level in range(len(strides))], size, sampling_ratio)
        self.strides = tuple(strides)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: Any) -> Tensor:
        """Maps features by level and regions (N, 4) in pixels of each picture to (all regions, C, size, size)."""
        maps = [x[name] for name in self.featmap_names]
        regions = torch.cat([F.pad(some, (1, 0), value=float(i)) for i, some in enumerate(boxes)])
        sides = (regions[:, 3:] - regions[:, 1:3]).clamp(min=0).prod(1).sqrt()
        levels = (sides / FINEST + 1e-6).log2().floor().clamp(0, len(maps) - 1)
        pooled = maps[0].new_zeros(len(regions), maps[0].shape[1], *self.output_size)
        for level, (features, stride) in enumerate(zip(maps, self.strides)):
            rows, wide = torch.where(levels == level)[0], _wide(features.dtype)
            given = features.to(wide), regions[rows].to(wide)
            some = roi_align(*given, self.output_size, 1 / stride, self.sampling_ratio, True)
            pooled = pooled.index_put((rows,), some.to(pooled.dtype))
        return pooled


class ProposalHead(RPNHead):
    """torchvision's proposal head, with outputs in at least single precision.

    torchvision decodes boxes in the precision of its heads' outputs: in bfloat16, a position in a picture of 1,333
    pixels is known only to 8 pixels.
    """

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [level.to(_wide(level.dtype)) for level in logits], [level.to(_wide(level.dtype)) for level in deltas]


class BoxPredictor(FastRCNNPredictor):
    """torchvision's predictor of the regions' boxes, also with outputs in at least single precision."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = super().forward(x)
        return logits.to(_wide(logits.dtype)), deltas.to(_wide(deltas.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class Proposals(RegionProposalNetwork):
    """torchvision's proposal network, with the absolute error of boxes as its loss in place of a smooth one."""

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        chosen = self.fg_bg_sampler(labels)
        positive, negative = (torch.where(torch.cat(some))[0] for some in chosen)
        sampled = torch.cat([positive, negative])
        wrong = F.l1_loss(pred_bbox_deltas[positive], torch.cat(regression_targets)[positive], reduction="sum")
        which = F.binary_cross_entropy_with_logits(objectness.flatten()[sampled], torch.cat(labels)[sampled])
        return which, wrong / sampled.numel()


class RegionHeads(RoIHeads):
    """torchvision's box and mask heads, with the absolute error of boxes as loss and target masks cropped aligned."""

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Returns detections in evaluation mode, losses in training."""
        if not self.training:
            found: tuple[Any, Any] = super().forward(features, proposals, image_shapes)
            return found
        assert targets is not None
        regions, matched, labels, box_targets = self.select_training_samples(proposals, targets)
        pooled = self.box_head(self.box_roi_pool(features, regions, image_shapes))
        logits, deltas = self.box_predictor(pooled)
        losses = box_losses(logits, deltas, torch.cat(labels), torch.cat(box_targets))
        rows = [torch.where(some > 0)[0] for some in labels]
        objects = [region[some] for region, some in zip(regions, rows)]
        masks = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, objects, image_shapes)))
        of = [index[some] for index, some in zip(matched, rows)]
        losses["loss_mask"] = mask_loss(masks, objects, targets, of)
        return [], losses


def box_losses(logits: Tensor, deltas: Tensor, labels: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Cross entropy of all regions, and the absolute error of the boxes of those with an object, over all regions.

    Args:
        logits: (R, 1 + classes), the background first.
        deltas: (R, 4 · (1 + classes)).
        labels: (R,).
        targets: (R, 4).
    """
    rows = torch.where(labels > 0)[0]
    own = deltas.reshape(len(labels), -1, 4)[rows, labels[rows]]
    wrong = F.l1_loss(own, targets[rows], reduction="sum")
    return {"loss_classifier": F.cross_entropy(logits, labels), "loss_box_reg": wrong / labels.numel()}


def mask_loss(
    logits: Tensor, regions: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]], of: Sequence[Tensor]
) -> Tensor:
    """Binary cross entropy of masks (R, 1 + classes, M, M), for each region's own class; 0 without a region.

    The target is the object's mask cropped to the region: 1 where at least half of a cell is covered.
    """
    if not len(logits):
        return logits.sum()
    side = logits.shape[-1]
    truth = [
        roi_align(target["masks"][:, None].float(), torch.cat([i[:, None], box], 1).float(), side, 1.0, 0, True)[:, 0]
        for target, box, i in zip(targets, regions, of)
    ]
    labels = torch.cat([target["labels"][i] for target, i in zip(targets, of)])
    own = logits[torch.arange(len(labels), device=logits.device), labels]
    return F.binary_cross_entropy_with_logits(own, (torch.cat(truth) >= 0.5).to(own.dtype))
