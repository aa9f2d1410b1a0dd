"""Labelled images in tables: which columns hold them, and the classes of the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from conditioned_attention.experiments.data.images.source import split_if_needed
from conditioned_attention.experiments.data.split import Sets
from conditioned_attention.experiments.data.walk import same_letters


class Labels(NamedTuple):
    """The numbered labels of all rows, as fields of an `ImageSource`."""

    classes: list[str]
    labels: list[int]
    train: list[int]
    evaluation: list[int]
    notes: list[str]


def find_columns(features: Mapping[str, Any], image_column: str | None, label_column: str | None) -> tuple[str, str]:
    """The names of a table's image column and label column.

    Args:
        features: the kinds of the columns by their names, as ``datasets`` has them.
        image_column: default the only one with images.
        label_column: default the only one with class labels, or else with integers or strings.

    Raises:
        ValueError: a column is missing, is of another kind, or is ambiguous.
    """
    image_column = _column(features, image_column, "image_column", _is_image, _is_encoded)
    if not _holds_images(features[image_column]):
        raise ValueError(f"image_column={image_column!r} must hold images: {_describe(features)}")
    label_column = _column(features, label_column, "label_column", _is_class_label, _is_label)
    if not (_is_class_label(feature := features[label_column]) or _is_label(feature)):
        raise ValueError(
            f"label_column={label_column!r} must hold class labels, integers or strings: {_describe(features)}"
        )
    return image_column, label_column


def check_columns(features: Mapping[str, Any], wanted: Sequence[str], where: str) -> None:
    """Raises ValueError if one of the columns is missing."""
    for column in wanted:
        if column not in features:
            raise ValueError(f"{where} has no column {column!r}: {_describe(features)}")


def label_values(values: Sequence[Any], feature: Any, column: str, where: str) -> Sequence[Any]:
    """The classes of all rows: names if the data set has names, else the values themselves.

    Raises:
        ValueError: rows without a label, which are None, an empty string, or a negative number (with which data sets
            mark unknown labels); or a number without a name where classes have names.
    """
    bare = [value for value in values if value in (None, "") or (isinstance(value, int) and value < 0)]
    if bare:
        negative = "" if bare[0] in (None, "") else f" ({bare[0]} marks a missing label; classes are numbered from 0)"
        raise ValueError(f"{len(bare)} of {len(values)} rows of {where} have no label in column {column!r}{negative}")
    if _is_class_label(feature):
        if beyond := [value for value in values if value >= len(feature.names)]:
            raise ValueError(f"{where} has label {beyond[0]} in column {column!r}, and {len(feature.names)} classes")
        return [feature.names[value] for value in values]
    return [same_letters(value) if isinstance(value, str) else value for value in values]


def numbered(values: Sequence[Sequence[Any]], sets: Sets, root: Path) -> Labels:
    """Numbers the classes, and finds the rows of both sets.

    Args:
        values: the classes of the rows of each set, the training set first.
        sets: the names of these sets.
        root: for messages.

    Raises:
        ValueError: the evaluation set has classes that are not in the training set, or nothing can be held out.
    """
    classes = sorted(set(values[0]))
    if unknown := sorted(set().union(*values[1:]) - set(classes), key=str):
        raise ValueError(
            f"{root}: classes of {sets.evaluation} that are not in {sets.train}: {', '.join(map(str, unknown[:10]))}"
        )
    label = {value: i for i, value in enumerate(classes)}
    labels = [label[value] for part in values for value in part]
    edge = len(values[0])
    train, evaluation, notes = split_if_needed(labels, range(edge), range(edge, len(labels)), sets)
    return Labels([str(c) for c in classes], labels, train, evaluation, notes)


def _is(kind: str, feature: Any) -> bool:
    import datasets

    return isinstance(feature, getattr(datasets, kind))


_is_image, _is_class_label = partial(_is, "Image"), partial(_is, "ClassLabel")


def _is_encoded(feature: Any) -> bool:
    """Whether a column looks like encoded images in a file that does not declare its columns."""
    return isinstance(feature, dict) and feature.keys() == {"bytes", "path"}


def _holds_images(feature: Any) -> bool:
    """Whether a column holds images, or encoded files that were not declared as images."""
    binary = getattr(feature, "dtype", "") in ("binary", "large_binary")
    return binary or _is_image(feature) or isinstance(feature, dict)


def _is_label(feature: Any) -> bool:
    dtype = str(getattr(feature, "dtype", ""))
    return dtype.startswith(("int", "uint")) or dtype in ("string", "large_string", "bool")


def _column(features: Mapping[str, Any], wanted: str | None, argument: str, *kinds: Any) -> str:
    """The column of this name, or the only one of the first kind that occurs."""
    if wanted is not None:
        if wanted not in features:
            raise ValueError(f"{argument}={wanted!r} is not there: {_describe(features)}")
        return wanted
    for kind in kinds:
        found = [name for name, feature in features.items() if kind(feature)]
        if len(found) == 1:
            return str(found[0])
        if found:
            break
    raise ValueError(f"{argument} is not clear, name one: {_describe(features)}")


def _describe(features: Mapping[str, Any]) -> str:
    columns = (f"{name} ({getattr(f, 'dtype', '') or type(f).__name__})" for name, f in features.items())
    return f"the columns are {', '.join(columns)}"
