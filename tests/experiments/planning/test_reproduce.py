"""From a paper's table to commands, and its numbers beside the measured ones."""

import csv
import dataclasses
import os
import subprocess
from pathlib import Path
from typing import get_args

import pytest
import tyro

from conditioned_attention._command_line import REGISTRY
from conditioned_attention.bench.commands import Bench
from conditioned_attention.bench.models import MODELS
from conditioned_attention.cli import CONFIG, Compare, commands
from conditioned_attention.experiments.evidence.beside import beside, cells_of
from conditioned_attention.experiments.evidence.comparison import Comparison
from conditioned_attention.experiments.evidence.glue import TASKS, glue_means
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.evidence.published import ITEMS, Name, Row
from conditioned_attention.experiments.planning import reproduce
from conditioned_attention.experiments.planning.reproduce import commands_of, measured, why_not
from conditioned_attention.experiments.recipes.registry import RECIPES, name_of
from conditioned_attention.experiments.report.subjects import Subject
from conditioned_attention.experiments.report.terminal import print_means
from conditioned_attention.experiments.variants.catalogue import find_variant
from tests.experiments.planning.reproduce_page import PAGE, ROOT, hours_on_the_page, page, recipes_to_plan
from tests.test_cli import QUICK, call

PLANNED: set[str] = set()

TINY = " ".join([*QUICK, "--no-cost", "--workers", "1"])


def parsed(words):
    return tyro.cli(commands(words), args=words, config=CONFIG, registry=REGISTRY)


def test_every_recipe_and_variant_exists_or_the_row_says_that_it_does_not():
    assert set(ITEMS) == set(get_args(Name))
    for item in ITEMS.values():
        assert find_variant(item.variant).name == item.variant
        for row in item.rows:
            known = row.recipe is None or row.recipe in (RECIPES if item.by == "compare" else MODELS)
            assert known or row.recipe in PLANNED, row.recipe
            assert bool(why_not(item, row)) == (row.recipe is None or not known)


