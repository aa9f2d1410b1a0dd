"""Eight tasks of GLUE (Wang et al. 2019, arXiv 1804.07461), from the released TSV files or from saved data sets.

WNLI is left out, as in JonasGeiping/cramming and in both papers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from conditioned_attention.experiments.data.saved import is_saved_dataset, load_saved
from conditioned_attention.experiments.data.text.labelled import LabelledTexts, TextSets, count_broken

GlueName = Literal["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb"]


class GlueTask(NamedTuple):
    """How the files of a task are laid out.

    Attributes:
        folder: name of its folder in the release.
        texts: columns of the TSV file with the texts.
        label: its column with the labels.
        classes: the labels there, in the order of their numbers; empty for a regression.
        saved: the columns of texts in a saved data set, if they have other names there.
        header: the columns of a file that does not name them.
        names: of the classes, if the labels are numbers.
        held: endings of the evaluation sets' names, as in ``dev_matched.tsv`` or the split ``validation_matched``.
    """

    folder: str
    texts: tuple[str, ...]
    label: str
    classes: tuple[str, ...] = ("0", "1")
    saved: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    held: tuple[str, ...] = ("",)


_ENTAILS = ("entailment", "not_entailment")

GLUE: dict[str, GlueTask] = {
    "cola": GlueTask(
        "CoLA", ("sentence",), "label", header=("source", "label", "star", "sentence"),
        names=("unacceptable", "acceptable"),
    ),
    "mnli": GlueTask(
        "MNLI", ("sentence1", "sentence2"), "gold_label", ("entailment", "neutral", "contradiction"),
        ("premise", "hypothesis"), held=("_matched", "_mismatched"),
    ),
    "mrpc": GlueTask(
        "MRPC", ("#1 String", "#2 String"), "Quality", saved=("sentence1", "sentence2"),
        names=("not_equivalent", "equivalent"),
    ),
    "qnli": GlueTask("QNLI", ("question", "sentence"), "label", _ENTAILS),
    "qqp": GlueTask("QQP", ("question1", "question2"), "is_duplicate", names=("not_duplicate", "duplicate")),
    "rte": GlueTask("RTE", ("sentence1", "sentence2"), "label", _ENTAILS),
    "sst2": GlueTask("SST-2", ("sentence",), "label", names=("negative", "positive")),
    "stsb": GlueTask("STS-B", ("sentence1", "sentence2"), "score", ()),
}  # fmt: skip

_Rows = Iterator[tuple[str, dict[str, Any] | str]]  # where a row stands, and its columns or what is wrong with it


def read_glue(folder: Path, name: GlueName, max_unreadable: int = 10) -> TextSets:
    """Training and development sets of a task; MNLI has two development sets, of which the matched one counts.

    Lines without the columns that the header has, without a label or with an empty text are left out, counted and
    named: no text is ever paired with an empty one.  Quotes are ordinary characters, and only a line feed ends a line.

    Args:
        folder: holds a folder for the task, named as in the release (``SST-2``) or as here (``sst2``), with
            ``train.tsv`` and ``dev.tsv``; or with what Hugging Face's ``save_to_disk`` has written, with splits
            ``train`` and ``validation``.  RTE may also be SuperGLUE's.
        name: of the task.
        max_unreadable: in each set, more broken lines than this are an error.

    Raises:
        FileNotFoundError: there is no such folder, or a file of it is missing.
        ValueError: a file has no such columns, too many lines are broken, or a split is missing.
    """
    task, place = GLUE[name], _place(folder, name)
    held = {f"validation{ending}": f"dev{ending}.tsv" for ending in task.held}
    saved = is_saved_dataset(place)
    read = _rows_of_saved(place, task) if saved else lambda part: _rows_of_tsv(place / part[1], task)
    notes: list[str] = []
    train, *others = (
        _collect(task, read(part), f"{place.name}/{part[0 if saved else 1]}", max_unreadable, notes)
        for part in [("train", "train.tsv"), *held.items()]
    )
    classes = task.names or task.classes
    return TextSets(train, dict(zip((ending.strip("_") or "dev" for ending in task.held), others)), classes, notes)


def _place(folder: Path, name: str) -> Path:
    """The task's folder, regardless of capitals, hyphens and underscores in its name."""
    if folder.is_dir():
        for place in sorted(folder.iterdir()):
            if place.name.casefold().replace("-", "").replace("_", "") == name and place.is_dir():
                return place
    raise FileNotFoundError(
        f"there is no folder {folder / GLUE[name].folder}: {name} is read from its train.tsv and dev.tsv, or from a "
        "data set saved there"
    )


