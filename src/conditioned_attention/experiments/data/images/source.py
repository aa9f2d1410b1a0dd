"""Labelled images on disk: what a source of them says, and the data set that decodes them lazily."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import PIL
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from conditioned_attention.experiments.data.images.read import RULES
from conditioned_attention.experiments.data.scan import find_unreadable, reason_of, stamp_of, tell_unreadable
from conditioned_attention.experiments.data.split import EVALUATION, hold_out


@dataclass(frozen=True)
class ImageSource:
    """Labelled images that are not yet decoded; a row is an index into ``names`` and ``labels``.

    Attributes:
        classes: their names; a label is an index into them.
        names: of the images, for messages.
        labels: of the images.
        train: rows of the training set.
        evaluation: rows of the evaluation set.
        read: decodes the image of a row to RGB; it can be pickled.
        stamp: changes when an image may have changed.
    """

    classes: Sequence[str]
    names: Sequence[str]
    labels: Sequence[int]
    train: Sequence[int]
    evaluation: Sequence[int]
    read: Callable[[int], Image.Image]
    stamp: str


def without_unreadable(
    source: ImageSource, max_unreadable: int, cache_dir: Path | None
) -> tuple[ImageSource, list[str]]:
    """The source without the images that cannot be read, and a line about each of them; see `find_unreadable`.

    Raises:
        ValueError: too many cannot be read, or a class is left without training images.
    """
    stamp = stamp_of([PIL.__version__, RULES, source.stamp])  # another Pillow may read other files
    found = find_unreadable(source.names, source.read, stamp, max_unreadable=max_unreadable, cache_dir=cache_dir)
    notes = tell_unreadable({source.names[i]: reason for i, reason in found.items()}, len(source.names))
    train, evaluation = ([row for row in rows if row not in found] for rows in (source.train, source.evaluation))
    counts = Counter(source.labels[row] for row in train)
    if missing := [name for label, name in enumerate(source.classes) if not counts[label]]:
        more = f", … ({len(missing)} in all)" if len(missing) > 5 else ""
        raise ValueError(f"no readable training image of {', '.join(missing[:5])}{more}")
    if not evaluation:
        raise ValueError("no readable image in the evaluation set")
    return replace(source, train=train, evaluation=evaluation), notes


def split_if_needed(
    labels: Sequence[int], train: Sequence[int], evaluation: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Rows for training and evaluation: as given, or a fifth of the training rows where there is no other set."""
    if evaluation:
        return list(train), list(evaluation)
    rest, held = hold_out([labels[row] for row in train], EVALUATION)
    return [train[i] for i in rest], [train[i] for i in held]


class LazyImages(Dataset[tuple[Tensor, int]]):
    """Some rows of a source, each decoded and transformed when it is asked for."""

    def __init__(self, source: ImageSource, rows: Sequence[int], transform: Callable[[Image.Image], Tensor]) -> None:
        self.source, self.rows, self.transform = source, rows, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self.rows[index]
        try:
            picture = self.source.read(row)
        except Exception as error:  # damaged files fail in as many ways as there are readers
            raise RuntimeError(
                f"{self.source.names[row]} could be read when the data were scanned and cannot be now "
                f"({reason_of(error)}); with the file back in place the run goes on where it was"
            ) from error
        return self.transform(picture), self.source.labels[row]
