"""Worker processes: who dies is replaced, who is to stop may write first, and hundreds of runs are no matter."""

import dataclasses
import json
import multiprocessing
import re
import signal
import time

import psutil
import pytest

from conditioned_attention.experiments import compare
from conditioned_attention.experiments.commands import compare_recipe
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.runs.compare import run_missing
from conditioned_attention.experiments.runs.progress import display
from conditioned_attention.experiments.runs.run import job_of, run_folder
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from conditioned_attention.storage.json_lines import JsonLines
from tests.experiments import loops
from tests.experiments.light import Light
from tests.processes import FORKS, Forked


@pytest.fixture
def forked(monkeypatch):
    """Workers that need not import; the spawned ones have `test_many_runs_have_the_numbers_of_one_process`."""
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: FORKS)


@pytest.mark.usefixtures("forked")
def test_whatever_becomes_of_a_run_the_others_go_on(tmp_path):
    """Workers that die cost the run they had, and are replaced; a run may have processes of its own."""
    with pytest.warns(UserWarning, match="has no result") as caught:
        result = compare(loops.of_many_fates, ["baseline"], seeds=5, folder=tmp_path, workers=2, progress=False)
    assert result.failures == {
        "baseline, seed 1": "its worker process died: SIGKILL (out of memory?)",
        "baseline, seed 2": "its worker process died: exit code 9",
        "baseline, seed 3": "ArithmeticError: seed 3 went wrong",
    }
    assert len(caught) == 3
    whole = [{"score": 1.0}, {"score": 6.0}]
    assert result.runs["baseline"] == {0: whole, 4: whole}
    again = compare(loops.trivial, ["baseline"], seeds=5, folder=tmp_path, progress=False)
    assert not again.failures, "they are tried again"
    assert again.runs["baseline"][4] == whole


@pytest.mark.usefixtures("forked")
def test_workers_that_cannot_start_are_not_started_for_ever(tmp_path):
    result = run_missing(
        loops.NowhereToBeImported(), [VARIANTS["baseline"]], range(40), folder=tmp_path, workers=2, threads=None,
        metric=None, settings=None, progress=False,
    )  # fmt: skip
    assert not result.runs["baseline"]
    reasons = list(result.failures.values())
    started = [reason for reason in reasons if "died while it started, before the run: exit code 3" in reason]
    assert 1 <= len(started) <= 2
    assert reasons.count("not run") == 40 - len(started)


@pytest.mark.slow
def test_many_runs_have_the_numbers_of_one_process(tmp_path, capsys):
    began = time.monotonic()
    result = compare(loops.scores, seeds=60, folder=tmp_path, workers=2, progress=True)
    assert time.monotonic() - began < 60
    lines = capsys.readouterr().out.splitlines()  # not a terminal: a line for each run
    line = re.compile(r" of 120 runs: .*, seed \d+, score [\d.]+, \d+ s$")
    assert len([text for text in lines if line.search(text)]) == 120
    assert any(text.startswith("120 of 120 runs ") for text in lines)
    alone = compare(loops.scores, seeds=(4, 7, 59), progress=False)
    assert {name: {seed: by_seed[seed] for seed in (4, 7, 59)} for name, by_seed in result.runs.items()} == alone.runs
    assert compare(loops.trivial, seeds=60, folder=tmp_path, workers=2, progress=True).runs == result.runs, "at once"
    assert compare(loops.trivial, seeds=1, folder=tmp_path, workers=2).runs["baseline"].keys() == {0}


def test_only_the_files_of_active_runs_are_read_and_only_when_they_grow(tmp_path, monkeypatch, capsys):
    reads, read = [], JsonLines.read
    monkeypatch.setattr(JsonLines, "read", lambda self: reads.append(self.path) or read(self))
    jobs = [job_of(tmp_path, VARIANTS["baseline"], seed, Metric("score"), None, {}) for seed in range(300)]
    with display(300, 4, shown=True) as bars:
        for job in jobs[:-1]:
            bars.started(job)
            bars.ended(job, finished=job.seed != 7)
        bars.started(jobs[-1])
        for rows in range(1, 4):
            JsonLines(jobs[-1].path / "metrics.jsonl").append({"score": rows})
            for _ in range(3):
                bars.refreshed = 0.0
                bars.refresh()
    assert reads == [jobs[-1].path / "metrics.jsonl"] * 3
    printed = capsys.readouterr().out
    assert "298 of 300 runs, 1 failed" in printed
    assert "baseline, seed 299" in printed
    assert "baseline, seed 298  " not in printed, "bars of runs that have ended are gone"


def train_for_long(folder):
    recipe = Light(dataclasses.replace(Light().training, epochs=100000))
    compare_recipe(recipe, ["baseline", "head_rmsnorm"], 1, folder, workers=2, cost=False)


def compare_stubborn_runs(folder):
    compare(loops.stubborn, seeds=1, folder=folder, workers=2)


def with_forks(target, folder):
    """In a process that has imported and run nothing, as its workers then need not."""
    forks = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method: forks
    target(folder)


def start(tmp_path, target):
    """Starts a process, and waits until both of its runs have yielded a row; its workers too."""
    folder = tmp_path / "compared"
    process = Forked(tmp_path / "said.txt", with_forks, target, folder)
    deadline = time.monotonic() + 90
    while len(list(folder.glob("runs/*/*/metrics.jsonl"))) < 2:
        assert time.monotonic() < deadline, "no run began"
        assert process.running(), process.said.read_text()
        time.sleep(0.05)
    return folder, process, psutil.Process(process.pid).children()


def assert_all_end(processes):
    assert len(processes) >= 2
    alive = psutil.wait_procs(processes, timeout=20)[1]
    for process in alive:
        process.kill()
    assert not alive, "a worker outlived its parent"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_runs_that_are_stopped_write_a_checkpoint_first(tmp_path, number, code):
    folder, process, workers = start(tmp_path, train_for_long)
    process.send_signal(number)
    status, output = process.wait(), process.said.read_text()
    assert_all_end(workers)
    assert status == code, output
    assert "stopping: runs may write checkpoints for 60 seconds" in output
    for variant in ("baseline", "head_rmsnorm"):
        path = run_folder(folder, variant, 0)
        assert list(path.glob("checkpoint-*")), "not after 20 seconds, but when it was told to stop"
        assert not (path / "error.txt").exists(), "to be stopped is no failure"
    assert json.loads((folder / "settings.json").read_text())["training"]["epochs"] == 100000


def test_a_second_ctrl_c_kills_at_once(tmp_path):
    _, process, workers = start(tmp_path, compare_stubborn_runs)
    process.send_signal(signal.SIGINT)
    with pytest.raises(TimeoutError):
        process.wait(timeout=1.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) != 0
    assert_all_end(workers)


def test_workers_end_with_a_parent_that_is_killed_and_the_next_call_goes_on(tmp_path):
    folder, process, workers = start(tmp_path, compare_stubborn_runs)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=20)
    assert_all_end(workers)
    assert not list(folder.glob("runs/*/*/result.json"))
    assert not compare(loops.trivial, seeds=1, folder=folder, progress=False).failures