@pytest.mark.slow
def test_every_command_parses_to_what_the_row_names():
    asked = {}
    for item in ITEMS.values():
        if any(not why_not(item, row) for row in item.rows):
            found = commands_of(item, Path("there"), seeds=2)
            asked |= {tuple(words): (item, key) for key, words in found.items()}
    assert {words[1] for words, (item, _) in asked.items() if item.by == "compare"} == set(recipes_to_plan())
    for words, (item, recipe) in asked.items():
        command = parsed(list(words))
        if isinstance(command, Compare):
            chosen, task = command.asked.recipe, getattr(command.asked.recipe, "glue_task", None)
            assert (f"{name_of(chosen)}_{task}" if task else name_of(chosen), command.seeds) == (recipe, 2)
            assert (command.variants, command.folder) == (("baseline", item.variant), Path("there") / recipe)
        else:
            assert isinstance(command, Bench)
            assert (command.what.models, command.what.settings.variants) == ((recipe,), ("baseline", item.variant))


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("script", "name", "recipe"),
    [
        ("long_range_arena", "listops", "listops"),
        ("long_range_arena", "pathfinder", "pathfinder32"),
        ("long_range_arena", "mail", "lra_text"),
        ("long_range_arena", "fashion", "lra_fashion"),
        ("language", "llama", "llama"),
        ("image_classification", "vit-deit-emoji", "emoji"),
        ("matched", "digits", "digits"),
    ],
)
def test_scripts_of_results_ask_for_what_there_is(tmp_path, script, name, recipe):
    """With a command in place of ours that only tells how it was called."""
    called = tmp_path / "conditioned-attention"
    called.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    called.chmod(0o755)
    (tmp_path / "runs" / "long_range_arena" / "mail-bodies").mkdir(parents=True)  # else it would be made
    told = subprocess.run(
        [ROOT / "results" / script / "run.sh", name, "--workers", "1"],
        cwd=tmp_path, env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    command = parsed(told.stdout.splitlines())
    assert name_of(command.asked.recipe) == recipe
    assert (command.variants[0], command.folder) == ("baseline", Path("runs") / script / name)
    assert all(find_variant(variant) for variant in command.variants)
    assert command.workers == 1


def test_data_dir_goes_to_the_recipes_that_have_one():
    (words,) = commands_of(ITEMS["table1"], data_dir=Path("images"), recipes=["swin_b"]).values()
    assert parsed(words).asked.recipe.data_dir == Path("images")
    for name, how, says in [
        ("table4", {"data_dir": Path("images"), "recipes": ["listops"]}, "none of .* has one"),
        ("table2", {"data_dir": Path("images")}, "random numbers"),
        ("table1", {"recipes": ["digits"]}, "valid are vit_b, xcit_m24, deit_b, swin_b"),
        ("figure1", {}, "nothing here repeats it"),
    ]:
        with pytest.raises(ValueError, match=says):
            commands_of(ITEMS[name], **how)


def test_the_list_has_every_row(capsys):
    assert call("reproduce") == 0
    said = capsys.readouterr().out
    assert "table1: Table 1 of arXiv 2603.27153" in said
    assert "  ViT-base: 80.2 → 81.4 (compare vit_b)" in said
    assert "  CoLA: 48.9 → 50.0 (compare glue --glue-task cola)" in said
    assert "  average: 78.6 → 79.6 (the mean over compare glue, all tasks)" in said
    assert len(said.splitlines()) == 2 * len(ITEMS) - 1 + sum(len(item.rows) for item in ITEMS.values())


@pytest.mark.slow
def test_the_papers_numbers_stand_beside_the_measured_ones(tmp_path, monkeypatch, capsys):
    rows = (
        Row("Digits", "digits", "80.2", "81.4"),
        Row("Cells", "not_yet", "1", "2"),
        Row("κ", "digits", "", "", "kappa"),
    )
    monkeypatch.setitem(ITEMS, "table1", dataclasses.replace(ITEMS["table1"], rows=rows))
    words = ["reproduce", "table1", "--folder", str(tmp_path), "--seeds", "1", f"--options={TINY}"]
    assert call(*words, "--dry-run", "--gpu", "A100") == 0
    assert "GPU hours" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert call(*words) == 0
    said = capsys.readouterr().out
    assert said.startswith("conditioned-attention compare digits --variants baseline preconditioned --seeds 1")
    text = (tmp_path / "table1.txt").read_text()
    assert "Table 1 of arXiv 2603.27153" in (tmp_path / "digits" / "report.html").read_text()
    assert said.endswith(text)
    assert f"Further options: {TINY}; " in text
    cells = measured(ITEMS["table1"], tmp_path)["digits"]
    lines = [line for line in text.splitlines() if line.startswith(("Digits", "Cells", "κ"))]
    first, second, third = ([cell.strip() for cell in line.split("  ") if cell] for line in lines)
    ours = [cells["baseline"]["final"], cells["preconditioned"]["final"], cells["preconditioned"]["difference [95 %]"]]
    assert first == ["Digits", "80.2", "81.4", "+1.2", *ours]
    assert float(ours[0].split()[0]) > 0
    assert second == ["Cells", "1", "2", "+1"]
    assert third == ["κ", *(cells[name]["log10 κ(heads)"] for name in cells)]
    assert call("reproduce", "table1", "--gpu", "A100") == 2


def test_the_means_over_glue_are_those_of_the_seeds_that_every_task_has(tmp_path, monkeypatch, capsys):
    """Task number t has a score of t + seed, and twice that for the other variant; MNLI's other set 100 more."""

    def selected(score):
        last = {"step": 2, "score": 0.0, "mismatched": 0.0, "selected_step": 1, "selected_score": score}
        return [{"step": 1, "score": score, "mismatched": 200.0}, last]

    def comparison(task, seeds):
        rows = {seed: [{"score": TASKS.index(task) + seed, "mismatched": 100.0}] for seed in seeds}
        twice = {seed: selected(2 * rows[seed][0]["score"]) for seed in seeds}
        settings = {"recipe": "glue", "glue_task": task}
        return Comparison({"baseline": rows, "preconditioned": twice}, Metric("x"), settings=settings)

    found = {task: comparison(task, [0, 1, 2] if task != "rte" else [0, 1]) for task in TASKS}
    eight, nine = glue_means(found.values())
    assert eight.runs["baseline"] == {seed: [{"score": 3.5 + seed}] for seed in (0, 1)}
    assert nine.runs["preconditioned"][1] == [{"score": (2 * (28 + 8) + 200) / 9}]
    assert "eight" in eight.metric.name
    assert "nine" in nine.metric.name
    assert glue_means([*found.values(), found["rte"]]) == []
    assert glue_means([one for task, one in found.items() if task != "cola"]) == []

    for task in TASKS:
        (tmp_path / f"glue_{task}" / "runs" / "a" / "b").mkdir(parents=True)
        (tmp_path / f"glue_{task}" / "runs" / "a" / "b" / "result.json").touch()
    subjects = {f"glue_{task}": Subject(task, one) for task, one in found.items()}
    monkeypatch.setattr(reproduce, "read_subjects", lambda folders: [subjects[folder.name] for folder in folders])
    rows = {row[0]: row for row in beside(ITEMS["table5"], measured(ITEMS["table5"], tmp_path))}
    assert rows["average"][:6] == ["average", "78.6", "79.6", "+1.0", "4.000 ± 0.707", "8.000 ± 1.414"]
    assert rows["average of nine, MNLI twice"][4].startswith("14.67 ")
    print_means([*subjects.values()])
    said = capsys.readouterr().out
    assert "score: GLUE, mean of eight tasks, MNLI matched" in said
    assert "score: GLUE, mean of nine numbers, MNLI matched and mismatched" in said


def test_ratios_of_a_training_step_stand_beside_the_papers():
    rows = {row[0]: row for row in beside(ITEMS["table2"], measured(ITEMS["table2"], ROOT / "results" / "bench"))}
    with (ROOT / "results" / "bench" / "step.csv").open() as file:
        (stored,) = [
            row for row in csv.DictReader(file) if (row["model"], row["variant"]) == ("vit_b", "preconditioned")
        ]
    assert rows["time, ViT-Base"][1:6] == ["29:28", "30:45", "× 1.044", "1.000", f"{float(stored['ratio']):.3f}"]
    assert rows["memory, ViT-Base"][5] == f"{float(stored['peak_ratio']):.3f}"


def test_the_page_is_up_to_date():
    """If this fails: ``make docs``, or for this page alone ``python -m tests.experiments.planning.reproduce_page``."""
    hours = hours_on_the_page()
    assert set(hours) == set(recipes_to_plan())
    assert PAGE.read_text() == page(hours)


def test_precision_of_masks_stands_beside_that_of_masks():
    """Not the score, which is that of boxes."""
    rows = {
        name: {seed: [{"score": 9.0 + seed, "mask_ap": ap + seed / 10, "mask_ap75": 1.0}] for seed in range(2)}
        for name, ap in (("baseline", 5.0), ("preconditioned", 6.0))
    }
    comparison = Comparison(rows, Metric("box AP (%)"), environment={})
    found = beside(ITEMS["table3"], {"detection_xcit_s12": cells_of(comparison)})
    cells = {row[0].removeprefix("XCiT-S12, "): row[3:] for row in found[:6]}
    assert cells["box AP"][:3] == ["+0.5", "9.500 ± 0.707", "9.500 ± 0.707"]
    assert cells["mask AP"][:3] == ["+0.4", "5.050 ± 0.071", "6.050 ± 0.071"]
    assert cells["mask AP"][3].startswith("+1")
    assert cells["mask AP50"][1:] == ["", "", ""]
