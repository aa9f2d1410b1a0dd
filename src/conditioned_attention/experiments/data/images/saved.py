"""Data sets that Hugging Face's ``datasets`` has saved on disk with ``save_to_disk``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from conditioned_attention.experiments.data.images.source import ImageSource, split_if_needed
from conditioned_attention.experiments.data.saved import load_saved
from conditioned_attention.experiments.data.scan import stamp_of
from conditioned_attention.experiments.data.split import choose_sets
from conditioned_attention.experiments.data.walk import same_letters


@dataclass(frozen=True)
class RowReader:
    """Gives the bytes of the image in a row of a data set whose image column holds encoded files."""

    rows: Any
    column: str

    def __call__(self, row: int) -> bytes:
        encoded = self.rows[row][self.column]
        if encoded is None or (encoded["bytes"] is None and encoded["path"] is None):
            raise ValueError("the row has no image")
        found: bytes | None = encoded["bytes"]
        return Path(encoded["path"]).read_bytes() if found is None else found


def saved_images(
    root: Path, image_column: str | None = None, label_column: str | None = None, eval_split: str | None = None
) -> ImageSource:
    """The labelled images of a saved data set.

    Splits are known by their names in any case: see `choose_sets`.  Without an evaluation set a fixed fifth of the
    rows, of each class alike, is taken for it.

    Args:
        root: the folder that ``save_to_disk`` has written.
        image_column: default the only one with images.
        label_column: default the only one of class labels, or else of integers or strings.
        eval_split: the split to evaluate on; needed if there are several.

    Raises:
        ValueError: a column or split is not there or not clear, rows without a label, or classes for evaluation that
            are not in the training set.
    """
    splits = load_saved(root)
    import datasets

    sets = choose_sets(splits, eval_split, str(root))
    if sets.train is None:
        raise ValueError(f"{root} has no training set, only the splits {', '.join(splits)}")
    chosen, first = [sets.train, *filter(None, [sets.evaluation])], splits[sets.train]
    image_column = _column(first, image_column, "image_column", _is_image)
    if not _holds_images(first.features[image_column]):
        raise ValueError(f"image_column={image_column!r} must hold images: {_describe(first)}")
    label_column = _column(first, label_column, "label_column", _is_class_label, _is_label)
    if not (_is_class_label(feature := first.features[label_column]) or _is_label(feature)):
        raise ValueError(
            f"label_column={label_column!r} must hold class labels, integers or strings: {_describe(first)}"
        )
    parts, values, names = [], [], []
    for name in chosen:
        for column in (image_column, label_column):
            if column not in splits[name].column_names:
                raise ValueError(f"split {name!r} has no column {column!r}: {_describe(splits[name])}")
        part = splits[name].select_columns([image_column, label_column])
        values.append(_label_values(part, label_column, name))
        names += [f"{name}[{i}]" for i in range(len(part))]
        parts.append(part.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False)))
    classes = sorted(set(values[0]))
    if unknown := sorted(set().union(*values[1:]) - set(classes), key=str):
        raise ValueError(
            f"{root}: classes of {sets.evaluation} that are not in {sets.train}: {', '.join(map(str, unknown[:10]))}"
        )
    label = {value: i for i, value in enumerate(classes)}
    labels = [label[value] for part in values for value in part]
    edge = len(values[0])
    train, evaluation, notes = split_if_needed(labels, range(edge), range(edge, len(labels)), sets)
    notes += [f"left out, other splits: {', '.join(sets.left_out)}"] * bool(sets.left_out)
    rows = datasets.concatenate_datasets(parts)
    reader, stamp = RowReader(rows, image_column), _stamp(root, chosen, _named_files(rows, image_column))
    return ImageSource([str(c) for c in classes], names, labels, train, evaluation, reader, stamp, notes)


def _is(kind: str, feature: Any) -> bool:
    import datasets

    return isinstance(feature, getattr(datasets, kind))


_is_image, _is_class_label = partial(_is, "Image"), partial(_is, "ClassLabel")


def _holds_images(feature: Any) -> bool:
    """Images, or encoded files that were not declared as such."""
    binary = getattr(feature, "dtype", "") in ("binary", "large_binary")
    return binary or _is_image(feature) or isinstance(feature, dict)


def _is_label(feature: Any) -> bool:
    dtype = str(getattr(feature, "dtype", ""))
    return dtype.startswith(("int", "uint")) or dtype in ("string", "large_string", "bool")


def _column(dataset: Any, wanted: str | None, argument: str, *kinds: Any) -> str:
    """The column of this name, or the only one of the first kind that occurs."""
    if wanted is not None:
        if wanted not in dataset.column_names:
            raise ValueError(f"{argument}={wanted!r} is not there: {_describe(dataset)}")
        return wanted
    for kind in kinds:
        found = [name for name, feature in dataset.features.items() if kind(feature)]
        if len(found) == 1:
            return str(found[0])
        if found:
            break
    raise ValueError(f"{argument} is not clear, name one: {_describe(dataset)}")


def _describe(dataset: Any) -> str:
    columns = (f"{name} ({getattr(f, 'dtype', '') or type(f).__name__})" for name, f in dataset.features.items())
    return f"the columns are {', '.join(columns)}"


def _label_values(part: Any, column: str, split: str) -> Sequence[Any]:
    """The classes of all rows: names where the data set has names, else the values themselves.

    Raises:
        ValueError: rows without a label: none, an empty string, or a negative number, which is how data sets write that
            a label is not known.
    """
    values = part.select_columns([column])[:][column]
    feature = part.features[column]
    bare = [value for value in values if value in (None, "") or (isinstance(value, int) and value < 0)]
    if bare:
        negative = "" if bare[0] in (None, "") else f" ({bare[0]} stands for none; classes are numbered from 0)"
        raise ValueError(
            f"{len(bare)} of {len(values)} rows of split {split!r} have no label in column {column!r}{negative}"
        )
    if _is_class_label(feature):
        return [feature.names[value] for value in values]
    return [same_letters(value) if isinstance(value, str) else value for value in values]


def _stamp(root: Path, splits: Sequence[str], named: Sequence[Path]) -> str:
    """Of the files of the data set, which may be large, and of those that it names, sizes and times of change."""
    files = sorted(path for path in [*root.rglob("*"), *named] if path.is_file())
    stats = [(os.path.relpath(path, root), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return stamp_of([list(splits), *stats])


def _named_files(rows: Any, column: str) -> list[Path]:
    """The images that a data set does not hold, but names by path."""
    found = []
    for chunk in rows.data.column(column).chunks:
        found += chunk.field("path").filter(chunk.field("bytes").is_null()).to_pylist()
    return [Path(path) for path in found if path is not None]
