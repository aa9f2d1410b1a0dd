"""Labelled images on disk: the description of a source, and the data set that decodes its images lazily."""

from __future__ import annotations

import io
import os
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import PIL
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from conditioned_attention.experiments.data.fingerprint import checksum
from conditioned_attention.experiments.data.images.read import RULES, read_rgb
from conditioned_attention.experiments.data.scan import as_scanned, read_once, stamp_of, tell, tell_unreadable
from conditioned_attention.experiments.data.split import EVALUATION, Sets, hold_out


@runtime_checkable
class Closed(Protocol):
    """A loader that must be opened first, which takes long and so waits until labels and counts have been checked."""

    def open(self) -> Callable[[int], bytes]: ...


@dataclass(frozen=True)
class ImageSource:
    """Labelled images that are not yet decoded; a row is an index into ``names`` and ``labels``.

    Attributes:
        classes: their names; a label is an index into them.
        names: of the images, for messages.
        labels: of the images.
        train: rows of the training set.
        evaluation: rows of the evaluation set.
        load: returns the bytes of the image in a row; it can be pickled.  See `opened`.
        stamp: changes when an image may have changed.
        notes: which sets these are, and what was left out of them.
        contents: a checksum of the bytes of each image; empty until all were read, see `without_unreadable`.
    """

    classes: Sequence[str]
    names: Sequence[str]
    labels: Sequence[int]
    train: Sequence[int]
    evaluation: Sequence[int]
    load: Callable[[int], bytes]
    stamp: str
    notes: Sequence[str] = field(default=(), compare=False)
    contents: Sequence[int] = field(default=(), compare=False)

    def opened(self) -> ImageSource:
        """The source, ready to read images one by one, for which they may first be copied; see `Closed`."""
        return replace(self, load=self.load.open()) if isinstance(self.load, Closed) else self

    def read(self, row: int) -> Image.Image:
        """The image of a row, decoded to RGB."""
        return _decoded(self.load(row))

    def check(self, row: int) -> int:
        """Reads the whole image of a row; returns the checksum of its bytes."""
        encoded = self.load(row)
        _decoded(encoded)
        return zlib.crc32(encoded)


def without_unreadable(
    source: ImageSource, max_unreadable: int, cache_dir: Path | None
) -> tuple[ImageSource, list[str]]:
    """The source without the images that cannot be read, and what a report should say about it; see `read_once`.

    Raises:
        ValueError: too many cannot be read, a class is left without training images, or there is one class only.
    """
    notes = [*source.notes, *_doubts(source)]
    source = source.opened()
    stamp = stamp_of([PIL.__version__, RULES, source.stamp])  # another Pillow may read other files
    scan = read_once(source.names, source.check, stamp, max_unreadable=max_unreadable, cache_dir=cache_dir)
    found = scan.unreadable
    notes += tell_unreadable({source.names[i]: reason for i, reason in found.items()}, len(source.names))
    train, evaluation = ([row for row in rows if row not in found] for rows in (source.train, source.evaluation))
    counts = Counter(source.labels[row] for row in train)
    if missing := [name for label, name in enumerate(source.classes) if not counts[label]]:
        more = f", … ({len(missing)} in all)" if len(missing) > 5 else ""
        raise ValueError(f"no readable training image of {', '.join(missing[:5])}{more}")
    if not evaluation:
        raise ValueError("no readable image in the evaluation set")
    return replace(source, train=train, evaluation=evaluation, contents=scan.contents), notes


def _doubts(source: ImageSource) -> list[str]:
    """Reasons to doubt the labels, also as a warning; raises ValueError if there is nothing to learn from them."""
    if len(source.classes) == 1:
        raise ValueError(
            f"there is one class only, {source.classes[0]}: nothing to tell apart. Is it the right folder or column? "
            "Images go to CLASS/, train/CLASS/ and val/CLASS/"
        )
    single = sum(n == 1 for n in Counter(source.labels[row] for row in source.train).values())
    if single <= len(source.classes) / 2:
        return []
    doubt = f"{single} of {len(source.classes)} classes have one training image: are the labels numbers of images?"
    tell(doubt)
    return [doubt]


def split_if_needed(
    labels: Sequence[int], train: Sequence[int], evaluation: Sequence[int], sets: Sets
) -> tuple[list[int], list[int], list[str]]:
    """Rows for training and evaluation, and a note on them: as given, or with a fifth of the training rows held out.

    Raises:
        ValueError: there is no evaluation set, and too few images to hold out any.
    """
    if evaluation:
        return list(train), list(evaluation), [f"trained on {sets.train}, evaluated on {sets.evaluation}"]
    rest, held = hold_out([labels[row] for row in train], EVALUATION)
    if not held:
        raise ValueError(
            f"no evaluation set, and none can be held out: each of the {len(set(labels))} classes has one image. Are "
            "the labels numbers of images?"
        )
    note = f"no evaluation set: a fixed fifth of {sets.train or 'the images'} is held out"
    return [train[i] for i in rest], [train[i] for i in held], [note]


class LazyImages(Dataset[tuple[Tensor, int]]):
    """Some rows of a source, whose images are decoded and transformed at each access."""

    def __init__(self, source: ImageSource, rows: Sequence[int], transform: Callable[[Image.Image], Tensor]) -> None:
        self.source, self.rows, self.transform = source, rows, transform

    def __len__(self) -> int:
        return len(self.rows)

    def fingerprint(self) -> dict[str, Any]:
        """The number of images, and checksums of their names, labels and bytes, in their order."""
        source = self.source
        return {
            "items": len(self),
            "names": checksum(source.names[row].replace(os.sep, "/") for row in self.rows),
            "labels": checksum(source.labels[row] for row in self.rows),
            "contents": checksum(source.contents[row] for row in self.rows) if source.contents else None,
        }

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self.rows[index]
        source = self.source
        known = source.contents[row] if source.contents else None
        picture = as_scanned(source.names[row], lambda: source.load(row), _decoded, known)
        return self.transform(picture), source.labels[row]


def _decoded(encoded: bytes) -> Image.Image:
    try:
        return read_rgb(io.BytesIO(encoded))
    except PIL.UnidentifiedImageError:  # whose own message has a memory address
        raise PIL.UnidentifiedImageError("it is no image that Pillow knows") from None
