"""Classification, mainly of images, scored by accuracy."""

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


class Classification(Task):
    """Classification of any kind of input by cross entropy, scored by accuracy.

    Args:
        data: training and evaluation set; an item is an input and its label.
        classes: how many, or their names.
        notes: what a report should say about the data, such as images that are left out.
    """

    metric = Metric("accuracy (%)")

    def __init__(
        self, data: tuple[Dataset[Any], Dataset[Any]], classes: int | Sequence[str], notes: Sequence[str] = ()
    ) -> None:
        self._train, self._eval = data
        self.classes = [str(label) for label in range(classes)] if isinstance(classes, int) else list(classes)
        self.about = classes_in_words(self.classes)
        self.notes = list(notes)

    def train_data(self) -> Dataset[Any]:
        return self._train

    def eval_data(self) -> Dataset[Any]:
        return self._eval

    def fingerprint(self) -> dict[str, Any]:
        return {"classes": self.about, "class names": checksum(self.classes), **super().fingerprint()}

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        inputs, labels = batch
        return F.cross_entropy(self.logits(model, inputs), labels)

    def logits(self, model: nn.Module, inputs: Any) -> Tensor:
        """The logits (B, classes) of a model for the inputs of a batch."""
        output = model(inputs)
        return output if isinstance(output, Tensor) else output.logits  # Hugging Face wraps them, timm does not

    def evaluator(self) -> Evaluator:
        return _Accuracy(len(self.classes), self.logits)

    def probe(self) -> Any:
        return first_inputs(self._eval)

    def calibration(self) -> Any:
        return first_inputs(self._train)


def first_inputs(data: Any) -> Tensor:
    """The inputs of the first eight samples, stacked."""
    return torch.stack([data[i][0] for i in range(min(8, len(data)))])


class ImageClassification(Classification):
    """Classification of images that all have the same size.

    Args:
        data: training and evaluation set; an item is an image (C, H, W) and its label.
        model: what is trained.
        classes: how many, or their names.
        notes: what a report should say about the data, such as images that are left out.
        mixing: how training images are blended, and labels softened; default not at all.
    """

    def __init__(
        self,
        data: tuple[Dataset[Any], Dataset[Any]],
        model: ImageModel,
        classes: int | Sequence[str] = 10,
        notes: Sequence[str] = (),
        mixing: Mixing | None = None,
    ) -> None:
        super().__init__(data, classes, notes)
        self._model = model
        self._mixing = mixing or Mixing()
        self.mixes_pairs = self._mixing.mixes

    def build_model(self) -> nn.Module:
        channels, side = self._eval[0][0].shape[:2]
        return self._model.build(side, channels, len(self.classes))

    def preprocessing(self) -> dict[str, Any] | None:
        transform = getattr(self._eval, "transform", None)
        return transform.in_words() if isinstance(transform, ImageTransform) else None

    def collate_train(self, items: Any) -> Any:
        images, labels = self.collate(items)
        return self._mixing(images, labels, len(self.classes)) if self._mixing.mixes else (images, labels)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        images, labels = batch
        smoothing = 0.0 if self._mixing.mixes else self._mixing.smoothing  # mixed labels are smooth already
        return F.cross_entropy(self.logits(model, images), labels, label_smoothing=smoothing)


class _Accuracy:
    """Share of samples whose label has the largest logit, in per cent, and the mean loss."""

    def __init__(self, classes: int, logits: Callable[[nn.Module, Any], Tensor]) -> None:
        from torchmetrics import MeanMetric
        from torchmetrics.classification import MulticlassAccuracy

        self.accuracy = MulticlassAccuracy(classes, average="micro", sync_on_compute=False)
        self.loss = MeanMetric(sync_on_compute=False)
        self.logits = logits

    def update(self, model: nn.Module, batch: Any, gather: Callable[[Any], Any]) -> None:
        inputs, labels = batch
        logits, labels = (t.cpu() for t in gather((self.logits(model, inputs).float(), labels)))
        self.accuracy.update(logits, labels)
        self.loss.update(F.cross_entropy(logits, labels), weight=len(labels))

    def compute(self) -> dict[str, float]:
        return {"score": 100 * float(self.accuracy.compute()), "eval_loss": float(self.loss.compute())}
