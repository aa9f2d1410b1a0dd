"""From a table of a paper to the commands that repeat it, and its numbers beside those that were measured."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path

from conditioned_attention.experiments.evidence.comparison import Comparison
from conditioned_attention.experiments.evidence.glue import TASKS, glue_means
from conditioned_attention.experiments.evidence.outcomes import PRECISIONS
from conditioned_attention.experiments.evidence.tables import aligned, conditioning_table, table
from conditioned_attention.experiments.planning.published import ITEMS, MEANS, SEEDS, Item, Row
from conditioned_attention.experiments.recipes.registry import RECIPES, recipe_class
from conditioned_attention.experiments.report.write import read_subjects

HEADER = ["", "plain", "conditioned", "change", "plain, measured", "conditioned, measured", "difference [95 %]"]
# where a comparison's tables have what a paper's number is
COLUMNS = {
    "score": "final",
    "epochs": "reaches baseline",
    "steps": "reaches baseline, step",
    "kappa": "log10 κ(heads)",
    "kappa_weights": "log10 κ(W)",
    "hours": "time ×",
    "memory": "memory ×",
    **PRECISIONS,
}

Cells = Mapping[str, Mapping[str, str]]  # by variant and column


def why_not(item: Item, row: Row) -> str:
    """Why nothing here repeats a row; empty where something does."""
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
    """The commands that repeat an item: the words behind ``conditioned-attention``, by `Row.key`.

    Args:
        item: of `ITEMS`.
        folder: each of them has a folder of its own in it, which all items share.
        data_dir: passed to the recipes that have one.
        recipes: these alone, by `Row.key`; default all.
        seeds: of a comparison.

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
        found[name] = [
            "compare",
            *words[name],
            *place,
            *variants,
            "--seeds",
            str(seeds),
            "--folder",
            str(folder / name),
        ]
    return found


def _recipe_words(row: Row) -> dict[str, list[str]]:
    """The recipe and what it is to do, by the name of the runs; a mean needs all of its tasks."""
    if row.recipe is None or row.task is None:
        return {row.key: [row.key]}
    tasks = TASKS if row.is_mean else (row.task,)
    return {f"{row.recipe}_{task}": [row.recipe, "--glue-task", task] for task in tasks}


def repeated_by(item: Item, row: Row) -> str:
    """What repeats a row, in a few words; why nothing does, if so."""
    if why := why_not(item, row):
        return why
    if row.is_mean:
        return f"the mean over {item.by} {row.recipe}, all tasks"
    return f"{item.by} {' '.join(_recipe_words(row)[row.key])}"


def _has_data_dir(recipe: str) -> bool:
    return any(field.name == "data_dir" for field in dataclasses.fields(recipe_class(recipe)))


def listing() -> list[str]:
    """Every item and row with the paper's numbers, and what repeats it or why nothing does, a line each."""
    lines = []
    for item in ITEMS.values():
        lines += ["", f"{item.name}: {item.place} of arXiv {item.paper}, {item.shows}"]
        lines += [f"  {row.what}: {_arrow(row)} ({repeated_by(item, row)})" for row in item.rows]
    return lines[1:]


def _arrow(row: Row) -> str:
    return f"{row.plain} → {row.conditioned}" if row.plain else "no number"


def change(row: Row) -> str:
    """What a paper's two numbers differ by: scores by a difference, all else by a ratio.

    >>> change(Row("ViT-B", None, "80.2", "81.4")), change(Row("ViT-B", None, "29:28", "30:45", "hours"))
    ('+1.2', '× 1.044')
    """
    if not (row.plain and row.conditioned):
        return ""
    plain, conditioned = _number(row.plain), _number(row.conditioned)
    return f"{conditioned - plain:+}" if row.measure in ("score", *PRECISIONS) else f"× {conditioned / plain:.3f}"


def _number(printed: str) -> Decimal:
    whole, _, minutes = printed.partition(":")
    return Decimal(whole) + Decimal(minutes) / 60 if minutes else Decimal(whole)


def cells_of(comparison: Comparison) -> Cells:
    """The cells of a comparison's tables by variant and column."""
    rows, found = comparison.summary(), dict[str, dict[str, str]]()
    for header, cells in (table(rows, comparison.cost), conditioning_table(rows)):
        for row in cells:
            found.setdefault(row[0], {}).update(zip(header, row))
    for one in rows:
        step = one.reached.step
        found[one.variant][COLUMNS["steps"]] = str(one.reached) if step is None else f"{step:,}"
    for outcome in comparison.outcomes():
        for variant, _, final, _, difference, *_ in table(outcome.summary())[1]:
            found[variant] |= {outcome.metric.name: final, _difference(outcome.metric.name): difference}
    return found


def _difference(column: str) -> str:
    return "difference [95 %]" if column == COLUMNS["score"] else f"{column}, difference [95 %]"


def measured(item: Item, folder: Path) -> Mapping[str, Cells]:
    """What the item's commands have left in the folder, by `Row.key`; nothing of those that have not finished a run."""
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


def beside(item: Item, found: Mapping[str, Cells]) -> list[list[str]]:
    """The rows under `HEADER`: the paper's numbers, and those of `measured` beside them."""
    rows = []
    for row in item.rows:
        by_variant, column = found.get(row.key, {}), COLUMNS[row.measure]
        ours = [by_variant.get(name, {}).get(column, "") for name in ("baseline", item.variant)]
        difference = by_variant.get(item.variant, {}).get(_difference(column), "")
        rows.append([row.what, row.plain, row.conditioned, change(row), *ours, difference])
    return rows


def elsewhere(item: Item) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what others have reported of the same tasks, with the paper's own, and how sure one run is.

    No rows where nothing is known.  The mean is that of the rows.

    >>> header, rows = elsewhere(ITEMS["table4"])
    >>> rows[-1]
    ['standard error of one test run', '1.08', '0.30', '0.30', '0.49', '0.31', '']
    """
    header = ["", *(row.what for row in item.rows), "mean"]
    if not item.elsewhere:
        return header, []
    found = {other.who: [other.scores[row.recipe or ""] for row in item.rows] for other in item.elsewhere}
    found |= {
        f"arXiv {item.paper}, plain": [row.plain for row in item.rows],
        f"arXiv {item.paper}, conditioned": [row.conditioned for row in item.rows],
    }
    told = [[who, *scores, f"{sum(map(Decimal, scores)) / len(scores):.2f}"] for who, scores in found.items()]
    errors = [f"{row.standard_error:.2f}" for row in item.rows]
    return header, [*told, ["standard error of one test run", *errors, ""]]


def report(item: Item, folder: Path, recipes: Sequence[str] = (), options: str = "") -> str:
    """The paper's numbers beside the measured ones, as text.

    Args:
        item: of `ITEMS`.
        folder: of the runs.
        recipes: rows of these alone; default all.
        options: that the runs had besides.
    """
    item = dataclasses.replace(item, rows=tuple(row for row in item.rows if not recipes or row.key in recipes))
    units = sorted({COLUMNS[row.measure] for row in item.rows} - {"final"})
    lines = [f"{item.place} of arXiv {item.paper}: {item.shows}"]
    lines += [f"Measured: '{unit}', as the report of each recipe explains it." for unit in units]
    lines += [f"Options besides: {options}; where they change the recipe, it is another experiment."] * bool(options)
    tables = [(HEADER, beside(item, measured(item, folder))), elsewhere(item)]
    lines += [line for header, rows in tables if rows for line in ("", aligned(header, rows))] + [""]
    return "\n".join([*lines, *(f"Open: {question}" for question in item.open_questions)])
