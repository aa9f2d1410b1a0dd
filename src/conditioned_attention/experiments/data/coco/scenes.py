"""Composed scenes in COCO's format: cut-outs on pieces of photographs, with exact masks, in a folder of their own."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from conditioned_attention.experiments.data.coco.cutouts import Cutout, Cutouts, checksum_of, resized
from conditioned_attention.experiments.data.coco.masks import encode
from conditioned_attention.experiments.data.scan import default_cache_dir, stamp_of
from conditioned_attention.storage.files import UNFINISHED, write_text

_VERSION = 1  # of the scenes: raise it with every change that alters them
_TRIES = 8  # places that are tried for a cut-out before it is left out
_SEEN = 0.4  # the smallest share of an object that stays visible
ANNOTATIONS = "annotations.json"


@dataclass(frozen=True)
class Scenes:
    """What the composed scenes are like.

    Attributes:
        side: side of a scene in pixels.
        objects: smallest and largest number of objects that are put into a scene.
        sizes: smallest and largest long side of an object, as shares of ``side``; drawn uniformly on a logarithmic
            scale.
        stream: number of the random stream; another one gives other scenes of the same kind.
    """

    side: int = 128
    objects: tuple[int, int] = (1, 4)
    sizes: tuple[float, float] = (0.25, 0.6)
    stream: int = 0

    def __post_init__(self) -> None:
        if self.side < 32 or not 0 <= self.objects[0] <= self.objects[1] or not 0 < self.sizes[0] <= self.sizes[1] <= 1:
            raise ValueError(
                f"side must be at least 32, objects and sizes (shares up to 1) a least and a most, got {self}"
            )


def composed(
    cutouts: Cutouts,
    photographs: tuple[Sequence[np.ndarray], Sequence[np.ndarray]],
    scenes: Scenes,
    counts: tuple[int, int],
    cache_dir: Path | None = None,
) -> list[Path]:
    """Two folders, of training and of evaluation scenes, with pictures and ``annotations.json`` in each.

    They are composed at the first call and kept; delete them whenever you like.  A scene is determined by its number
    and ``scenes``.  At least two fifths of each object are visible, and at most a quarter lies beyond the border.

    Args:
        cutouts, photographs: to train on and to evaluate on.
        scenes: what the scenes are like.
        counts: number of scenes in each set.
        cache_dir: where they are kept; default `default_cache_dir`.

    Raises:
        ValueError: a set would have no scene.
        OSError: ``cache_dir`` cannot be written.
    """
    if min(counts) < 1:
        raise ValueError(f"there must be at least one scene in each set, got {counts[0]} and {counts[1]}")
    root = (default_cache_dir() if cache_dir is None else cache_dir).expanduser()
    folders = []
    for part, (some, behind, count) in enumerate(
        zip((cutouts.train, cutouts.evaluation), photographs, counts, strict=True)
    ):
        made = [_VERSION, scenes.side, scenes.objects, scenes.sizes, scenes.stream, part, count]
        stamp = stamp_of([*made, cutouts.checksum(), cutouts.classes, checksum_of(behind)])
        folder = root / f"scenes-{stamp}"
        if not (folder / ANNOTATIONS).is_file():
            _write(folder, some, behind, cutouts.classes, scenes, count, part)
        folders.append(folder)
    return folders


def _write(
    folder: Path,
    cutouts: Sequence[Cutout],
    photographs: Sequence[np.ndarray],
    classes: Sequence[str],
    scenes: Scenes,
    count: int,
    part: int,
) -> None:
    """Writes scenes beside the folder, then renames them; if several processes start at once, the first one's stay."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}{UNFINISHED}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    pictures: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for number in range(count):
        chance = np.random.default_rng([scenes.stream, part, number])
        pixels, things = compose(cutouts, photographs, scenes, chance)
        name = f"{number:06}.png"
        Image.fromarray(pixels).save(temporary / name)
        pictures.append({"id": number + 1, "file_name": name, "height": scenes.side, "width": scenes.side})
        objects += [{"id": len(objects) + i, "image_id": number + 1, **thing} for i, thing in enumerate(things, 1)]
    categories = [{"id": label, "name": name} for label, name in enumerate(classes, 1)]
    whole = {"images": pictures, "annotations": objects, "categories": categories}
    write_text(temporary / ANNOTATIONS, json.dumps(whole))
    try:
        temporary.rename(folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not (folder / ANNOTATIONS).is_file():
            raise


def compose(
    cutouts: Sequence[Cutout], photographs: Sequence[np.ndarray], scenes: Scenes, chance: np.random.Generator
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """A scene (side, side, 3), uint8, and its objects as COCO describes them, without ids."""
    canvas = _behind(photographs[int(chance.integers(len(photographs)))], scenes.side, chance)
    owner = np.zeros((scenes.side, scenes.side), dtype=np.int64)  # number of the object that is seen there, from 1
    whole: list[int] = []  # pixels that each had before others came over it
    labels: list[int] = []
    for _ in range(chance.integers(scenes.objects[0], scenes.objects[1] + 1)):
        one = cutouts[int(chance.integers(len(cutouts)))]
        longest = scenes.side * np.exp(chance.uniform(*np.log(scenes.sizes)))
        pixels = resized(one, max(8, round(longest)), bool(chance.integers(2)))
        for _ in range(_TRIES):
            place, piece = _placed(pixels, scenes.side, chance)
            alpha = piece[..., 3:] / 255
            now = owner.copy()
            now[place][alpha[..., 0] > 0.5] = len(whole) + 1
            seen = np.bincount(now.ravel(), minlength=len(whole) + 2)[1:]
            if seen[-1] and all(seen[:-1] >= _SEEN * np.array(whole)):
                canvas[place] = alpha * piece[..., :3] + (1 - alpha) * canvas[place]
                owner = now
                whole.append(int(seen[-1]))
                labels.append(one.label + 1)
                break
    masks = np.stack([owner == i for i in range(1, len(whole) + 1)]) if whole else np.zeros((0, *owner.shape), bool)
    objects = [_described(mask, rle, label) for mask, rle, label in zip(masks, encode(masks), labels)]
    return canvas.round().astype(np.uint8), objects


def _behind(photograph: np.ndarray, side: int, chance: np.random.Generator) -> np.ndarray:
    """A square piece of a photograph, at least half its short side wide, resized to (side, side, 3), float."""
    height, width = photograph.shape[:2]
    cut = int(chance.integers(min(height, width) // 2, min(height, width) + 1))
    top, left = chance.integers(height - cut + 1), chance.integers(width - cut + 1)
    piece = Image.fromarray(photograph[top : top + cut, left : left + cut])
    return np.asarray(piece.resize((side, side), Image.Resampling.BILINEAR)).astype(np.float64)


def _placed(pixels: np.ndarray, side: int, chance: np.random.Generator) -> tuple[tuple[slice, slice], np.ndarray]:
    """Where a cut-out goes, with at most a quarter of it beyond the border, and the part of it that is within."""
    starts = [int(chance.integers(-(n // 4), side - n + n // 4 + 1)) for n in pixels.shape[:2]]
    place = tuple(slice(max(start, 0), min(start + n, side)) for start, n in zip(starts, pixels.shape))
    within = tuple(slice(one.start - start, one.stop - start) for one, start in zip(place, starts))
    return (place[0], place[1]), pixels[within]


def _described(mask: np.ndarray, rle: dict[str, Any], label: int) -> dict[str, Any]:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    left, top = int(columns[0]), int(rows[0])
    box = [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]
    return {"category_id": label, "bbox": box, "segmentation": rle, "area": int(mask.sum()), "iscrowd": 0}
