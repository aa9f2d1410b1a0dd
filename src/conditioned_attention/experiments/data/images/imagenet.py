"""ImageNet as it is usually stored: class folders to train on, and 50,000 validation images with a list of labels."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from conditioned_attention.environment import needs
from conditioned_attention.experiments.data.images.folder import FileReader, in_class_folders, left_out
from conditioned_attention.experiments.data.images.read import SUFFIXES
from conditioned_attention.experiments.data.images.source import ImageSource
from conditioned_attention.experiments.data.scan import reason_of, stamp_of
from conditioned_attention.experiments.data.walk import Walk

_META = "meta.mat"  # of the development kit: which number stands for which class


def imagenet(root: Path, val_labels: Path, eval_split: str | None = None) -> ImageSource:
    """The images in ``root/train/CLASS/…`` and in ``root/val/…``, whose classes a list gives; no file is moved.

    Args:
        root: the folder.
        val_labels: the list, with one line per image.  A line is ``NAME CLASS``, or ``NAME INDEX`` where the index
            counts the classes from 0 in the order of their names (Caffe's list; if all values are names of classes,
            they are taken as names).  Or a line is, for the images in the order of their names, ``CLASS`` or its number
            in the development kit, whose ``meta.mat`` is then in the same folder.
        eval_split: the folder with the images to evaluate on; default ``val``.

    Raises:
        FileNotFoundError: a folder or file is missing.
        ValueError: the list has none of these forms, names a class or image that does not exist, or has another length;
            or two images have the same file name, so that the list could mean either.
    """
    folder = eval_split or "val"
    for path in (root / "train", root / folder, val_labels):
        if not path.exists():
            raise FileNotFoundError(f"there is no {path}")
    walk = Walk(root, SUFFIXES)
    classes, files, labels, [train] = in_class_folders(walk, ["train"])
    held = walk.files(folder)
    if not held:
        raise ValueError(f"{root / folder} holds no images; known suffixes are {' '.join(SUFFIXES)}")
    labels += _labels(val_labels, [file.name for file in held], classes)
    files += held
    names = [file.name for file in files]
    evaluation = list(range(len(train), len(files)))
    notes = [f"trained on train, evaluated on {folder} by the list {val_labels.name}", *left_out(walk, ["train"])]
    return ImageSource(classes, names, labels, train, evaluation, FileReader(root, names), stamp_of(files), notes)


def _labels(file: Path, images: Sequence[str], classes: Sequence[str]) -> list[int]:
    """The class of each image, according to the list."""
    try:
        lines = [line.split() for line in file.read_text("utf-8").splitlines() if line.strip()]
    except (UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{file} cannot be read as a list of classes ({reason_of(error)})") from error
    if len(lines) != len(images):
        raise ValueError(f"{file} has {len(lines):,} lines, and there are {len(images):,} images to evaluate on")
    numbers = {name: label for label, name in enumerate(classes)}
    if all(len(line) == 2 for line in lines):
        if not {value for _, value in lines} <= set(classes):
            numbers |= {str(label): label for label in range(len(classes))}
        named = dict(zip(_once([name for name, _ in lines], f"{file} names"), (value for _, value in lines)))
        wanted = _once(images, f"{file} gives classes by file names, and among the images there is")
        if missing := [image for image, name in zip(images, wanted) if name not in named]:
            raise ValueError(f"{file} does not name {missing[0]} ({len(missing):,} of {len(images):,} images)")
        return [_number(named[name], numbers, file) for name in wanted]
    if any(len(line) != 1 for line in lines):
        raise ValueError(f"{file}: a line is 'NAME CLASS', 'NAME INDEX', a class or its number in the development kit")
    values = [line[0] for line in lines]
    if all(value.isdecimal() for value in values) and not set(values) <= set(classes):
        numbers = _of_the_kit(file.parent / _META, numbers)
    return [_number(value, numbers, file) for value in values]


def _once(paths: Sequence[str], what: str) -> list[str]:
    """The file names of paths; raises ValueError if one occurs more than once."""
    names = [os.path.basename(path) for path in paths]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{what} {twice[0]} more than once ({len(twice):,} such names)")
    return names


def _number(value: str, numbers: Mapping[str, int], file: Path) -> int:
    if value not in numbers:
        raise ValueError(f"{file}: {value!r} is none of the {len(set(numbers.values()))} classes of the training set")
    return numbers[value]


def _of_the_kit(file: Path, numbers: Mapping[str, int]) -> dict[str, int]:
    """Which label each number of the development kit stands for."""
    if not file.exists():
        raise FileNotFoundError(
            f"the list holds the development kit's own numbers, in another order than the names of the classes: put "
            f"its {_META}, which explains them, beside the list ({file})"
        )
    with needs("experiments"):
        from scipy.io import loadmat

    try:
        rows = loadmat(file, squeeze_me=True)["synsets"]
        known = [(str(row["ILSVRC2012_ID"]), str(row["WNID"])) for row in rows]
    except Exception as error:  # damaged files fail in as many ways as there are formats of them
        raise ValueError(f"{file} is not the development kit's, or damaged ({reason_of(error)})") from error
    return {number: numbers[name] for number, name in known if name in numbers}
