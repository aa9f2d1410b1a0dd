"""What is known of the tables and figures of both papers, into docs/reproduce.md; ``make docs`` runs it."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

from conditioned_attention.experiments.evidence.beside import COLUMNS, beside, cells_of, change, elsewhere
from conditioned_attention.experiments.evidence.published import ITEMS
from conditioned_attention.experiments.planning.dry_run import task_to_plan
from conditioned_attention.experiments.planning.estimate import estimate
from conditioned_attention.experiments.planning.reproduce import commands_of, measured, why_not
from conditioned_attention.experiments.recipes.registry import RECIPES, recipe_class
from conditioned_attention.experiments.report.write import read_report

ROOT = Path(__file__).parents[3]
PAGE, RESULTS = ROOT / "docs" / "reproduce.md", ROOT / "results"
HOURS = re.compile(r"^<!-- GPU hours: (.*) -->$", re.MULTILINE)
TITLES = {"2603.27153": "Preconditioned attention", "2603.07162": "Spectral conditioning of attention"}
METHODS = {
    "2603.27153": ("preconditioned", "preconditioned_weights"),
    "2603.07162": ("spectral_published", "spectral=10"),
}
PLACES = {
    "imagenet": " --data-dir imagenet/",
    "detection": " --data-dir coco/",
    "glue": " --data-dir glue/ --options=\"--start-from 'runs/crammed_bert/runs/{variant}/seed-{seed}'\"",
}
HEADER = ["", "plain", "conditioned", "change", "command", "GPU hours, one run", "run here"]
RUN_HEADER = ["comparison", "recipe", "length", "start", "variant"]
RUN_COLUMNS = ["seeds", "final", "difference [95 %]", "reaches baseline", "log10 κ(heads)", "log10 κ(W)"]
RUN_HERE = """\
Small models, by what `compare` reports of the papers' quantities: mean ± standard deviation over seeds, differences to
the plain model by pairs of seeds with their 95 % interval. A start of 0.02 is [on the wrong
scale](evidence.md#read-this-first-the-start-was-on-the-wrong-scale) for these widths, `width` is not; `trained` goes
on from what was trained before. More is in [evidence.md](evidence.md)."""


def hours_of(recipe):
    """GPU hours of one run by the dry run; a word where it needs data that are not here."""
    made = recipe_class(recipe)()
    try:
        task = task_to_plan(made)
    except (OSError, ValueError):
        return "needs the data"
    (row,) = estimate(task, made.training, ["preconditioned"], gpu="A100-80", measure=False)
    return f"{row.gpu_hours:,.0f}" if row.gpu_hours >= 10 else f"{row.gpu_hours:.1g}"


def recipes_to_plan():
    """Every recipe that `compare` repeats a row with, in the papers' order."""
    rows = [(item, row) for item in ITEMS.values() for row in item.rows if item.by == "compare"]
    return list(dict.fromkeys(row.recipe for item, row in rows if not why_not(item, row)))


def markdown(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def comparisons():
    """What has been run here: the folder in results/, and the comparison."""
    return [(file.parent, read_report(file.parent)) for file in sorted(RESULTS.rglob("results.json"))]


def item_text(item, hours, run):
    possible = any(not why_not(item, row) for row in item.rows)
    lines = [f"\n### {item.place}: {item.shows}\n"]
    if possible:
        called = "\n".join(f"conditioned-attention reproduce {item.name}{more}" for more in choices(item))
        lines.append(f"\n```sh\n{called}\n```\n")
    if item.rows:
        commands = commands_of(item) if possible else {}
        rows = [row_of(item, row, commands.get(row.key, []), hours, run) for row in item.rows]
        tables = [(HEADER, rows), elsewhere(item)]
        lines += [text for header, rows in tables if rows for text in ("\n", markdown(header, rows))]
    lines += ["\n", *(f"- Open: {question}\n" for question in item.open_questions)] if item.open_questions else []
    return "".join(lines)


def choices(item):
    """What stands behind the item's name: where the data lie, and which recipes, where each has data of its own."""
    names = list(dict.fromkeys(row.recipe for row in item.rows if row.recipe in RECIPES)) * (item.by == "compare")
    for file, place in PLACES.items():
        if any(RECIPES[name][0] == file for name in names):
            return [place]
    places = {name: getattr(recipe_class(name)(), "data_dir", None) for name in names}
    made = [name for name in names if places[name] is None]
    if len(made) == len(names):
        return [""]
    of_own = [f" --recipes {name} --data-dir {place}/" for name, place in places.items() if place is not None]
    return [f" --recipes {' '.join(made)}"] * bool(made) + of_own


def row_of(item, row, words, hours, run):
    command = f"`{shlex.join(words[:-2])}`" if words else "all eight tasks"  # without the folder
    taken = hours.get(row.recipe, "") if item.by == "compare" else "minutes"
    return [
        row.what, row.plain or "no number", row.conditioned or "no number", change(row),
        why_not(item, row) or command, "" if why_not(item, row) else taken, run_here(item, row, run) or "no",
    ]  # fmt: skip


def run_here(item, row, run):
    """What has been measured of a row's very recipe, at whatever scale."""
    if item.by == "bench step":
        steps = {**measured(item, RESULTS / "bench"), **measured(item, RESULTS / "bench" / "table_2")}
        cells = steps.get(row.recipe, {}).get(item.variant)
        return cells and f"× {cells[COLUMNS[row.measure]]}, [on a CPU](cost.md)"
    told = []
    for folder, found in run:
        if _is_of(row, found.settings) and {"baseline", item.variant} <= found.runs.keys():
            cells = beside(dataclasses.replace(item, rows=(row,)), {row.key: cells_of(found)})[0][4:]
            words = f" (reduced, {length_of(found)})" if steps_of(found) != recipe_steps(row.recipe) else ""
            told.append(f"[{folder.name}](#what-has-been-run-here){words}: {cells[0]} → {cells[1]} {cells[2]}")
    return "; ".join(told)


def length_of(found):
    """How long a run of a comparison is, in words."""
    tokens, steps = found.settings["training"].get("tokens"), steps_of(found)
    if tokens or steps:
        return f"{tokens:,} tokens" if tokens else f"{steps:,} steps"
    return f"{found.settings['training']['epochs']:g} epochs"


def steps_of(found):
    return found.settings["training"].get("max_steps")


def recipe_steps(name):
    return recipe_class(name)().training.max_steps


def _is_of(row, settings):
    return (settings["recipe"], settings.get("glue_task")) == (row.recipe, row.task)


def run_text(run):
    """A table a paper of all comparisons in results/ that have its method, with their scale."""
    text = f"\n## What has been run here\n\n{RUN_HERE}\n"
    for paper, title in TITLES.items():
        rows = [row for folder, found in run for row in run_rows(folder, found, METHODS[paper])]
        text += f"\n### {title}, small\n\n" + markdown(RUN_HEADER + RUN_COLUMNS, rows)
    return text


def run_rows(folder, found, methods):
    """A row for the plain model and for each of the methods that the comparison has."""
    cells, settings, name = cells_of(found), found.settings, folder.relative_to(RESULTS)
    if next(iter(found.runs)) != "baseline" or not cells.keys() & set(methods):
        return []
    model = settings.get("model", {"init": "trained"})  # what is fine-tuned is no setting
    start = "width" if model.get("small") else model.get("init", 0.02)  # a small XCiT of a detector always does
    where = [f"[{name}](../results/{name}/results.json)", f"`{settings['recipe']}`", length_of(found), str(start)]
    chosen = [variant for variant in ("baseline", *methods) if variant in cells]
    return [
        [*where, f"`{variant}`", *(cells[variant].get(column, "").replace("-", "−") for column in RUN_COLUMNS)]
        for variant in chosen
    ]


def page(hours):
    text, run = PAGE.read_text().partition("<!-- GPU hours: ")[0], comparisons()
    text += f"<!-- GPU hours: {json.dumps(hours)} -->\n"
    for paper, title in TITLES.items():
        text += f"\n## {title}, arXiv {paper}\n"
        text += "".join(item_text(item, hours, run) for item in ITEMS.values() if item.paper == paper)
    return text + run_text(run)


def hours_on_the_page():
    return json.loads(HOURS.search(PAGE.read_text())[1])


if __name__ == "__main__":
    PAGE.write_text(page({recipe: hours_of(recipe) for recipe in recipes_to_plan()}))
