"""Gives the commands that repeat a table of a paper, and shows its numbers beside those that were measured."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from conditioned_attention.experiments.evidence.beside import COLUMNS, HEADER, Cells, beside, cells_of, elsewhere
from conditioned_attention.experiments.evidence.glue import TASKS, glue_means
from conditioned_attention.experiments.evidence.published import ITEMS, MEANS, SEEDS, Item, Row
from conditioned_attention.experiments.evidence.tables import aligned
from conditioned_attention.experiments.recipes.registry import RECIPES, recipe_class
from conditioned_attention.experiments.report.write import read_subjects


def why_not(item: Item, row: Row) -> str:
    """Returns why nothing here repeats a row; empty if something does."""
    if row.recipe is None:
        return "no run of its own"
    return "" if item.by == "bench step" or row.recipe in RECIPES else "there is no recipe for it yet"


def commands_of(
    item: Item,
    folder: Path = Path("runs/reproduce"),
    *,
    data_dir: Path | None = None,
    recipes: Sequence[str] = (),
    seeds: int = SEEDS,
) -> dict[str, list[str]]:
    """Returns the commands that repeat an item: the words after ``conditioned-attention``, by `Row.key`.

    Args:
        item: one of `ITEMS`.
        folder: each recipe has its own folder inside this one, which all items share.
        data_dir: passed to the recipes that have one.
        recipes: only these, by `Row.key`; default all.
        seeds: number of seeds of a comparison.

    Raises:
        ValueError: there is nothing to run, a recipe is not the item's, or none of them takes a ``data_dir``.
    """
    words: dict[str, list[str]] = {}
    for row in item.rows:
        words |= {} if why_not(item, row) else _recipe_words(row)
    names = list(words)
    if not names:
        raise ValueError(f"{item.name}: nothing here repeats it, as 'conditioned-attention reproduce' says of each row")
    if unknown := [name for name in recipes if name not in names]:
        raise ValueError(f"recipes: {unknown[0]!r} does not repeat {item.name}; valid are {', '.join(names)}")
    names = [name for name in names if not recipes or name in recipes]
    variants = ["--variants", "baseline", item.variant]
    if item.by == "bench step":
        if data_dir is not None:
            raise ValueError(f"data_dir={str(data_dir)!r}: {item.name} is measured on random numbers")
        return {name: ["bench", "step", "--models", name, *variants, "--output", str(folder)] for name in names}
    takes = [name for name in names if _has_data_dir(words[name][0])]
    if data_dir is not None and not takes:
        raise ValueError(f"data_dir={str(data_dir)!r}: none of {', '.join(names)} has one")
    found = {}
    for name in names:
        place = ["--data-dir", str(data_dir)] if data_dir is not None and name in takes else []
        where = ["--seeds", str(seeds), "--folder", str(folder / name)]
        found[name] = ["compare", *words[name], *place, *variants, *where]
    return found


def _recipe_words(row: Row) -> dict[str, list[str]]:
    """Returns the recipe and its options, by the name of the runs; a mean needs all of its tasks."""
    if row.recipe is None or row.task is None:
        return {row.key: [row.key]}
    tasks = TASKS if row.is_mean else (row.task,)
    return {f"{row.recipe}_{task}": [row.recipe, "--glue-task", task] for task in tasks}


def repeated_by(item: Item, row: Row) -> str:
    """Says in a few words what repeats a row, or why nothing does."""
    if why := why_not(item, row):
        return why
    if row.is_mean:
        return f"the mean over {item.by} {row.recipe}, all tasks"
    return f"{item.by} {' '.join(_recipe_words(row)[row.key])}"


def _has_data_dir(recipe: str) -> bool:
    return any(field.name == "data_dir" for field in dataclasses.fields(recipe_class(recipe)))


def listing() -> list[str]:
    """Lists every item and row with the paper's numbers, and what repeats it or why nothing does, one per line."""
    lines = []
    for item in ITEMS.values():
        lines += ["", f"{item.name}: {item.place} of arXiv {item.paper}, {item.shows}"]
        lines += [f"  {row.what}: {_arrow(row)} ({repeated_by(item, row)})" for row in item.rows]
    return lines[1:]


def _arrow(row: Row) -> str:
    return f"{row.plain} → {row.conditioned}" if row.plain else "no number"


def measured(item: Item, folder: Path) -> Mapping[str, Cells]:
    """Reads what the item's commands have measured so far, by `Row.key`, without those that have no finished run."""
    if item.by == "bench step":
        return _steps(folder / "step.csv")
    names = {name for row in item.rows if row.recipe for name in _recipe_words(row)}
    names = {name for name in names if any((folder / name).glob("runs/*/*/result.json"))}
    read = {name: read_subjects([folder / name])[0].comparison for name in sorted(names)}
    means = zip(MEANS, glue_means(read.values()))
    return {name: cells_of(one) for name, one in [*read.items(), *((f"glue_{task}", one) for task, one in means)]}


def _steps(file: Path) -> Mapping[str, Cells]:
    if not file.is_file():
        return {}
    found: dict[str, dict[str, dict[str, str]]] = {}
    with file.open(newline="") as lines:
        for row in csv.DictReader(lines):
            ratios = {"hours": row["ratio"], "memory": row["peak_ratio"]}
            cells = {COLUMNS[measure]: f"{float(ratio):.3f}" for measure, ratio in ratios.items()}
            found.setdefault(row["model"], {})[row["variant"]] = cells
    return found


def report(item: Item, folder: Path, recipes: Sequence[str] = (), options: str = "") -> str:
    """Returns the paper's numbers beside the measured ones, as text.

    Args:
        item: one of `ITEMS`.
        folder: folder of the runs.
        recipes: only rows of these; default all.
        options: further options that the runs had.
    """
    item = dataclasses.replace(item, rows=tuple(row for row in item.rows if not recipes or row.key in recipes))
    units = sorted({COLUMNS[row.measure] for row in item.rows} - {"final"})
    lines = [f"{item.place} of arXiv {item.paper}: {item.shows}"]
    lines += [f"Measured: '{unit}', as the report of each recipe explains it." for unit in units]
    lines += [f"Further options: {options}; if they change the recipe, this is another experiment."] * bool(options)
    tables = [(HEADER, beside(item, measured(item, folder))), elsewhere(item)]
    lines += [line for header, rows in tables if rows for line in ("", aligned(header, rows))] + [""]
    return "\n".join([*lines, *(f"Open: {question}" for question in item.open_questions)])