def _rows_of_tsv(file: Path, task: GlueTask) -> _Rows:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing")
    header = list(task.header)
    with file.open("rb") as lines:  # in binary: only a line feed ends a line, and texts have other separators
        for number, line in enumerate(lines, 1):
            try:
                cells = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n").split("\t")
            except UnicodeDecodeError:
                yield f"line {number}", "it is no UTF-8"
                continue
            if not header:
                header = _checked(cells, [*task.texts, task.label], str(file))
            elif len(cells) != len(header):
                yield f"line {number}", f"it has {len(cells)} columns, not {len(header)}"
            else:
                yield f"line {number}", dict(zip(header, cells))


def _checked(header: list[str], needed: Sequence[str], where: str) -> list[str]:
    if missing := [name for name in needed if name not in header]:
        raise ValueError(f"{where} has no column {missing[0]!r}, only {', '.join(header)[:200]}")
    return header


def _rows_of_saved(place: Path, task: GlueTask) -> Callable[[tuple[str, str]], _Rows]:
    splits = load_saved(place)
    columns = {"label": task.label} | dict(zip(task.saved or task.texts, task.texts))
    if {"premise", "hypothesis"} <= set(next(iter(splits.values())).column_names):  # also SuperGLUE's RTE
        columns = {"label": task.label, "premise": task.texts[0], "hypothesis": task.texts[1]}

    def rows(part: tuple[str, str]) -> _Rows:
        if part[0] not in splits:
            raise ValueError(f"{place} has no split {part[0]!r}, only {', '.join(splits)}")
        found = splits[part[0]]
        _checked(found.column_names, list(columns), f"split {part[0]!r} of {place}")
        names = getattr(found.features["label"], "names", None)
        for number, row in enumerate(found.select_columns(list(columns))):
            cells = {name: row[column] for column, name in columns.items()}
            cells[task.label] = _word(cells[task.label], names, task)
            yield f"row {number}", cells

    return rows


def _word(label: Any, names: Sequence[str] | None, task: GlueTask) -> str:
    """A label of a saved data set as the TSV files write it; classes go by their names, if these are known."""
    classes = task.classes
    if not classes or not isinstance(label, int) or not 0 <= label < len(classes):
        return str(label)
    called = task.names or classes
    number = called.index(names[label]) if names and sorted(names) == sorted(called) else label
    return classes[number]


def _collect(task: GlueTask, rows: _Rows, name: str, bound: int, notes: list[str]) -> LabelledTexts:
    found, broken = LabelledTexts(), dict[str, str]()
    for place, cells in rows:
        label = cells if isinstance(cells, str) else _label(cells[task.label], task)
        texts = [] if isinstance(cells, str) else [str(cells[column] or "").strip() for column in task.texts]
        if isinstance(label, str):
            broken[place] = label
        elif not all(texts):
            broken[place] = "it has an empty text"
        else:
            found.add(texts, label)
    count_broken(name, broken, len(found), bound, notes)
    return found


def _label(word: str, task: GlueTask) -> float | str:
    """The number of a class, or the number to predict in a regression; or what is wrong with the label."""
    if task.classes:
        return task.classes.index(word) if word in task.classes else f"its label is {word[:20]!r}"
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    return number if 0 <= number <= 5 else f"its score is {word[:20]!r}, no number from 0 to 5"
