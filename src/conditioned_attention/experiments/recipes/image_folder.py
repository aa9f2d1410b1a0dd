"""Classification of one's own images, from class folders or a saved data set: the recipe ``image_folder``."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor, nn

from conditioned_attention._torchvision import make_importable
from conditioned_attention.experiments.data.images.folder import image_folder
from conditioned_attention.experiments.data.images.saved import is_saved_dataset, saved_images
from conditioned_attention.experiments.data.images.source import ImageSource, LazyImages, without_unreadable
from conditioned_attention.experiments.data.split import TUNING, hold_out
from conditioned_attention.experiments.recipes.small_images import ImageClassification, VisionTransformer
from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.experiments.training.settings import Training

Augment = Literal["none", "light", "strong"]
VIT_S = VisionTransformer(patch_size=16, hidden_size=384, layers=12, heads=6)
_EVALUATION: Augment = "none"
_AUGMENT: dict[str, dict[str, Any]] = {
    "none": {"is_training": False},
    "light": {"is_training": True, "color_jitter": None},
    "strong": {
        "is_training": True,
        "color_jitter": None,
        "auto_augment": "rand-m9-mstd0.5-inc1",
        "re_prob": 0.25,
        "re_mode": "pixel",
    },
}


@dataclass(frozen=True)
class TimmModel:
    """A model of timm by its name, with fresh weights."""

    name: str

    def __post_init__(self) -> None:
        timm = _timm()
        if not timm.is_model(self.name):
            near = difflib.get_close_matches(self.name, timm.list_models(), n=5)
            raise ValueError(f"timm_model={self.name!r} is unknown to timm {timm.__version__}; near are {near}")

    def build(self, image_size: int, channels: int, classes: int) -> nn.Module:
        """The model; it maps images (B, C, H, W) to logits (B, classes).  Many models of timm take one size only."""
        sizes: dict[str, Any] = {"in_chans": channels, "num_classes": classes}
        try:
            model: nn.Module = _timm().create_model(self.name, img_size=image_size, **sizes)
        except TypeError as error:
            if "'img_size'" not in str(error):
                raise
            model = _timm().create_model(self.name, **sizes)  # it takes images of any size
        return model


@dataclass(frozen=True)
class ImageFolder:
    """Your own images: a folder a class, or a Hugging Face data set on disk.

    Attributes:
        data_dir: folder with train/CLASS/ and val/CLASS/ (or validation, test), or CLASS/ alone, of which a fifth
            then is for evaluation; or a folder that save_to_disk has written.
        eval_split: which folder or split to evaluate on; needed if there are several.
        image_column: of a saved data set; default the only one with images.
        label_column: of a saved data set; default the only one with labels.
        image_size: side in pixels of what the model sees.
        augment: of training images: none, light (random crops and flips) or strong (RandAugment and erasing too).
        max_unreadable: images that cannot be read are left out; more than so many are an error.
        cache_dir: where the result of reading all images once is kept; default ~/.cache/conditioned-attention.
        timm_model: train this model of timm instead of the vision transformer below.
        model: the network; the default is ViT-S/16 with 22 million parameters.
        training: how it is trained.
    """

    data_dir: Path
    eval_split: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    image_size: int = 224
    augment: Augment = "light"
    max_unreadable: int = 10
    cache_dir: Path | None = None
    timm_model: str | None = None
    model: VisionTransformer = VIT_S
    training: Training = field(default_factory=lambda: Training(epochs=100, lr=5e-4))

    def task(self, *, tuning: bool = False) -> Task:
        model = self._model()
        for_training, for_evaluation = (ImageTransform(self.image_size, kind) for kind in (self.augment, _EVALUATION))
        source, notes = without_unreadable(self._source(), self.max_unreadable, self.cache_dir)
        train, evaluation = source.train, source.evaluation
        if tuning:
            rest, held = hold_out([source.labels[row] for row in train], TUNING)
            train, evaluation = [train[i] for i in rest], [train[i] for i in held]
        # shuffled, so that the first few, which the monitor looks at, are of many classes
        evaluation = np.random.RandomState(0).permutation(evaluation).tolist()
        data = LazyImages(source, train, for_training), LazyImages(source, evaluation, for_evaluation)
        return ImageClassification(data, model, len(source.classes), notes)

    def _model(self) -> VisionTransformer | TimmModel:
        if self.timm_model is None:
            return self.model
        if self.model != VIT_S:
            raise ValueError(f"timm_model={self.timm_model!r} takes the place of model, which is set too: {self.model}")
        return TimmModel(self.timm_model)

    def _source(self) -> ImageSource:
        path = self.data_dir.expanduser()
        if is_saved_dataset(path):
            return saved_images(path, self.image_column, self.label_column, self.eval_split)
        if self.image_column is not None or self.label_column is not None:
            raise ValueError(f"image_column and label_column are for saved data sets, and {path} is none")
        return image_folder(path, self.eval_split)


class ImageTransform:
    """From an RGB image to a tensor (3, image_size, image_size), by timm.

    "none" is DeiT's and Swin's evaluation: the short side to ``image_size / 0.875``, bicubic, the centre of it,
    ImageNet's mean and standard deviation.  "strong" is their training: random resized crops (8 % to 100 %), flips,
    RandAugment ``rand-m9-mstd0.5-inc1``, and a rectangle erased with probability 0.25.  "light" is the first two of
    these.  What is random is drawn from the global generators of torch, numpy and Python.
    """

    def __init__(self, image_size: int, augment: Augment) -> None:
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {image_size}")
        if augment not in _AUGMENT:
            raise ValueError(f"augment={augment!r} is unknown; valid are {', '.join(_AUGMENT)}")
        _timm()
        from timm.data.transforms_factory import create_transform

        self._arguments = image_size, augment
        self.steps = create_transform(image_size, interpolation="bicubic", crop_pct=0.875, **_AUGMENT[augment])
        for step in self.steps.transforms:
            for operation in getattr(step, "ops", ()):
                if operation.name.startswith("Posterize"):
                    operation.aug_fn = _posterize

    def __call__(self, image: Image.Image) -> Tensor:
        result: Tensor = self.steps(image)
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments  # made anew in a spawned loader worker, where timm must be made importable


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """At its highest magnitude timm keeps no bits, a black image; Pillow 13 refuses what earlier ones did."""
    return ImageOps.posterize(image, bits) if bits else Image.new(image.mode, image.size)


def _timm() -> Any:
    make_importable()
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"image_folder needs: pip install 'conditioned-attention[timm]' ({error})") from error
    return timm
