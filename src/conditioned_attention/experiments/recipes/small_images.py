"""Image classification: the task, a vision transformer, and the recipes ``digits`` and ``fashion_mnist``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from conditioned_attention.choices import Choices
from conditioned_attention.experiments.data.images.arrays import Augmented, ImageArrays
from conditioned_attention.experiments.data.images.digits import load_digits
from conditioned_attention.experiments.data.images.fashion_mnist import load_fashion_mnist
from conditioned_attention.experiments.data.images.mixing import Mixing
from conditioned_attention.experiments.data.split import TUNING, hold_out
from conditioned_attention.experiments.models.small_family import Family, SmallFamily
from conditioned_attention.experiments.models.vision_transformer import VisionTransformer
from conditioned_attention.experiments.tasks.classification import ImageClassification
from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.storage.settings import added, place

_FASHION_VIT = VisionTransformer(patch_size=4, hidden_size=128)


def tuning_split(train: ImageArrays, groups: Sequence[int] | None = None) -> tuple[ImageArrays, ImageArrays]:
    """Nine tenths of a training set, and the other tenth to score on while settings are chosen; see `hold_out`."""
    rest, held = hold_out(train.labels.tolist(), TUNING, groups)
    return train.subset(rest), train.subset(held)


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 1,797 handwritten digits, 8 × 8 pixels; nothing to download.

    Attributes:
        model: the network; the default has 0.3 million parameters, 17 tokens and 8 heads of width 8.
        training: how it is trained.
    """

    model: VisionTransformer = field(default_factory=VisionTransformer)
    training: Training = field(default_factory=lambda: Training(epochs=24))

    def task(self, *, tuning: bool = False) -> Task:
        data = load_digits()
        return ImageClassification(tuning_split(data[0]) if tuning else data, self.model)


@dataclass(frozen=True)
class FashionMNIST(Choices):
    """Fashion-MNIST, 28 × 28 pixels, from its four idx files.

    Attributes:
        data_dir: folder with the four files (Debian's package dataset-fashion-mnist puts them there).
        train_limit: train on this many of the 60,000 images, from the first; None for all.
        family: train this small family of timm models instead of ``model``; see `SmallFamily`.
        deit: train the ``family`` by DeiT's recipe: shifts, flips, RandAugment, random erasing, mixup, cutmix, smoothed
            labels and drop path.
        model: the network; the default has 50 tokens and 8 heads of width 16.
        training: how it is trained.
    """

    data_dir: Path = place(Path("/usr/share/datasets/fashion-mnist"))
    train_limit: int | None = None
    family: Family | None = added(None)
    deit: bool = added(False)
    model: VisionTransformer = _FASHION_VIT
    training: Training = field(default_factory=lambda: Training(epochs=10, batch_size=128))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.deit and self.family is None:
            raise ValueError("deit=True goes with a family, which is not set")
        if self.family is not None and self.model != _FASHION_VIT:
            raise ValueError(f"family={self.family!r} takes the place of model, which is set too: {self.model}")
        check_mixing(self.deit, self.training)

    def task(self, *, tuning: bool = False) -> Task:
        data = load_fashion_mnist(self.data_dir.expanduser(), self.train_limit)
        data = tuning_split(data[0]) if tuning else data
        return ImageClassification(data, self.model) if self.family is None else of_family(data, self.family, self.deit)


def of_family(
    data: tuple[ImageArrays, ImageArrays], family: Family, deit: bool, classes: int | Sequence[str] = 10
) -> ImageClassification:
    """A small family on training and evaluation set, by DeiT's recipe (its main.py at 7e160fe) or plainly."""
    if not deit:
        return ImageClassification(data, SmallFamily(family), classes)
    model, mixing = SmallFamily(family, drop_path=0.1), Mixing(mixup=0.8, cutmix=1.0, smoothing=0.1)
    return ImageClassification((Augmented(data[0]), data[1]), model, classes, mixing=mixing)


def check_mixing(mixes: bool, training: Training) -> None:
    """Raises ValueError if images are mixed in pairs and come in odd numbers."""
    if mixes and training.micro_batch % 2:
        raise ValueError(
            f"mixup and cutmix need an even number of images at a time, got batch_size={training.batch_size} "
            f"with accumulation={training.accumulation}"
        )
