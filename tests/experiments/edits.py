"""A folder with every file that a comparison and its runs store, and what somebody may do to one by hand."""

import json

from conditioned_attention.experiments.commands import compare_recipe
from conditioned_attention.experiments.report.charts import palette_of
from conditioned_attention.experiments.report.figures import charts_of, heads_of
from conditioned_attention.experiments.report.page import Section, page
from conditioned_attention.experiments.report.subjects import read_single_run
from conditioned_attention.experiments.report.words import description
from conditioned_attention.experiments.report.write import read_report, read_subjects, to_json, write_report
from conditioned_attention.experiments.training.settings import Training
from tests.experiments.tiny import OFTEN, Tiny

VALUES = [None, True, -1, 0, 2.5, 1e300, 10**400, "x", "", "\ud800", [], [None], {}, {"a": [1]}]
WORDS = ["NaN", "-Infinity", "1e999", "[" * 5000]  # that json.dumps does not write, or not alone


def make(folder):
    """Two variants, two seeds; one run of each kind has finished and one is under way; rates were tuned."""
    recipe = Tiny(Training(epochs=1, batch_size=30, evaluate_every=0.5))
    result = compare_recipe(
        recipe, ["baseline", "preconditioned"], 2, folder, progress=False, tune=(1e-3, 1e-2), cost=False, launch=OFTEN
    )
    write_report(result, folder)
    (folder / "runs/preconditioned/seed-1/result.json").unlink()
    return folder


def stored(folder):
    """Every stored file that a report reads."""
    run, other = folder / "runs/preconditioned/seed-0", folder / "runs/preconditioned/seed-1"
    logs = ("train.jsonl", "conditions.jsonl", "projections.jsonl")
    return [
        folder / "settings.json", folder / "results.json", folder / "tuning/tuning.json",
        run / "result.json", *(run / name for name in logs), other / "begun.json", other / "metrics.jsonl",
    ]  # fmt: skip


def places(data, path=()):
    """The way to every part of plain data; of a list the first and the last."""
    yield path
    if isinstance(data, dict):
        for key in data:
            yield from places(data[key], (*path, key))
    elif isinstance(data, list) and data:
        for i in sorted({0, len(data) - 1}):
            yield from places(data[i], (*path, i))


def changed(data, path, value):
    """The same data with another value there; `KeyError` as a value takes it away."""
    if not path:
        return value
    copy = dict(data) if isinstance(data, dict) else list(data)
    key, *rest = path
    if not rest and value is KeyError:
        del copy[key]
    else:
        copy[key] = changed(copy[key], rest, value)
    return copy


def text_of(file, path, value):
    """The text of a file with that change; a word of `WORDS` stands there as it is."""
    is_log = file.suffix == ".jsonl"
    lines = file.read_text().splitlines() if is_log else [file.read_text()]
    mark = "somebody was here"
    data = changed(json.loads(lines[-1]), path, mark if value in WORDS and isinstance(value, str) else value)
    if data is KeyError:
        return ""
    lines[-1] = json.dumps(data)
    if isinstance(value, str) and value in WORDS:
        lines[-1] = lines[-1].replace(f'"{mark}"', value)
    return "\n".join(lines) + "\n"


def use(folder):
    """Everything that `report` makes of a folder, but the files."""
    (subject,) = read_subjects([folder])
    json.dumps(to_json(subject.comparison))
    str(subject.comparison)
    heads = heads_of(subject.folders)
    page([Section(subject, charts_of(subject, heads, palette_of(subject.variants)), heads)]).encode()
    str(read_report(folder))
    for seed in (0, 1):
        single = read_single_run(folder / f"runs/preconditioned/seed-{seed}")
        description(single)
        charts_of(single, {}, palette_of(single.variants))
    return subject.comparison
