"""Text to train language models on: a file, a folder of files, or a saved data set with a column ``text``."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from conditioned_attention.experiments.data.saved import is_saved_dataset, load_saved
from conditioned_attention.experiments.data.scan import check_bound, check_unreadable, reason_of, tell_unreadable

SUFFIXES = (".txt", ".text", ".md", ".rst")


def read_texts(
    path: str | Path,
    max_unreadable: int = 10,
    *,
    suffixes: Collection[str] = SUFFIXES,
    split: str | None = None,
    notes: list[str] | None = None,
) -> list[tuple[str, bytes]]:
    """Names and raw bytes of all texts, in the order of their names (rows in the order of the data set).

    What is no text is left out with a warning that names it: a file that cannot be read, is empty or has NUL bytes
    (binary, or UTF-16); a row without text.  Rows with an empty text hold nothing and are left out silently.

    Args:
        path: a file of any suffix; a folder, searched with all below it, hidden ones apart; or a saved data set.
        max_unreadable: more than so many are an error.
        suffixes: which files of a folder count; add ``".py"`` to learn a code base.
        split: of a saved data set with splits; None takes all, one after another, named ``split[row]``.
        notes: gets a line for every text that was left out.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: no text, more than ``max_unreadable`` unreadable ones, no column ``text``, or no such split.
    """
    check_bound(max_unreadable)
    path = Path(path)
    unreadable: dict[str, str] = {}
    if is_saved_dataset(path):
        found = list(_rows(path, split, unreadable))
    elif split is not None:
        raise ValueError(f"split={split!r} is for saved data sets, and {path} is none")
    else:
        found = list(_read_files(path, suffixes, unreadable))
    check_unreadable(unreadable, len(found) + len(unreadable), max_unreadable)
    lines = tell_unreadable(unreadable, len(found) + len(unreadable))
    if notes is not None:
        notes += lines
    return found


def _read_files(path: Path, suffixes: Collection[str], unreadable: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        names = sorted(_files(path, {suffix.lower() for suffix in suffixes}))
        if not names:
            raise ValueError(f"{path} holds no text: no file that ends in {', '.join(suffixes)}")
    elif path.exists():
        path, names = path.parent, [path.name]
    else:
        raise FileNotFoundError(f"there is no file or folder {path}")
    for name in names:
        try:
            data = (path / name).read_bytes()
        except OSError as error:
            unreadable[name] = reason_of(error)
            continue
        if data and b"\0" not in data:
            yield name, data
        else:
            unreadable[name] = "it has NUL bytes: binary, or UTF-16" if data else "it is empty"


def _files(root: Path, suffixes: Collection[str]) -> Iterator[str]:
    """Paths below a folder, relative to it.  Links to files are followed, links to folders are not."""
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes:
                yield os.path.relpath(os.path.join(folder, name), root)


def _rows(path: Path, split: str | None, unreadable: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    splits = load_saved(path)
    if split is not None and split not in splits:
        raise ValueError(f"split={split!r} is not in {path}; valid are {', '.join(splits)}")
    for name, dataset in splits.items() if split is None else [(split, splits[split])]:
        if "text" not in dataset.column_names:
            raise ValueError(f"split {name!r} of {path} has no column 'text', only {', '.join(dataset.column_names)}")
        for i, row in enumerate(dataset.select_columns(["text"])):
            if not isinstance(row["text"], str):
                unreadable[f"{name}[{i}]"] = "it has no text" if row["text"] is None else "it is not a string"
            elif row["text"]:
                yield f"{name}[{i}]", row["text"].encode()
