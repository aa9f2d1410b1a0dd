"""Data sets that Hugging Face's ``datasets`` has saved on disk with ``save_to_disk``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conditioned_attention.experiments.data.images.columns import (
    check_columns,
    find_columns,
    label_values,
    numbered,
)
from conditioned_attention.experiments.data.images.source import ImageSource
from conditioned_attention.experiments.data.saved import load_saved
from conditioned_attention.experiments.data.scan import stamp_of
from conditioned_attention.experiments.data.split import choose_sets


@dataclass(frozen=True)
class RowReader:
    """Returns the bytes of the image in a row of a data set whose image column holds encoded files."""

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

    Splits are recognized by their names in upper or lower case: see `choose_sets`.  Without an evaluation set, a fixed
    fifth of the rows, of each class alike, is held out for it.

    Args:
        root: the folder that ``save_to_disk`` has written.
        image_column: default the only one with images.
        label_column: default the only one with class labels, or else with integers or strings.
        eval_split: the split to evaluate on; needed if there are several.

    Raises:
        ValueError: a column or split is missing or ambiguous, rows without a label, or classes for evaluation that are
            not in the training set.
    """
    splits = load_saved(root)
    import datasets

    sets = choose_sets(splits, eval_split, str(root))
    if sets.train is None:
        raise ValueError(f"{root} has no training set, only the splits {', '.join(splits)}")
    chosen = [sets.train, *filter(None, [sets.evaluation])]
    image_column, label_column = find_columns(splits[sets.train].features, image_column, label_column)
    parts, values, names = [], [], []
    for name in chosen:
        features = splits[name].features
        check_columns(features, (image_column, label_column), f"split {name!r}")
        part = splits[name].select_columns([image_column, label_column])
        labels = part.select_columns([label_column])[:][label_column]
        values.append(label_values(labels, features[label_column], label_column, f"split {name!r}"))
        names += [f"{name}[{i}]" for i in range(len(part))]
        parts.append(part.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False)))
    found = numbered(values, sets, root)
    notes = found.notes + [f"left out, other splits: {', '.join(sets.left_out)}"] * bool(sets.left_out)
    rows = datasets.concatenate_datasets(parts)
    reader, stamp = RowReader(rows, image_column), _stamp(root, chosen, _named_files(rows, image_column))
    return ImageSource(found.classes, names, found.labels, found.train, found.evaluation, reader, stamp, notes)


def _stamp(root: Path, splits: Sequence[str], named: Sequence[Path]) -> str:
    """A digest of the sizes and modification times of the data set's files, and of the files that it names."""
    files = sorted(path for path in [*root.rglob("*"), *named] if path.is_file())
    stats = [(os.path.relpath(path, root), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return stamp_of([list(splits), *stats])


def _named_files(rows: Any, column: str) -> list[Path]:
    """The images that a data set does not contain, but names by path."""
    found = []
    for chunk in rows.data.column(column).chunks:
        found += chunk.field("path").filter(chunk.field("bytes").is_null()).to_pylist()
    return [Path(path) for path in found if path is not None]
