"""Detection and instance segmentation, scored by COCO's average precision of boxes; that of masks is reported too."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.data import Dataset

from conditioned_attention.experiments.data.coco.pictures import CocoPictures
from conditioned_attention.experiments.data.fingerprint import checksum, classes_in_words
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.tasks.average_precision import AveragePrecision
from conditioned_attention.experiments.tasks.drawn import side_by_side
from conditioned_attention.experiments.tasks.task import Evaluator, Task

_PROBES, _SHOWN = 2, 8  # pictures that the monitor looks at, and that are drawn at the end


class DetectionModel(Protocol):
    """Settings of a detector."""

    def build(self, classes: int) -> nn.Module:
        """The model with fresh weights; `XCiTMaskRCNN.build` says how it is called."""


class Detection(Task):
    """Detection by Mask R-CNN on pictures of any sizes, with its four box and class losses and its mask loss.

    Args:
        data: training and evaluation set.
        model: what is trained.
        notes: what a report should say about the data.
        start: loads initial weights into a fresh model, and returns a line on what was done with them.
        start_checksum: checksum of these weights, if a file holds them.
    """

    metric = Metric("box AP (%)")

    def __init__(
        self,
        data: tuple[CocoPictures, CocoPictures],
        model: DetectionModel,
        notes: Sequence[str] = (),
        start: Callable[[nn.Module], str] | None = None,
        start_checksum: str | None = None,
    ) -> None:
        self._train, self._eval = data
        self._model, self._start, self._start_checksum = model, start, start_checksum
        self.classes = self._train.annotations.classes
        self.about = classes_in_words(self.classes)
        self.notes = list(notes)
        if self.classes != self._eval.annotations.classes:
            raise ValueError(
                f"the sets have other categories: {self.about}, and {classes_in_words(self._eval.annotations.classes)}"
            )

    def build_model(self) -> nn.Module:
        model = self._model.build(len(self.classes))
        if self._start is not None and not next(model.parameters()).is_meta:
            self.notes = [*dict.fromkeys([*self.notes, self._start(model)])]
        return model

    def train_data(self) -> Dataset[Any]:
        return self._train

    def eval_data(self) -> Dataset[Any]:
        return self._eval

    def fingerprint(self) -> dict[str, Any]:
        start = {} if self._start_checksum is None else {"start": self._start_checksum}
        return {"classes": self.about, "class names": checksum(self.classes), **start, **super().fingerprint()}

    def collate(self, items: Any) -> Any:
        """Lists of pictures and of targets: the model pads them itself."""
        images, targets = zip(*items)
        return list(images), list(targets)

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        images, targets = batch
        losses: dict[str, Tensor] = model(images, targets)
        return {name.removeprefix("loss_"): loss for name, loss in losses.items()}

    def evaluator(self) -> Evaluator:
        return AveragePrecision(self._truth)

    @cached_property
    def _truth(self) -> dict[str, Any]:
        return self._eval.ground_truth()

    def probe(self) -> tuple[list[Tensor]]:
        return _first_images(self._eval)

    def calibration(self) -> tuple[list[Tensor]]:
        return _first_images(self._train)

    def no_weight_decay(self) -> Collection[str]:
        return ("*norm*",)  # as in XCiT's configuration, whose optimizer lets all else decay

    def finish(self, model: nn.Module) -> dict[str, str | bytes]:
        """``truth_and_detections.png``: what is found in the first pictures, beside the truth."""
        device = next(model.parameters()).device
        some = range(min(_SHOWN, len(self._eval)))
        images = [self._eval[i][0] for i in some]
        found = [{k: v.cpu() for k, v in model([image.to(device)])[0].items()} for image in images]
        truth = self._eval.with_truth()
        targets = [truth[i][1] for i in some]
        return {"truth_and_detections.png": side_by_side(images, targets, found, self.classes)}


def _first_images(data: CocoPictures) -> tuple[list[Tensor]]:
    return ([data[i][0] for i in range(min(_PROBES, len(data)))],)
