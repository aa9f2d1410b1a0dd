"""Emoji, classified from one artist's drawings to another's: the recipe ``emoji``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from conditioned_attention.choices import Choices
from conditioned_attention.experiments.data.images.emoji import Labels, Split, load_emoji
from conditioned_attention.experiments.models.small_family import Family
from conditioned_attention.experiments.recipes.small_images import check_mixing, of_family, tuning_split
from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.storage.settings import place


@dataclass(frozen=True)
class Emoji(Choices):
    """Emoji drawn by two artists, in colour, from the npm packages emoji-datasource-google and -twitter.

    Settings are chosen on a tenth of the training set's emoji, without the shift between artists.

    Attributes:
        data_dir: folder that holds the two packages; npm names it like the default.
        split: train on one artist's drawings and evaluate on the other's drawings of the same emoji;
            or ``"unseen_emoji"``: evaluate on a fifth of the emoji, drawn by both artists.
        labels: the ten categories, or the 99 subcategories.
        skin_tones: include the variants of an emoji that differ only in skin colour and are nearly copies of it.
        image_size: side in pixels; the drawings have 64.
        family: the network; see `SmallFamily`.
        deit: train by DeiT's recipe: shifts, flips, RandAugment, random erasing, mixup, cutmix, smoothed labels and
            drop path.
        training: how it is trained.
    """

    data_dir: Path = place(Path("node_modules"))
    split: Split = "google_to_twitter"
    labels: Labels = "category"
    skin_tones: bool = False
    image_size: Literal[32, 64] = 32
    family: Family = "vit"
    deit: bool = False
    training: Training = field(default_factory=lambda: Training(epochs=40))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_mixing(self.deit, self.training)

    def task(self, *, tuning: bool = False) -> Task:
        train, evaluation, bases, classes, notes = load_emoji(
            self.data_dir.expanduser(), self.split, self.labels, self.skin_tones, self.image_size
        )
        data = tuning_split(train, bases) if tuning else (train, evaluation)
        task = of_family(data, self.family, self.deit, classes)
        task.notes = notes
        return task
