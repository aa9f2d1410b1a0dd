"""Average precision of boxes and masks, as COCO defines it, computed by faster-coco-eval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from conditioned_attention.environment import needs
from conditioned_attention.experiments.data.coco.masks import encode

# of the twelve numbers of COCO's evaluators, the first six
_SIZES = ("ap_small", "ap_medium", "ap_large")
_NUMBERS = ("ap", "ap50", "ap75", *_SIZES)


class AveragePrecision:
    """Collects what a detector finds in pictures, and scores it.

    Args:
        truth: pictures and objects as COCO describes them; see `CocoPictures.ground_truth`.
    """

    def __init__(self, truth: Mapping[str, Any]) -> None:
        self.truth = truth
        self.category_ids = sorted(category["id"] for category in truth["categories"])
        self.pictures: list[int] = []
        self.found: list[dict[str, Any]] = []

    def update(self, model: nn.Module, batch: Any, gather: Callable[[Any], Any]) -> None:
        images, targets = batch
        rows = [self._described(int(t["image_id"]), o) for t, o in zip(targets, model(images))]
        for row in gather(rows):
            self.pictures.append(row["image_id"])
            self.found += row["found"]

    def _described(self, picture: int, output: Mapping[str, Tensor]) -> dict[str, Any]:
        shapes = encode((output["masks"][:, 0] >= 0.5).cpu().numpy())
        boxes, labels, scores = (output[name].float().cpu().numpy() for name in ("boxes", "labels", "scores"))
        boxes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)  # corners to sizes
        found = [
            {"image_id": picture, "category_id": self.category_ids[int(label) - 1], "bbox": box, "score": score,
             "segmentation": shape}
            for box, label, score, shape in zip(boxes.tolist(), labels, scores.tolist(), shapes)
        ]  # fmt: skip
        return {"image_id": picture, "found": found}

    def compute(self) -> dict[str, float]:
        boxes = average_precision(self.truth, self.found, self.pictures, "bbox")
        masks = average_precision(self.truth, self.found, self.pictures, "segm")
        of_both = {"box": boxes, "mask": masks}
        named = {f"{what}_{name}": value for what, some in of_both.items() for name, value in some.items()}
        return {"score": boxes["ap"], **named}


def average_precision(
    truth: Mapping[str, Any], found: Sequence[Mapping[str, Any]], pictures: Sequence[int], kind: str
) -> dict[str, float]:
    """The first six numbers of COCO's summary in per cent: over all overlaps, at 0.5 and at 0.75, and by size.

    A size of which the truth has no object is left out; without any object the other numbers are nan.

    Args:
        truth: pictures, annotations and categories.
        found: detections with ``bbox`` (left, top, width, height), ``segmentation``, ``score``, and both ids.
        pictures: ids of the pictures in which the detector looked.
        kind: ``"bbox"`` or ``"segm"``; the size of a detection is that of its box, or of its mask.
    """
    with needs("detection", "average precision"):
        from faster_coco_eval import COCO, COCOeval_faster
    other = "segmentation" if kind == "bbox" else "bbox"
    known = COCO(dict(truth), print_function=_silent)
    ours = known.loadRes([{name: value for name, value in one.items() if name != other} for one in found])
    evaluation = COCOeval_faster(known, ours, iouType=kind, print_function=_silent)
    evaluation.params.imgIds = sorted(set(pictures))
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    values = dict(zip(_NUMBERS, map(float, evaluation.stats)))
    return {
        name: math.nan if value < 0 else 100 * value
        for name, value in values.items()
        if value >= 0 or name not in _SIZES
    }


def _silent(*_: Any) -> None:
    """Discards what the evaluators would print."""
