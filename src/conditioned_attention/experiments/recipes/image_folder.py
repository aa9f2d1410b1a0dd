"""Classification of one's own images: the recipe ``image_folder``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from conditioned_attention.choices import Choices
from conditioned_attention.experiments.data.images.folder import image_folder
from conditioned_attention.experiments.data.images.mixing import Mixing
from conditioned_attention.experiments.data.images.parquet import is_parquet_folder, parquet_images
from conditioned_attention.experiments.data.images.saved import saved_images
from conditioned_attention.experiments.data.images.source import ImageSource, LazyImages, without_unreadable
from conditioned_attention.experiments.data.images.transforms import Augment, ImageTransform
from conditioned_attention.experiments.data.saved import is_saved_dataset
from conditioned_attention.experiments.data.split import TUNING, hold_out
from conditioned_attention.experiments.models.timm_model import TimmModel
from conditioned_attention.experiments.models.vision_transformer import VisionTransformer
from conditioned_attention.experiments.recipes.small_images import check_mixing
from conditioned_attention.experiments.tasks.classification import ImageClassification
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.storage.settings import added, place

VIT_S = VisionTransformer(patch_size=16, hidden_size=384, layers=12, heads=6)


@dataclass(frozen=True)
class ImageFolder(Choices):
    """Your own images: a folder for each class, or a Hugging Face data set on disk.

    Attributes:
        data_dir: folder with train/CLASS/ and val/CLASS/ (or validation, dev, test); or with CLASS/ alone, of which a
            fifth is then held out for evaluation; or a folder that save_to_disk has written; or one with parquet files,
            as in a snapshot of the Hugging Face hub.
        eval_split: the folder or split to evaluate on; needed if there are several.
        image_column: column with the images, in a saved data set or parquet files; default the only such column.
        label_column: column with the labels, in a saved data set or parquet files; default the only such column.
        image_size: side in pixels of the images that the model sees.
        augment: augmentation of training images: none, light (random crops and flips) or strong (also RandAugment and
            erasing).
        max_unreadable: images that cannot be read are left out; more than this many are an error.
        cache_dir: where the result of reading all images once is kept; default ~/.cache/conditioned-attention.  For
            parquet files, also where the copy of them that is read is kept; default the cache of Hugging Face's
            datasets.
        crop: share of the image's short side that is used in evaluation.
        mixing: mixup, cutmix and label smoothing in training.
        timm_model: name of a timm model to train instead of the vision transformer of ``model``.
        drop_path: probability of leaving out a residual branch of a timm model; see `TimmModel`.
        dropout: dropout of the outputs of dense layers of a timm model; see `TimmModel`.
        model: the network; the default is ViT-S/16 with 22 million parameters.
        training: how it is trained.
    """

    data_dir: Path = place()
    eval_split: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    image_size: int = 224
    augment: Augment = "light"
    max_unreadable: int = place(10)
    cache_dir: Path | None = place(None)
    crop: float = added(0.875)
    mixing: Mixing = added(Mixing())
    timm_model: str | None = None
    drop_path: float = added(0.0)
    dropout: float = added(0.0)
    model: VisionTransformer = VIT_S
    training: Training = field(default_factory=lambda: Training(epochs=100, lr=5e-4))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_mixing(self.mixing.mixes, self.training)

    def task(self, *, tuning: bool = False) -> ImageClassification:
        self._model()  # what is wrong with it is said before a million images are read
        for_training = ImageTransform(self.image_size, self.augment)
        for_evaluation = ImageTransform(self.image_size, "none", self.crop)
        source, notes = without_unreadable(self._source(), self.max_unreadable, self.cache_dir)
        train, evaluation = source.train, source.evaluation
        if tuning:
            rest, held = hold_out([source.labels[row] for row in train], TUNING)
            train, evaluation = [train[i] for i in rest], [train[i] for i in held]
        # shuffled, so that the first few, which the monitor looks at, are of many classes
        evaluation = np.random.RandomState(0).permutation(evaluation).tolist()
        data = LazyImages(source, train, for_training), LazyImages(source, evaluation, for_evaluation)
        return self._task(data, source.classes, notes)

    def _task(
        self, data: tuple[Dataset[Any], Dataset[Any]], classes: int | Sequence[str], notes: Sequence[str]
    ) -> ImageClassification:
        """The task on these training and evaluation images."""
        return ImageClassification(data, self._model(), classes, notes, self.mixing)

    def _model(self) -> VisionTransformer | TimmModel:
        if self.timm_model is None:
            if self.drop_path or self.dropout:
                raise ValueError(
                    f"drop_path={self.drop_path} and dropout={self.dropout} go with timm_model, which is not set"
                )
            return self.model
        if self.model != VIT_S:
            raise ValueError(f"timm_model={self.timm_model!r} takes the place of model, which is set too: {self.model}")
        return TimmModel(self.timm_model, self.drop_path, self.dropout)

    def _source(self) -> ImageSource:
        path = self.data_dir.expanduser()
        if is_saved_dataset(path):
            return saved_images(path, self.image_column, self.label_column, self.eval_split)
        if is_parquet_folder(path):
            cache = None if self.cache_dir is None else self.cache_dir.expanduser()
            return parquet_images(path, self.image_column, self.label_column, self.eval_split, cache)
        if self.image_column is not None or self.label_column is not None:
            raise ValueError(
                f"image_column and label_column are for saved data sets and parquet files, and {path} is neither"
            )
        return image_folder(path, self.eval_split)
