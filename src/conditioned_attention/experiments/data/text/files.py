"""Text to train language models on: a file, a folder of files, or a saved data set with a column ``text``."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from conditioned_attention.experiments.data.saved import is_saved_dataset, load_saved
from conditioned_attention.experiments.data.scan import check_bound, check_unreadable, reason_of, tell_unreadable
from conditioned_attention.experiments.data.split import (
    Sets,
    choose_sets,
    listed,
    names_a_set,
    names_an_evaluation_set,
)
from conditioned_attention.experiments.data.walk import Walk, sets_at_top

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

    Whatever is not a text is left out with a warning that names it: a file that cannot be read, is empty or has NUL
    bytes (binary, or UTF-16); a row without text.  Rows with an empty text are left out silently.

    Args:
        path: a file with any suffix; a folder, searched with its subfolders as by `Walk`; or a saved data set.
        max_unreadable: more unreadable texts than this are an error.
        suffixes: which files of a folder count; add ``".py"`` to learn a code base.
        split: of a saved data set with splits; None takes all, one after another, named ``split[row]``.
        notes: gets a line for everything that was left out.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: no text, more than ``max_unreadable`` unreadable ones, no column ``text``, or no such split.
    """
    check_bound(max_unreadable)
    path = Path(path).expanduser()
    unreadable: dict[str, str] = {}
    lines: list[str] = []
    if is_saved_dataset(path):
        found = list(_rows(path, split, unreadable))
    elif split is not None:
        raise ValueError(f"split={split!r} is for saved data sets, and {path} is none")
    else:
        found = list(_read_files(path, suffixes, unreadable, lines))
    check_unreadable(unreadable, len(found) + len(unreadable), max_unreadable, str(path))
    lines += tell_unreadable(unreadable, len(found) + len(unreadable))
    if notes is not None:
        notes += lines
    return found


def read_text_sets(
    path: str | Path, max_unreadable: int = 10, *, eval_split: str | None = None, notes: list[str]
) -> tuple[bytes, bytes | None]:
    """The text to train on, and the text to evaluate on, which is None if the data have no such set.

    Sets are the splits of a saved data set, or the folders and files at the top of a folder, with the names of sets:
    see `choose_sets`.  If no folder or file there has the name of an evaluation set, everything is one text.

    Args:
        path: as for `read_texts`.
        max_unreadable: in each set, more unreadable texts than this are an error.
        eval_split: the set to evaluate on, if there are several.
        notes: gets lines on what the sets are and what was left out.

    Raises:
        FileNotFoundError, ValueError: as `read_texts` and `choose_sets`.
    """
    path = Path(path).expanduser()

    def read(place: Path, split: str | None = None) -> bytes:
        return b"\n\n".join(data for _, data in read_texts(place, max_unreadable, split=split, notes=notes))

    if is_saved_dataset(path):
        splits = list(load_saved(path))
        sets = choose_sets(splits, eval_split, str(path))
        if sets.train is None and len(splits) > 1:
            raise ValueError(f"{path} has no training set, only the splits {listed(splits)}")
        notes += [f"left out, other splits: {listed(sets.left_out)}"] * bool(sets.left_out)
        train, evaluation = (path, sets.train), (path, sets.evaluation)
    else:
        sets, places = Sets(None, None, []), _named(path)
        if eval_split is not None or any(map(names_an_evaluation_set, places)):
            sets, others = sets_at_top(Walk(path, SUFFIXES), places, eval_split)
            notes += others
        train, evaluation = ((path / places.get(name or "", ""), None) for name in (sets.train, sets.evaluation))
    if sets.evaluation is None:
        return read(*train), None
    notes.append(f"trained on {sets.train}, evaluated on {sets.evaluation}")
    return read(*train), read(*evaluation)


def _named(path: Path) -> dict[str, str]:
    """The folders and texts at the top of a folder, by their names without a suffix; empty for a file.

    ``wiki.train.txt`` is named ``train``.

    Raises:
        ValueError: two of them have the same name of a set.
    """
    if not path.is_dir():
        return {}
    walk = Walk(path, SUFFIXES)
    found = walk.folders()
    for file in walk.beside(""):
        name, last = Path(file).stem, Path(file).stem.rpartition(".")[2]
        name = last if names_a_set(last) else name
        if name in found and names_a_set(name):
            raise ValueError(f"{path} has {found[name]} and {file}: one of them can be the set {name}")
        found[name] = file
    return found


def _read_files(
    path: Path, suffixes: Collection[str], unreadable: dict[str, str], notes: list[str]
) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        walk = Walk(path, {suffix.lower() for suffix in suffixes})
        names = [file.name for file in walk.files()]
        notes += walk.left_out()
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
