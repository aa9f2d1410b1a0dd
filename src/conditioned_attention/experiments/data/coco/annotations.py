"""Annotations in COCO's format: the valid entries of a JSON file, and what was left out of it, by id."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from conditioned_attention.experiments.data.coco.masks import is_number, why_no_mask
from conditioned_attention.experiments.data.images.read import MOST_PIXELS
from conditioned_attention.experiments.data.split import listed
from conditioned_attention.storage.files import parsed


class Picture(NamedTuple):
    """A picture as the file lists it; sides in pixels."""

    id: int
    file: str
    height: int
    width: int


class Thing(NamedTuple):
    """An object in a picture.

    ``label`` counts the categories from 1 in the order of their ids, which may have gaps; ``box`` is left, top, width
    and height in pixels, and ``shape`` polygons or a run-length encoding.  A crowd stands for many objects.
    """

    label: int
    box: tuple[float, float, float, float]
    shape: Any
    area: float
    crowd: bool


@dataclass(frozen=True)
class Annotations:
    """The content of an annotation file.

    Attributes:
        classes: names of the categories, in the order of their ids.
        category_ids: these ids, as in the file.
        pictures: in the order of the file.
        things: the objects, by the id of their picture; a picture may have none.
        checksum: of the file.
        notes: what was left out.
    """

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    pictures: tuple[Picture, ...]
    things: Mapping[int, Sequence[Thing]]
    checksum: str
    notes: tuple[str, ...] = ()


def read_annotations(file: Path) -> Annotations:
    """Reads an annotation file such as ``instances_….json``.

    Broken entries are left out, counted and named by id: pictures without a name or size, or with an id that occurred
    before; objects of an unknown picture or category, with an invalid box or one outside the picture, or with a mask
    that is invalid or has another size than the picture.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON, lacks a list, has no valid picture, or has annotations but no valid one; or
            two categories have the same id.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file}")
    content = file.read_bytes()
    try:
        data = parsed(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: it holds no JSON ({error})") from error
    lists = ("images", "annotations", "categories")
    if not isinstance(data, dict) or not all(isinstance(data.get(name), list) for name in lists):
        raise ValueError(f"{file} is no annotation file of COCO's form: it must have the lists {', '.join(lists)}")
    names = _categories(data["categories"], file)
    pictures, bad_pictures = _pictures(data["images"])
    if not pictures:
        raise ValueError(f"{file} has no whole picture: {listed(bad_pictures)}")
    labels = {id_: label for label, id_ in enumerate(names, 1)}
    things: dict[int, list[Thing]] = {id_: [] for id_ in pictures}
    bad_things = []
    for entry in data["annotations"]:
        if reason := _why_broken(entry, pictures, labels):
            bad_things.append(f"{_id_of(entry)} ({reason})")
        else:
            things[entry["image_id"]].append(_thing(entry, labels))
    if bad_things and len(bad_things) == len(data["annotations"]):
        raise ValueError(f"{file} has no whole annotation: {listed(bad_things)}")
    notes = [
        f"{file.name}: {len(bad)} broken {what} left out, by id: {listed(bad)}"
        for what, bad in (("pictures", bad_pictures), ("annotations", bad_things))
        if bad
    ]
    whole = tuple(pictures.values())
    return Annotations(tuple(names.values()), tuple(names), whole, things, f"{zlib.crc32(content):08x}", tuple(notes))


def _categories(entries: Sequence[Any], file: Path) -> dict[int, str]:
    """Names by id, in the order of the ids."""
    if not entries or not all(_has(entry, id=int, name=str) for entry in entries):
        raise ValueError(f"{file}: every category must have a whole number as id and a name, and there must be one")
    twice = [str(id_) for id_, count in Counter(entry["id"] for entry in entries).items() if count > 1]
    if twice:
        raise ValueError(f"{file}: several categories have the id {listed(twice)}")
    return dict(sorted((entry["id"], entry["name"]) for entry in entries))


def _pictures(entries: Sequence[Any]) -> tuple[dict[int, Picture], list[str]]:
    found: dict[int, Picture] = {}
    broken = []
    for entry in entries:
        if not _has(entry, id=int, file_name=str, height=int, width=int) or min(entry["height"], entry["width"]) < 1:
            broken.append(f"{_id_of(entry)} (no id, file_name, height and width)")
        elif entry["height"] * entry["width"] > MOST_PIXELS:
            broken.append(f"{entry['id']} ({entry['width']:,} × {entry['height']:,} pixels)")
        elif entry["id"] in found:
            broken.append(f"{entry['id']} (for the second time)")
        else:
            found[entry["id"]] = Picture(entry["id"], entry["file_name"], entry["height"], entry["width"])
    return found, broken


def _why_broken(entry: Any, pictures: Mapping[int, Picture], labels: Mapping[int, int]) -> str:
    """What is wrong with an annotation; empty if nothing is."""
    if not _has(entry, image_id=int, category_id=int):
        return "no image_id and category_id"
    picture = pictures.get(entry["image_id"])
    if picture is None:
        return f"there is no picture {entry['image_id']}"
    if entry["category_id"] not in labels:
        return f"there is no category {entry['category_id']}"
    box = entry.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box)) and min(box[2:]) > 0):
        return f"bbox {box!r} is no box"
    if box[0] >= picture.width or box[1] >= picture.height or box[0] + box[2] <= 0 or box[1] + box[3] <= 0:
        return f"bbox {box!r} lies beside its picture of {picture.width} × {picture.height}"
    if not is_number(entry.get("area", 0)):
        return f"area {entry['area']!r} is no number"
    return why_no_mask(entry.get("segmentation"), picture.height, picture.width)


def _thing(entry: Mapping[str, Any], labels: Mapping[int, int]) -> Thing:
    box = tuple(entry["bbox"])
    area = entry.get("area", box[2] * box[3])
    return Thing(labels[entry["category_id"]], box, entry["segmentation"], area, bool(entry.get("iscrowd", 0)))


def _has(entry: Any, **kinds: type) -> bool:
    if not isinstance(entry, dict):
        return False
    return all(isinstance(entry.get(k), kind) and not isinstance(entry[k], bool) for k, kind in kinds.items())


def _id_of(entry: Any) -> str:
    return str(entry.get("id", "without id")) if isinstance(entry, dict) else "without id"
