"""A folder with a folder of images for every class."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from conditioned_attention.experiments.data.images.read import SUFFIXES
from conditioned_attention.experiments.data.images.source import ImageSource, split_if_needed
from conditioned_attention.experiments.data.scan import stamp_of
from conditioned_attention.experiments.data.split import listed, names_a_set
from conditioned_attention.experiments.data.walk import File, Walk, sets_at_top


@dataclass(frozen=True)  # so that sources of the same files are equal
class FileReader:
    """Returns the bytes of the file in a row."""

    root: Path
    names: Sequence[str]

    def __call__(self, row: int) -> bytes:
        return (self.root / self.names[row]).read_bytes()


def image_folder(root: Path, eval_split: str | None = None) -> ImageSource:
    """The labelled images in ``root/train/CLASS/…`` and ``root/val/CLASS/…``, or in ``root/CLASS/…`` alone.

    Sets are recognized by their names in upper or lower case: see `choose_sets`.  Without an evaluation set, a fixed
    fifth of the images, of each class alike, is held out for it.  Images may lie in subfolders of their class's folder.
    For what is left out, see `Walk`.

    Args:
        root: the folder.
        eval_split: the folder in it that holds the evaluation set; needed if there are several.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no class folders, some without images, different classes for evaluation and for training, or folders
            whose names do not say what they are for.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"data_dir={root} is not a folder")
    walk = Walk(root, SUFFIXES)
    top = walk.folders()
    sets, others = sets_at_top(walk, top, eval_split)
    folders = [top[name] for name in (sets.train, sets.evaluation) if name is not None] or [""]
    names, files, labels, rows = in_class_folders(walk, folders)
    train, evaluation, notes = split_if_needed(labels, rows[0], rows[1] if len(rows) == 2 else [], sets)
    notes += [*others, *left_out(walk, folders)]
    paths = [file.name for file in files]
    return ImageSource(names, paths, labels, train, evaluation, FileReader(root, paths), stamp_of(files), notes)


class Images(NamedTuple):
    """Names of classes, all images with a label each, and the rows of those in the first folder, the second, …."""

    classes: list[str]
    files: list[File]
    labels: list[int]
    rows: list[list[int]]


def in_class_folders(walk: Walk, folders: Sequence[str]) -> Images:
    """The images in the class folders of each of these folders.

    Raises:
        ValueError: no class folders, some without images, or different classes in different folders.
    """
    classes = _classes(walk, folders)
    files: list[File] = []
    labels: list[int] = []
    rows: list[list[int]] = []
    names = list(classes[folders[0]])
    for folder, places in classes.items():
        start = len(files)
        for label, name in enumerate(names):
            found = walk.files(os.path.join(folder, places[name]))
            files += found
            labels += [label] * len(found)
        rows.append(list(range(start, len(files))))
    _check_all_there(walk, classes, labels, rows)
    return Images(names, files, labels, rows)


def left_out(walk: Walk, folders: Sequence[str]) -> list[str]:
    """What is left out in folders with class folders, one line per kind."""
    loose = [file for folder in folders for file in walk.beside(folder)]
    return [f"left out, images beside the folders of classes: {listed(loose)}"] * bool(loose) + walk.left_out()


def images_below(root: Path) -> list[str]:
    """The relative paths of all images below a folder, in order: the files that `image_folder` would use."""
    return [file.name for file in Walk(root, SUFFIXES).files()]


def _classes(walk: Walk, folders: Sequence[str]) -> dict[str, dict[str, str]]:
    """The class folders in each folder of a set, by name; they must be the same in every set."""
    classes = {folder: walk.folders(folder) for folder in folders}
    first = classes[folders[0]]
    if not first:
        raise ValueError(f"{walk.root / folders[0]} has no class folders; images go to {walk.root / folders[0]}/CLASS/")
    for folder, found in classes.items():
        if found.keys() != first.keys():
            only = [f"{name} only in {folder}" for name in found if name not in first]
            missing = [f"{name} not in {folder}" for name in first if name not in found]
            raise ValueError(f"{walk.root}: the classes differ: {', '.join([*only, *missing][:10])}")
        for place in found.values():
            if inner := [name for name in walk.folders(os.path.join(folder, place)) if names_a_set(name)]:
                raise ValueError(
                    f"{walk.root / folder / place} would be read as a class, but it contains {', '.join(inner)}, the "
                    f"name of a set; pass that folder itself, or put the sets above the classes: {inner[0]}/{place}/"
                )
    return classes


def _check_all_there(
    walk: Walk, classes: Mapping[str, Mapping[str, str]], labels: Sequence[int], rows: Sequence[Sequence[int]]
) -> None:
    for (folder, names), some in zip(classes.items(), rows):
        present = {labels[row] for row in some}
        if empty := [name for label, name in enumerate(names) if label not in present]:
            links = "".join(f"; {line}" for line in walk.left_out() if "links" in line)
            raise ValueError(
                f"{walk.root / folder}: class folders without images: {', '.join(empty[:10])} "
                f"({len(empty)} of {len(names)}); known suffixes are {' '.join(SUFFIXES)}{links}"
            )
