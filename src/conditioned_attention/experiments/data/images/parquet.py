"""Parquet files with labelled images, as the Hugging Face hub keeps them: ``data/train-00000-of-00294.parquet``, ….

They are read through ``datasets``, which copies each set once into an Arrow file in its cache: a parquet file gives
images only by the hundred, an Arrow file one by one.  The Arrow files are memory-mapped and take no memory.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conditioned_attention.environment import needs
from conditioned_attention.experiments.data.images.columns import (
    check_columns,
    find_columns,
    label_values,
    numbered,
)
from conditioned_attention.experiments.data.images.saved import RowReader
from conditioned_attention.experiments.data.images.source import ImageSource
from conditioned_attention.experiments.data.scan import reason_of, stamp_of, tell
from conditioned_attention.experiments.data.split import choose_sets, listed, names_a_set
from conditioned_attention.experiments.data.walk import File, Walk

_SUFFIX = ".parquet"
_OF_FOLDERS = "metadata.parquet"  # describes the images beside it in Hugging Face's class folders; holds none
_DEEPEST = ("*", "*/*", "*/*/*")  # where the hub puts parquet files, at the deepest CONFIGURATION/train/0000.parquet
_SHARD = re.compile(r"(.*?)[-_.]?(\d+)-of-(\d+)")


def is_parquet_folder(root: Path) -> bool:
    """Whether there are parquet files in a folder or in its subfolders, at most two levels down."""
    found = (name for depth in _DEEPEST for name in glob.iglob(depth + _SUFFIX, root_dir=root))
    return any(os.path.basename(name) != _OF_FOLDERS for name in found)


@dataclass(frozen=True)
class ParquetReader:
    """Returns the bytes of the image in a row, counted through all files; `open` makes this fast.

    Attributes:
        sets: the files of each set, in order.
        column: the column with the images.
        cache_dir: where the Arrow files are kept; None for the cache of ``datasets``.
    """

    sets: tuple[tuple[Path, ...], ...]
    column: str
    cache_dir: Path | None

    def __call__(self, row: int) -> bytes:
        return self.open()(row)

    def open(self) -> RowReader:
        """A reader of the Arrow files, which are made first if they are missing, with a warning.

        Raises:
            ValueError: they cannot be made.
        """
        import datasets

        parts = [_arrow(files, self.column, self.cache_dir) for files in self.sets]
        parts = [part.cast_column(self.column, datasets.Image(decode=False)) for part in parts]
        return RowReader(datasets.concatenate_datasets(parts), self.column)


def parquet_images(
    root: Path,
    image_column: str | None = None,
    label_column: str | None = None,
    eval_split: str | None = None,
    cache_dir: Path | None = None,
) -> ImageSource:
    """The labelled images in the parquet files of a folder and its subfolders.

    A file's name or a folder of its path says which set it belongs to, as in ``data/validation-00000-of-00014.parquet``
    and ``validation/0000.parquet``; for names of sets see `choose_sets`.  Without an evaluation set, a fixed fifth of
    the rows, of each class alike, is held out for it.  Labels are read here, images when the source is opened.

    Args:
        root: the folder, such as a snapshot of a repository on the hub.
        image_column: default the only one with images.
        label_column: default the only one with class labels, or else with integers or strings.
        eval_split: the set to evaluate on; needed if there are several.
        cache_dir: where Arrow files are kept; None for the cache of ``datasets``.

    Raises:
        ModuleNotFoundError: ``datasets`` is not installed; the message says how to get it.
        ValueError: no parquet files, a file that cannot be read, a column or set that is missing or ambiguous, rows
            without a label, or classes for evaluation that are not in the training set.
    """
    with needs("datasets", f"what is in the parquet files of {root}"):
        import datasets  # noqa: F401 - if it is missing, that is said before anything is read
    walk = Walk(root, (_SUFFIX,))
    files = _by_set([file for file in walk.files() if os.path.basename(file.name) != _OF_FOLDERS])
    sets = choose_sets(files, eval_split, str(root))
    if sets.train is None and len(files) != 1:
        raise ValueError(f"{root} has no training set, only the parquet files of {listed(list(files))}")
    chosen = [name for name in (sets.train, sets.evaluation) if name is not None] or list(files)
    _check_one_folder(root, {name: files[name] for name in chosen})
    with _opened(root / files[chosen[0]][0].name) as (_, features):
        columns = find_columns(features, image_column, label_column)
    values = [[_labels(root / file.name, *columns) for file in files[name]] for name in chosen]
    found = numbered([list(itertools.chain.from_iterable(of_set)) for of_set in values], sets, root)
    above = os.path.commonpath([os.path.dirname(file.name) for name in chosen for file in files[name]])
    names = [
        f"{os.path.relpath(file.name, above or None)}[{row}]"  # the same for every ``root`` in the repository
        for name, of_set in zip(chosen, values, strict=True)
        for file, of_file in zip(files[name], of_set, strict=True)
        for row in range(len(of_file))
    ]
    notes = found.notes + [f"left out, other sets: {listed(sets.left_out)}"] * bool(sets.left_out)
    notes += [line for name in chosen for line in _missing(files[name])] + walk.left_out()
    paths = tuple(tuple(root / file.name for file in files[name]) for name in chosen)
    reader, stamp = ParquetReader(paths, columns[0], cache_dir), stamp_of([files[name] for name in chosen])
    return ImageSource(found.classes, names, found.labels, found.train, found.evaluation, reader, stamp, notes)


def _by_set(files: Sequence[File]) -> dict[str, list[File]]:
    """The files by the set that their paths name, in the order of their paths."""
    found = defaultdict[str, list[File]](list)
    for file in files:
        found[_set_of(file.name)].append(file)
    return dict(found)


def _set_of(path: str) -> str:
    """The set that a folder of the path or a word of the file's name names; otherwise the name without numbers.

    >>> [_set_of(f"{path}.parquet") for path in ("data/validation-00000-of-00014", "plain/train/0000", "extra-1")]
    ['validation', 'train', 'extra']
    """
    *folders, name = Path(path).with_suffix("").parts
    found = [word for word in [*folders, *re.split("[-_. ]", name)] if names_a_set(word)]
    if len({word.casefold() for word in found}) > 1:
        raise ValueError(f"{path} contains the names of several sets, {' and '.join(found)}; it can belong to one")
    return found[0] if found else re.sub(r"[-_. ]?\d+(-of-\d+)?$", "", name) or (folders[-1] if folders else name)


def _check_one_folder(root: Path, files: Mapping[str, Sequence[File]]) -> None:
    """Raises ValueError if files of one set lie in several folders, which the hub uses for several data sets."""
    for name, some in files.items():
        if len(folders := sorted({os.path.dirname(file.name) or "." for file in some})) > 1:
            raise ValueError(
                f"{root} has parquet files of {name} in {listed(folders)}: these may be several data sets; name one "
                "folder, or put the files into one"
            )


def _missing(files: Sequence[File]) -> list[str]:
    """Lines on missing files, judged by the numbers in the names of the others; also as warnings."""
    numbers = defaultdict[tuple[str, str], set[int]](set)
    for file in files:
        if shard := _SHARD.match(os.path.basename(file.name)):
            numbers[shard[1], shard[3]].add(int(shard[2]))
    lines = []
    for (name, count), there in numbers.items():
        if missing := [f"{i:05}" for i in range(int(count)) if i not in there]:
            lines.append(f"{len(missing)} of the {int(count)} files of {name} are not there: {listed(missing)}")
            tell(lines[-1])
    return lines


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """A parquet file, with its columns as ``datasets`` describes them; ValueError with its name if it is unreadable."""
    import datasets
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield file, datasets.Features.from_arrow_schema(file.schema_arrow)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read: it is damaged, or not a parquet file ({reason_of(error)})") from error


def _labels(path: Path, image_column: str, label_column: str) -> Sequence[Any]:
    """The classes of the rows of a file."""
    with _opened(path) as (file, features):
        check_columns(features, (image_column, label_column), str(path))
        values = file.read(columns=[label_column]).column(0).to_pylist()
    return label_values(values, features[label_column], label_column, str(path))


def _arrow(files: Sequence[Path], column: str, cache_dir: Path | None) -> Any:
    """The images of these files, which are of one set, as a table on disk."""
    import datasets

    names = [glob.escape(os.path.abspath(file)) for file in files]
    cache = None if cache_dir is None else str(cache_dir)
    try:
        builder = datasets.load_dataset_builder(
            "parquet", data_files={"train": names}, columns=[column], cache_dir=cache
        )
        if not os.path.exists(builder.cache_dir):
            size = sum(file.stat().st_size for file in files) / 1e9
            tell(f"images of parquet files ({len(files)}, {size:,.1f} GB) are copied, once, to {builder.cache_dir}")
        builder.download_and_prepare()
        return builder.as_dataset("train")
    except Exception as error:  # damaged files and full disks fail in as many ways as there are layers
        cause = error.__cause__ or error
        raise ValueError(
            f"the parquet files in {files[0].parent} could not be copied to the cache of datasets ({reason_of(cause)})"
        ) from error
