"""Image classification, scored by accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from conditioned_attention.experiments.data.fingerprint import checksum, classes_in_words
from conditioned_attention.experiments.data.images.mixing import Mixing
from conditioned_attention.experiments.data.images.transforms import ImageTransform
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.tasks.task import Evaluator, Task


class ImageModel(Protocol):
    """Settings of a network that classifies square images."""

    def build(self, image_size: int, channels: int, classes: int) -> nn.Module:
        """The model with fresh weights; it maps images (B, C, H, W) to logits (B, classes)."""


class ImageClassification(Task):
    """Cross entropy on images of one size, scored by accuracy.

    Args:
        data: training and evaluation set; an item is an image (C, H, W) and its label.
        model: what is trained.
        classes: how many, or their names.
        notes: what a report should say about the data, such as images that are left out.
        mixing: how training images are blended, and labels softened; default not at all.
    """

    metric = Metric("accuracy (%)")

    def __init__(
        self,
        data: tuple[Dataset[Any], Dataset[Any]],
        model: ImageModel,
        classes: int | Sequence[str] = 10,
        notes: Sequence[str] = (),
        mixing: Mixing | None = None,
    ) -> None:
        self._train, self._eval = data
        names = [str(label) for label in range(classes)] if isinstance(classes, int) else list(classes)
        self._model, self._classes, self.classes = model, len(names), names
        self._mixing = mixing or Mixing()
        self.mixes_pairs = self._mixing.mixes
        self.about = classes_in_words(names)
        self.notes = list(notes)

    def build_model(self) -> nn.Module:
        channels, side = self._eval[0][0].shape[:2]
        return self._model.build(side, channels, self._classes)

    def train_data(self) -> Dataset[Any]:
        return self._train

    def eval_data(self) -> Dataset[Any]:
        return self._eval

    def fingerprint(self) -> dict[str, Any]:
        return {"classes": self.about, "class names": checksum(self.classes), **super().fingerprint()}

    def preprocessing(self) -> dict[str, Any] | None:
        transform = getattr(self._eval, "transform", None)
        return transform.in_words() if isinstance(transform, ImageTransform) else None

    def collate(self, items: Any) -> Any:
        return items if isinstance(items, tuple) else super().collate(items)  # `ImageArrays` hands out batches

    def collate_train(self, items: Any) -> Any:
        images, labels = self.collate(items)
        return self._mixing(images, labels, self._classes) if self._mixing.mixes else (images, labels)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        images, labels = batch
        smoothing = 0.0 if self._mixing.mixes else self._mixing.smoothing  # mixed labels are smooth already
        return F.cross_entropy(self.logits(model, images), labels, label_smoothing=smoothing)

    def logits(self, model: nn.Module, images: Any) -> Tensor:
        """What a model says of the inputs of a batch: (B, classes)."""
        output = model(images)
        return output if isinstance(output, Tensor) else output.logits  # Hugging Face wraps them, timm does not

    def evaluator(self) -> Evaluator:
        return _Accuracy(self._classes, self.logits)

    def probe(self) -> Tensor:
        return _first_images(self._eval)

    def calibration(self) -> Tensor:
        return _first_images(self._train)


def _first_images(data: Any) -> Tensor:
    return torch.stack([data[i][0] for i in range(min(8, len(data)))])


class _Accuracy:
    """Share of images whose label has the largest logit, in per cent, and the mean loss."""

    def __init__(self, classes: int, logits: Callable[[nn.Module, Any], Tensor]) -> None:
        from torchmetrics import MeanMetric
        from torchmetrics.classification import MulticlassAccuracy

        self.accuracy = MulticlassAccuracy(classes, average="micro", sync_on_compute=False)
        self.loss = MeanMetric(sync_on_compute=False)
        self.logits = logits

    def update(self, model: nn.Module, batch: Any, gather: Callable[[Any], Any]) -> None:
        images, labels = batch
        logits, labels = (t.cpu() for t in gather((self.logits(model, images).float(), labels)))
        self.accuracy.update(logits, labels)
        self.loss.update(F.cross_entropy(logits, labels), weight=len(labels))

    def compute(self) -> dict[str, float]:
        return {"score": 100 * float(self.accuracy.compute()), "eval_loss": float(self.loss.compute())}
