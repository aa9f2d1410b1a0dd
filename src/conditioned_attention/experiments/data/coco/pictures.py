"""A data set of pictures with their objects, which are decoded and transformed at each access."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from torch import Tensor
from torch.utils.data import Dataset

from conditioned_attention.experiments.data.coco.annotations import Annotations, Picture, Thing, read_annotations
from conditioned_attention.experiments.data.coco.masks import stacked
from conditioned_attention.experiments.data.fingerprint import checksum
from conditioned_attention.experiments.data.images.read import RULES, read_rgb
from conditioned_attention.experiments.data.scan import as_scanned, read_once, stamp_of, tell, tell_unreadable

Target = dict[str, Tensor]
Transform = Callable[[Any, Any], Any]


@dataclass(frozen=True, eq=False)
class CocoPictures(Dataset[tuple[Tensor, Target]]):
    """Some of the pictures of an annotation file.

    An item is a picture (3, H, W) of numbers from 0 to 1, and a dictionary with ``image_id`` (); for training it also
    has ``boxes`` (N, 4) by their corners in pixels, ``labels`` (N,) from 1, and ``masks`` (N, H, W), uint8.  Crowds and
    objects narrower than a pixel are not trained on.

    Attributes:
        annotations: of the file.
        folder: that the names in the file are relative to.
        rows: which of the file's pictures.
        contents: a checksum of the bytes of each picture in the file.
        transform: is called with the picture and the dictionary; None for pictures as they are, without objects, to
            evaluate on.
    """

    annotations: Annotations
    folder: Path
    rows: Sequence[int]
    contents: Sequence[int] = field(default=(), repr=False)
    transform: Transform | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        picture = self.picture(index)
        image = self._image(self.rows[index])
        if self.transform is None:
            return image, {"image_id": torch.tensor(picture.id)}
        found: tuple[Tensor, Target] = self.transform(image, self._target(picture))
        return found

    def picture(self, index: int) -> Picture:
        """The file's entry for a picture."""
        return self.annotations.pictures[self.rows[index]]

    def things(self, index: int) -> Sequence[Thing]:
        """All objects in a picture, including crowds and the smallest ones."""
        return self.annotations.things[self.picture(index).id]

    def _image(self, row: int) -> Tensor:
        picture, known = self.annotations.pictures[row], self.contents[row] if self.contents else None
        file = self.folder / picture.file
        pixels = as_scanned(picture.file, file.read_bytes, lambda encoded: _decoded(encoded, picture), known)
        return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255

    def _target(self, picture: Picture) -> Target:
        some = [thing for thing in self.annotations.things[picture.id] if to_learn(thing, picture)]
        boxes = [corners(thing, picture) for thing in some]
        return {
            "image_id": torch.tensor(picture.id),
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([thing.label for thing in some], dtype=torch.int64),
            "masks": torch.from_numpy(stacked([thing.shape for thing in some], picture.height, picture.width)),
        }

    def subset(self, indices: Sequence[int], transform: Transform | None = None) -> CocoPictures:
        """Some of the pictures, in this order, with another transform."""
        return replace(self, rows=[self.rows[i] for i in indices], transform=transform)

    def with_truth(self) -> CocoPictures:
        """The same pictures, whose items have the objects too, without a transform."""
        return replace(self, transform=_as_they_are)

    def with_objects(self) -> CocoPictures:
        """The pictures that have an object to train on."""
        kept = [
            row for i, row in enumerate(self.rows) if any(to_learn(thing, self.picture(i)) for thing in self.things(i))
        ]
        return replace(self, rows=kept)

    def ground_truth(self) -> dict[str, Any]:
        """Pictures and objects in COCO's own format, for its evaluators; objects are numbered from 1."""
        pictures = [self.picture(i) for i in range(len(self))]
        things = [(picture.id, thing) for picture in pictures for thing in self.annotations.things[picture.id]]
        ids = self.annotations.category_ids
        objects = [
            {"id": number, "image_id": id_, "category_id": ids[thing.label - 1], "bbox": list(thing.box),
             "segmentation": thing.shape, "area": thing.area, "iscrowd": int(thing.crowd)}
            for number, (id_, thing) in enumerate(things, 1)
        ]  # fmt: skip
        return {
            "images": [{"id": p.id, "file_name": p.file, "height": p.height, "width": p.width} for p in pictures],
            "annotations": objects,
            "categories": [{"id": id_, "name": name} for id_, name in zip(ids, self.annotations.classes)],
        }

    def fingerprint(self) -> dict[str, Any]:
        """The number of pictures, and checksums of the annotation file, of the pictures' ids, and of their bytes."""
        return {
            "items": len(self),
            "annotations": self.annotations.checksum,
            "pictures": checksum(self.picture(i).id for i in range(len(self))),
            "contents": checksum(self.contents[row] for row in self.rows) if self.contents else None,
        }


def _as_they_are(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    return image, target


def corners(thing: Thing, picture: Picture) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the part of an object's box that lies in the picture."""
    left, top, width, height = thing.box
    return max(left, 0), max(top, 0), min(left + width, picture.width), min(top + height, picture.height)


def to_learn(thing: Thing, picture: Picture) -> bool:
    """Whether to train on an object, by mmdetection's rule: it is no crowd, and at least a pixel wide and high."""
    left, top, right, bottom = corners(thing, picture)
    return not thing.crowd and thing.area > 0 and min(right - left, bottom - top) >= 1


def read_pictures(
    file: Path, folder: Path, *, max_unreadable: int = 10, cache_dir: Path | None = None
) -> tuple[CocoPictures, list[str]]:
    """The pictures of an annotation file whose files can be read, and what a report should say about the others.

    Every file is read once, and the result is kept; see `read_once`.  Warns of broken annotations.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: as `read_annotations` and `read_once`.
    """
    annotations = read_annotations(file)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}, which holds the pictures of {file.name}")
    for note in annotations.notes:
        tell(note)
    names = [picture.file for picture in annotations.pictures]

    def check(row: int) -> int:
        encoded = (folder / names[row]).read_bytes()
        _decoded(encoded, annotations.pictures[row])
        return zlib.crc32(encoded)

    stamp = stamp_of(["coco", PIL.__version__, RULES, annotations.checksum, *map(_stamp, (folder / n for n in names))])
    scan = read_once(names, check, stamp, max_unreadable=max_unreadable, cache_dir=cache_dir)
    notes = [*annotations.notes, *tell_unreadable({names[i]: why for i, why in scan.unreadable.items()}, len(names))]
    rows = [row for row in range(len(names)) if row not in scan.unreadable]
    return CocoPictures(annotations, folder, rows, scan.contents), notes


def _stamp(path: Path) -> list[Any]:
    try:
        found = os.stat(path)
    except OSError:
        return [str(path)]
    return [str(path), found.st_size, found.st_mtime_ns]


def _decoded(encoded: bytes, picture: Picture) -> np.ndarray:
    pixels = np.array(read_rgb(io.BytesIO(encoded)))
    if pixels.shape[:2] != (picture.height, picture.width):
        raise ValueError(
            f"it has {pixels.shape[1]} × {pixels.shape[0]} pixels, and {picture.width} × {picture.height} by its entry"
        )
    return pixels
