"""Nothing of the user's is written over or deleted: not in a folder of theirs, nor a file of theirs in one of ours."""

import os
import shutil
from pathlib import Path

import pytest

from conditioned_attention.experiments.commands import compare_recipe, train_recipe
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.report.write import read_subjects, write_report, write_reports
from conditioned_attention.experiments.runs.compare import compare
from conditioned_attention.experiments.runs.run import run_folder
from conditioned_attention.experiments.runs.tune import tune
from conditioned_attention.experiments.training.launch import Launch
from conditioned_attention.experiments.training.loop import train
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from conditioned_attention.storage.files import remove_leftovers, write_text
from conditioned_attention.storage.ownership import MARK, check_ours, checkpoints_in, claim
from tests.experiments.light import Light, Numbers
from tests.experiments.loops import peaks_at_a_rate, scores

BASELINE = VARIANTS["baseline"]
OF_0_1 = Path(__file__).parents[1] / "experiments/runs/of_0_1"
OFTEN = Launch(checkpoint_seconds=0.0)

THEIRS = {
    "train.jsonl": '{"text": "a data set"}\n',
    "settings.json": '{"editor.fontSize": 12, "recipe": "soup"}',
    "metrics.jsonl": '{"auc": 0.9}\n',
    "results.json": '{"metric": "auc", "table": []}',
    "result.json": '{"seed": 0}',
    "begun.json": "[]",
    "report.html": "<title>thesis</title>",
    "error.txt": "what I have to look at\n",
    ".cache.tmp/blob": "x",
    ".notes.99.tmp": "x",
    ".git/HEAD": "ref: main",
    "tuning/notes.txt": "x",
    "runs/baseline/seed-0/notes.txt": "x",
    "checkpoint-500/model.bin": "x",
}

USES = {
    "compare": lambda folder: compare(scores, seeds=1, folder=folder, progress=False),
    "compare_recipe": lambda folder: compare_recipe(Light(), ["baseline"], 1, folder, cost=False, progress=False),
    "tuned": lambda folder: compare_recipe(Light(), ["baseline"], 1, folder, cost=False, progress=False, tune=[1e-3]),
    "tune": lambda folder: tune(peaks_at_a_rate, ["baseline"], [1e-3], folder=folder, progress=False),
    "train": lambda folder: train_recipe(Light(), BASELINE, 0, folder=folder, show=str),
    "train --into": lambda folder: train_recipe(Light(), BASELINE, 0, into=folder, show=str),
    "a loop by itself": lambda folder: list(train(Numbers(), Light().training, BASELINE, 0, folder)),
    "a report": lambda folder: write_report(compare(scores, seeds=1, progress=False), folder),
}


