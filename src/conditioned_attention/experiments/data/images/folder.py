"""A folder with a folder of images for every class."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from conditioned_attention.experiments.data.images.read import SUFFIXES, read_rgb
from conditioned_attention.experiments.data.images.source import ImageSource, split_if_needed
from conditioned_attention.experiments.data.scan import stamp_of
from conditioned_attention.experiments.data.split import EVALUATION_SPLITS, choose_eval_split


@dataclass(frozen=True)  # so that sources of the same files are equal
class FileReader:
    """Decodes the image in one of these files."""

    root: Path
    names: Sequence[str]

    def __call__(self, row: int) -> Image.Image:
        return read_rgb(self.root / self.names[row])


def image_folder(root: Path, eval_split: str | None = None) -> ImageSource:
    """``root/train/CLASS/…`` with ``root/val/CLASS/…`` (or validation, test), or ``root/CLASS/…`` alone.

    Without an evaluation set a fixed fifth of the images, of each class alike, is taken for it.  Images may lie in
    folders within their class's.  Other files, by their suffix, and hidden ones are ignored.

    Args:
        root: the folder.
        eval_split: the folder in it that holds the evaluation set; needed if there are several.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no class folders, some without images, or other classes for evaluation than for training.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"data_dir={root} is not a folder")
    if (root / "train").is_dir():
        folders = ["train", *choose_eval_split([d for d in _folders(root) if d != "train"], eval_split, str(root))]
    elif eval_split is not None:
        raise ValueError(f"eval_split={eval_split!r} needs a training set beside it, and {root} has no folder 'train'")
    elif set(_folders(root)) & set(EVALUATION_SPLITS):
        raise ValueError(f"{root} has no folder 'train', only {', '.join(_folders(root))}")
    else:
        folders = [""]
    names: list[str] = []
    stamps: list[tuple[str, int, int]] = []
    labels: list[int] = []
    rows: list[list[int]] = []
    classes = _classes(root, folders)
    for folder in folders:
        start = len(names)
        for label, name in enumerate(classes):
            found = sorted(_image_files(root, os.path.join(folder, name)))
            names += [file for file, *_ in found]
            stamps += found
            labels += [label] * len(found)
        rows.append(list(range(start, len(names))))
    _check_all_there(root, folders, classes, labels, rows)
    train, evaluation = split_if_needed(labels, rows[0], rows[1] if len(rows) == 2 else [])
    return ImageSource(classes, names, labels, train, evaluation, FileReader(root, names), stamp_of(stamps))


def images_below(root: Path) -> list[str]:
    """Every image below a folder, by its path relative to it, in order: the files that `image_folder` would take."""
    return sorted(name for name, *_ in _image_files(root, ""))


def _folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _classes(root: Path, folders: Sequence[str]) -> list[str]:
    """Names of the class folders, which must be the same in every split."""
    classes = [_folders(root / folder) for folder in folders]
    if not classes[0]:
        raise ValueError(f"{root / folders[0]} has no class folders; images go to {root / folders[0]}/CLASS/")
    for folder, found in zip(folders[1:], classes[1:]):
        if found != classes[0]:
            only = [f"{name} only in {folder}" for name in found if name not in classes[0]]
            missing = [f"{name} not in {folder}" for name in classes[0] if name not in found]
            raise ValueError(f"{root}: the classes differ: {', '.join([*only, *missing][:10])}")
    return classes[0]


def _check_all_there(
    root: Path, folders: Sequence[str], classes: Sequence[str], labels: Sequence[int], rows: Sequence[Sequence[int]]
) -> None:
    for folder, some in zip(folders, rows):
        present = {labels[row] for row in some}
        if empty := [name for label, name in enumerate(classes) if label not in present]:
            raise ValueError(
                f"{root / folder}: class folders without images: {', '.join(empty[:10])} "
                f"({len(empty)} of {len(classes)}); known suffixes are {' '.join(SUFFIXES)}"
            )


def _image_files(root: Path, folder: str, above: tuple[str, ...] = ()) -> Iterator[tuple[str, int, int]]:
    """(path relative to root, size, time of change in ns) of every image below a folder, links followed."""
    real = os.path.realpath(root / folder)
    if real in above:  # a link back up
        return
    with os.scandir(root / folder) as entries:
        for entry in entries:
            name = os.path.join(folder, entry.name)
            if entry.name.startswith("."):
                continue
            if os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                yield name, *_stamp(entry)  # a folder of such a name too: it will be unreadable, and named
            elif entry.is_dir():
                yield from _image_files(root, name, (*above, real))


def _stamp(entry: os.DirEntry[str]) -> tuple[int, int]:
    try:
        stat = entry.stat()
    except OSError:  # a link to nothing
        stat = entry.stat(follow_symlinks=False)
    return stat.st_size, stat.st_mtime_ns
