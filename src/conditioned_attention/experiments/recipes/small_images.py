"""Image classification: the task, a vision transformer, and the recipes ``digits`` and ``fashion_mnist``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from conditioned_attention._torchvision import make_importable
from conditioned_attention.experiments.data.images.arrays import ImageArrays
from conditioned_attention.experiments.data.images.digits import load_digits
from conditioned_attention.experiments.data.images.fashion_mnist import load_fashion_mnist
from conditioned_attention.experiments.data.split import TUNING, hold_out
from conditioned_attention.experiments.tasks.task import Metric, Task
from conditioned_attention.experiments.training.settings import Training


class ImageModel(Protocol):
    """Settings of a network that classifies square images."""

    def build(self, image_size: int, channels: int, classes: int) -> nn.Module:
        """The model with fresh weights; it maps images (B, C, H, W) to logits (B, classes)."""


@dataclass(frozen=True)
class VisionTransformer:
    """A patch vision transformer with a class token.

    Attributes:
        library: whose implementation: Hugging Face's or timm's; the network is the same.
        patch_size: side of a patch in pixels.
        hidden_size: width of the tokens.
        layers: number of blocks.
        heads: attention heads a block; they must divide the width.
        mlp_ratio: width of the feed-forward layer over the width of the tokens.
    """

    library: Literal["transformers", "timm"] = "transformers"
    patch_size: int = 2
    hidden_size: int = 64
    layers: int = 6
    heads: int = 8
    mlp_ratio: int = 4

    def build(self, image_size: int, channels: int, classes: int) -> nn.Module:
        """The model with fresh weights; it maps images (B, C, H, W) to logits (B, classes)."""
        sizes = (self.patch_size, self.hidden_size, self.layers, self.heads, self.mlp_ratio)
        if min(sizes) < 1:
            raise ValueError(f"patch_size, hidden_size, layers, heads and mlp_ratio must be at least 1, got {sizes}")
        if image_size % self.patch_size or self.hidden_size % self.heads:
            raise ValueError(
                f"patch_size={self.patch_size} must divide the image side {image_size}, and heads={self.heads} "
                f"hidden_size={self.hidden_size}"
            )
        make_importable()  # both libraries import torchvision where it is installed
        build = self._timm if self.library == "timm" else self._hf
        return build(image_size, channels, classes)

    def _hf(self, image_size: int, channels: int, classes: int) -> nn.Module:
        from transformers import ViTConfig, ViTForImageClassification

        return ViTForImageClassification(
            ViTConfig(  # type: ignore[call-arg]
                image_size=image_size,
                patch_size=self.patch_size,
                num_channels=channels,
                num_labels=classes,
                hidden_size=self.hidden_size,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                intermediate_size=self.hidden_size * self.mlp_ratio,
            )
        )

    def _timm(self, image_size: int, channels: int, classes: int) -> nn.Module:
        from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer

        model: nn.Module = TimmVisionTransformer(
            img_size=image_size,
            patch_size=self.patch_size,
            in_chans=channels,
            num_classes=classes,
            embed_dim=self.hidden_size,
            depth=self.layers,
            num_heads=self.heads,
            mlp_ratio=self.mlp_ratio,
        )
        return model


class ImageClassification(Task):
    """Cross entropy on images of one size, scored by accuracy.

    Args:
        data: training and evaluation set; an item is an image (C, H, W) and its label.
        model: what is trained.
        classes: how many.
        notes: what a report should say about the data, such as images that are left out.
    """

    metric = Metric("accuracy (%)")

    def __init__(
        self, data: tuple[Dataset[Any], Dataset[Any]], model: ImageModel, classes: int = 10, notes: Sequence[str] = ()
    ) -> None:
        self._train, self._eval = data
        self._model, self._classes = model, classes
        self.notes = list(notes)

    def build_model(self) -> nn.Module:
        channels, side = self._eval[0][0].shape[:2]
        return self._model.build(side, channels, self._classes)

    def train_data(self) -> Dataset[Any]:
        return self._train

    def eval_data(self) -> Dataset[Any]:
        return self._eval

    def collate(self, items: Any) -> Any:
        return items if isinstance(items, tuple) else super().collate(items)  # `ImageArrays` hands out batches

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        images, labels = batch
        return F.cross_entropy(_logits(model(images)), labels)

    def evaluate(self, model: nn.Module, batches: Iterable[Any], gather: Callable[[Any], Any]) -> dict[str, float]:
        from torchmetrics import MeanMetric
        from torchmetrics.classification import MulticlassAccuracy

        accuracy = MulticlassAccuracy(self._classes, average="micro", sync_on_compute=False)
        loss = MeanMetric(sync_on_compute=False)
        for images, labels in batches:
            logits, labels = (t.cpu() for t in gather((_logits(model(images)).float(), labels)))
            accuracy.update(logits, labels)
            loss.update(F.cross_entropy(logits, labels), weight=len(labels))
        return {"score": 100 * float(accuracy.compute()), "eval_loss": float(loss.compute())}

    def probe(self) -> Tensor:
        return torch.stack([self._eval[i][0] for i in range(min(8, len(self._eval)))])  # type: ignore[arg-type]


def _logits(output: Any) -> Tensor:
    """Hugging Face wraps them, timm does not."""
    return output if isinstance(output, Tensor) else output.logits


def tuning_split(train: ImageArrays) -> tuple[ImageArrays, ImageArrays]:
    """Nine tenths of a training set, and the other tenth to score on while settings are chosen."""
    rest, held = hold_out(train.labels.tolist(), TUNING)
    return train.subset(rest), train.subset(held)


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 1,797 handwritten digits, 8 × 8 pixels; nothing to download.

    Attributes:
        model: the network; the default has 0.3 million parameters and 17 tokens in 8 heads of 8.
        training: how it is trained.
    """

    model: VisionTransformer = field(default_factory=VisionTransformer)
    training: Training = field(default_factory=lambda: Training(epochs=24))

    def task(self, *, tuning: bool = False) -> Task:
        data = load_digits()
        return ImageClassification(tuning_split(data[0]) if tuning else data, self.model)


@dataclass(frozen=True)
class FashionMNIST:
    """Fashion-MNIST, 28 × 28 pixels, from its four idx files.

    Attributes:
        data_dir: folder with the four files (Debian's package dataset-fashion-mnist puts them there).
        train_limit: train on the first so many of the 60,000 images; None for all.
        model: the network; the default has 50 tokens in 8 heads of 16.
        training: how it is trained.
    """

    data_dir: Path = Path("/usr/share/datasets/fashion-mnist")
    train_limit: int | None = None
    model: VisionTransformer = field(default_factory=lambda: VisionTransformer(patch_size=4, hidden_size=128))
    training: Training = field(default_factory=lambda: Training(epochs=10, batch_size=128))

    def task(self, *, tuning: bool = False) -> Task:
        data = load_fashion_mnist(self.data_dir.expanduser(), self.train_limit)
        return ImageClassification(tuning_split(data[0]) if tuning else data, self.model)