def everything(folder):
    """Every file and folder, with its bytes."""
    return {p.relative_to(folder): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def put(folder, name, text):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("use", USES)
def test_a_folder_of_somebody_else_is_refused_before_anything_is_written(tmp_path, monkeypatch, name, use):
    put(tmp_path, name, THEIRS[name])
    monkeypatch.chdir(tmp_path)
    before = everything(tmp_path)
    folder = Path() if name == "train.jsonl" else tmp_path
    with pytest.raises(ValueError, match="is not empty, and nothing in it says"):
        USES[use](folder)
    assert everything(tmp_path) == before


@pytest.mark.one_in(3)
@pytest.mark.parametrize("use", USES)
def test_a_new_and_an_empty_folder_are_taken_and_gone_on_with(tmp_path, use):
    for folder in (tmp_path / "new" / "deeper", tmp_path):
        if folder == tmp_path:
            shutil.rmtree(tmp_path / "new")
        USES[use](folder)
        assert (folder / MARK).is_file()
        USES[use](folder)


@pytest.mark.parametrize("inside", [".", "runs/baseline/seed-1"])
def test_folders_of_versions_without_a_mark_are_known(tmp_path, inside):
    folder = Path(shutil.copytree(OF_0_1, tmp_path / "old"))
    check_ours(folder / inside)
    shutil.rmtree(folder / "runs" / "preconditioned")
    (folder / "results.json").unlink()
    check_ours(folder / inside)


def test_results_that_are_committed_are_known():
    for file in (OF_0_1.parents[3] / "results").rglob("*results.json"):
        check_ours(file.parent)
    check_ours(OF_0_1.parents[3] / "results" / "bench")


def test_a_run_s_folder_in_a_comparison_of_ours_is_looked_at_too(tmp_path):
    compare(scores, seeds=1, folder=tmp_path, progress=False)
    put(run_folder(tmp_path, "baseline", 1), "train.jsonl", "theirs")
    before = everything(tmp_path)
    with pytest.raises(ValueError, match=r"seed-1 is not empty, and nothing in it says"):
        compare(scores, seeds=2, folder=tmp_path, progress=False)
    assert everything(tmp_path) == before


def test_only_folders_of_exactly_that_name_are_checkpoints(tmp_path):
    ours = [f"checkpoint-{step:08d}" for step in (9, 10, 99_999_999, 100_000_000, 200_000_000)]
    others = ["best", "00000015.good", "500", "000000015", "-0000001"]
    for name in [*reversed(ours), *(f"checkpoint-{other}" for other in others)]:
        (tmp_path / name).mkdir()
    for name in ("checkpoint-notes.txt", "checkpoint-00000011"):
        (tmp_path / name).touch()
    assert [path.name for path in checkpoints_in(tmp_path)] == ours


def test_a_user_s_copies_of_checkpoints_stay_and_steer_nothing(tmp_path):
    """Before: a copy was removed as an old checkpoint, another one taken for the newest, a file of notes set aside."""
    whole = train_recipe(Light(), BASELINE, 0, folder=tmp_path / "whole", show=str)
    run = tmp_path / "run"
    rows = train(Numbers(), Light().training, BASELINE, 0, run, OFTEN)
    next(rows)
    rows.close()
    (newest,) = checkpoints_in(run)[-1:]
    first = checkpoints_in(run)[0]
    shutil.copytree(first, run / "checkpoint-best")
    shutil.copytree(first, run / f"{first.name}.good")
    shutil.copytree(first, run / f"damaged-{newest.name}")
    put(run, "checkpoint-notes.txt", "the first one looks best")
    put(run, ".mine.tmp/a", "x")
    (newest / "position.json").write_text("{")
    theirs = ("checkpoint-best", f"{first.name}.good", "checkpoint-notes.txt", ".mine.tmp", f"damaged-{newest.name}")
    before = {path: content for path, content in everything(run).items() if path.parts[0] in theirs}
    found = list(train(Numbers(), Light().training, BASELINE, 0, run, OFTEN))
    after = everything(run)
    assert {path: after[path] for path in before} == before
    assert (run / f"damaged-{newest.name}-2" / "position.json").read_text() == "{"
    (subject,) = read_subjects([whole])
    assert [row["score"] for row in found] == [row["score"] for row in subject.comparison.runs["baseline"][0]]
    assert len(checkpoints_in(run)) == 2


def test_a_checkpoint_that_is_a_link_is_read_and_never_removed(tmp_path):
    rows = train(Numbers(), Light().training, BASELINE, 0, tmp_path / "run", OFTEN)
    next(rows)
    rows.close()
    for path in checkpoints_in(tmp_path / "run"):
        moved = shutil.move(path, tmp_path / path.name)
        path.symlink_to(moved)
    linked = checkpoints_in(tmp_path / "run")
    list(train(Numbers(), Light().training, BASELINE, 0, tmp_path / "run", OFTEN))
    assert all((path / "position.json").is_file() for path in linked)


def test_leftovers_are_those_that_we_leave(tmp_path, monkeypatch):
    put(tmp_path, ".a.tmp", "x")
    put(tmp_path, ".b.1.tmp/c", "x")
    before = everything(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(Path, "unlink", lambda *args, **kwargs: None)  # as where the process is killed
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "result.json", "x")
    assert len(everything(tmp_path)) == len(before) + 1
    monkeypatch.undo()
    remove_leftovers(tmp_path)
    assert everything(tmp_path) == before


def test_a_page_of_somebody_else_is_not_written_over(tmp_path, monkeypatch):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        compare(scores, seeds=1, folder=folder, progress=False, metric=Metric("points"))
    monkeypatch.chdir(tmp_path)
    Path("report.html").write_text("<title>thesis</title>")
    for output in (None, tmp_path / "report.html"):
        with pytest.raises(ValueError, match=r"report\.html exists and is not a page of conditioned-attention"):
            write_reports(read_subjects(folders), folders, output)
    assert Path("report.html").read_text() == "<title>thesis</title>"
    Path("report.html").unlink()
    for _ in range(2):
        assert write_reports(read_subjects(folders), folders).exists()


def test_two_that_claim_at_once_do_not_refuse_each_other(tmp_path, monkeypatch):
    """The mark is the first thing in a folder: there is no moment with another file and without it."""
    seen = []
    write = Path.write_text

    def looked_at(path, *args, **kwargs):
        check_ours(tmp_path)
        written = write(path, *args, **kwargs)
        check_ours(tmp_path)
        seen.append(path.name)
        return written

    monkeypatch.setattr(Path, "write_text", looked_at)
    claim(tmp_path)
    assert seen == [MARK]
