"""Where a run was made stays with it: shown again it is not signed anew, gone on with elsewhere it has both."""

import json
import shutil

import pytest

from conditioned_attention.experiments.commands import compare_recipe, train_recipe
from conditioned_attention.experiments.evidence.comparison import describe_machines
from conditioned_attention.experiments.report.write import read_subjects, write_reports
from conditioned_attention.experiments.runs import run
from conditioned_attention.experiments.runs.compare import compare
from conditioned_attention.experiments.training.launch import Launch
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from tests.experiments.light import Light
from tests.experiments.loops import scores

OFTEN = Launch(checkpoint_seconds=0.0)
BASELINE = VARIANTS["baseline"]


@pytest.fixture
def at(monkeypatch):
    """Moves to another machine, by its name."""

    def move(name):
        machine = {"machine": name, "devices": ["cpu"], "torch": f"2 for {name}", "conditioned-attention": "0.1.0"}
        monkeypatch.setattr(run, "short_environment", lambda: machine)
        monkeypatch.setattr(run, "command", lambda: f"typed on {name}")
        return machine

    return move


def made(folder):
    return json.loads((folder / "result.json").read_text())


def stopped(folder, at_row=1):
    """Trains until Ctrl-C comes after an evaluation."""
    rows = []

    def show(row):
        rows.append(row)
        if len(rows) == at_row:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_recipe(Light(), BASELINE, 0, folder=folder, show=show, launch=OFTEN)


def test_a_run_that_has_finished_is_not_signed_by_who_looks_at_it(tmp_path, at):
    first = at("A")
    train_recipe(Light(), BASELINE, 0, folder=tmp_path / "run", show=str)
    before = {name: (tmp_path / "run" / name).read_bytes() for name in ("result.json", "begun.json")}
    at("B")
    train_recipe(Light(), BASELINE, 0, folder=tmp_path / "run", show=str)
    assert {name: (tmp_path / "run" / name).read_bytes() for name in before} == before
    assert made(tmp_path / "run")["environment"] == first


def test_one_that_is_trained_anew_is(tmp_path, at):
    at("A")
    train_recipe(Light(), BASELINE, 0, folder=tmp_path, show=str)
    for path in tmp_path.glob("checkpoint-*"):
        shutil.rmtree(path)
    second = at("B")
    train_recipe(Light(), BASELINE, 0, folder=tmp_path, show=str)
    assert made(tmp_path)["environment"] == second
    assert "continued" not in made(tmp_path)


def test_one_that_is_continued_elsewhere_has_both(tmp_path, at):
    first = at("A")
    stopped(tmp_path / "run")
    stopped(tmp_path / "run")
    second = at("B")
    train_recipe(Light(), BASELINE, 0, folder=tmp_path / "run", show=str, launch=OFTEN)
    found = made(tmp_path / "run")
    assert (found["environment"], found["continued"]) == (first, [second])
    assert found["command"] == "typed on A", "by which it was begun"
    at("C")
    train_recipe(Light(), BASELINE, 0, folder=tmp_path / "run", show=str)
    assert made(tmp_path / "run") == found
    subjects = read_subjects([tmp_path / "run"])
    text = describe_machines(subjects[0].comparison.machines)
    assert text == (
        "Runs: 1 on A, torch 2 for A, conditioned-attention 0.1.0, continued on B, torch 2 for B, "
        "conditioned-attention 0.1.0."
    )
    write_reports(subjects, [tmp_path / "run"])
    assert text in (tmp_path / "run" / "report.html").read_text()


def test_in_a_comparison_too_and_its_report_is_read_back(tmp_path, at):
    first = at("A")
    stopped(tmp_path / "runs/baseline/seed-0")
    second = at("B")
    result = compare_recipe(Light(), ["baseline"], 2, tmp_path, cost=False, progress=False)
    assert result.machines == [{"runs": 1, **first, "continued": [second]}, {"runs": 1, **second}]
    assert [call["command"] for call in result.calls] == ["typed on A", "typed on B"]
    write_reports(read_subjects([tmp_path]), [tmp_path])
    shutil.rmtree(tmp_path / "runs")
    read = read_subjects([tmp_path])[0].comparison
    assert (read.machines, read.calls) == (result.machines, result.calls)


def test_a_loop_without_checkpoints_begins_anew_and_is_signed_so(tmp_path, at):
    def stops(variant, seed):
        yield {"score": 1.0}
        raise KeyboardInterrupt

    at("A")
    with pytest.raises(KeyboardInterrupt):
        compare(stops, ["baseline"], 1, folder=tmp_path, progress=False)
    second = at("B")
    assert compare(scores, ["baseline"], 1, folder=tmp_path, progress=False).machines == [{"runs": 1, **second}]
