"""Image classification: the task, a vision transformer, and the recipes ``digits`` and ``fashion_mnist``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from conditioned_attention.experiments.data.images.arrays import ImageArrays
from conditioned_attention.experiments.data.images.digits import load_digits
from conditioned_attention.experiments.data.images.fashion_mnist import load_fashion_mnist
from conditioned_attention.experiments.data.split import TUNING, hold_out
from conditioned_attention.experiments.models.vision_transformer import VisionTransformer
from conditioned_attention.experiments.tasks.classification import ImageClassification
from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.storage.settings import place


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

    data_dir: Path = place(Path("/usr/share/datasets/fashion-mnist"))
    train_limit: int | None = None
    model: VisionTransformer = field(default_factory=lambda: VisionTransformer(patch_size=4, hidden_size=128))
    training: Training = field(default_factory=lambda: Training(epochs=10, batch_size=128))

    def task(self, *, tuning: bool = False) -> Task:
        data = load_fashion_mnist(self.data_dir.expanduser(), self.train_limit)
        return ImageClassification(tuning_split(data[0]) if tuning else data, self.model)
