"""Worker processes: who dies is replaced, who is to stop may write first, and hundreds of runs are no matter."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conditioned_attention.experiments import compare
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.runs.compare import run_missing
from conditioned_attention.experiments.runs.progress import display
from conditioned_attention.experiments.runs.run import job_of, run_folder
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from conditioned_attention.storage.json_lines import JsonLines
from tests.experiments import loops


def test_a_killed_worker_costs_its_job_and_is_replaced(tmp_path):
    with pytest.warns(UserWarning, match="worker process died") as caught:
        result = compare(loops.killed_on_seed_1, seeds=3, folder=tmp_path, workers=2, progress=False)
    reason = "its worker process died: SIGKILL (out of memory?)"
    assert result.failures == {"baseline, seed 1": reason, "preconditioned, seed 1": reason}
    assert result.runs["baseline"].keys() == result.runs["preconditioned"].keys() == {0, 2}
    assert len(caught) == 2
    assert not compare(loops.trivial, seeds=3, folder=tmp_path, progress=False).failures, "they are tried again"


def test_the_exit_code_is_named(tmp_path):
    with pytest.warns(UserWarning, match="baseline, seed 1 has no result: its worker process died: exit code 9"):
        compare(loops.dies_on_seed_1, ["baseline"], seeds=2, folder=tmp_path, workers=2, progress=False)


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


def test_a_run_in_a_worker_may_have_processes_of_its_own(tmp_path):
    result = compare(loops.with_a_loader_process, folder=tmp_path, seeds=1, workers=2, progress=False)
    assert result.runs["baseline"][0] == [{"score": 6.0}]


def test_hundreds_of_runs(tmp_path, capsys):
    began = time.monotonic()
    result = compare(loops.trivial, seeds=200, folder=tmp_path, workers=2, progress=True)
    assert {len(by_seed) for by_seed in result.runs.values()} == {200}
    assert time.monotonic() - began < 60
    lines = capsys.readouterr().out.splitlines()  # not a terminal: a line for each run
    assert len([line for line in lines if re.search(r" of 400 runs: .*, seed \d+, score \d+, \d+ s$", line)]) == 400
    assert any(line.startswith("400 of 400 runs ") for line in lines)


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


TRAINING = """
import dataclasses, sys
from pathlib import Path
from conditioned_attention.experiments.commands import compare_recipe
from tests.experiments.tiny import Tiny
if __name__ == "__main__":
    training = dataclasses.replace(Tiny().training, epochs=int(sys.argv[2]), monitor_every=0)
    compare_recipe(Tiny(training), ["baseline", "head_rmsnorm"], 1, Path(sys.argv[1]), workers=2, cost=False)
"""

STUBBORN = """
import signal, sys, time
from conditioned_attention.experiments import compare
def train(variant, seed):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield {"score": 1.0}
    time.sleep(1000)
    yield {"score": 1.0}
if __name__ == "__main__":
    compare(train, seeds=1, folder=sys.argv[1], workers=2)
"""


def start(tmp_path, script, *arguments):
    """Starts a script as a process, and waits until both of its runs have yielded a row."""
    (tmp_path / "script.py").write_text(script)
    folder = tmp_path / "compared"
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), str(folder), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # shells ignore it for jobs with &
    )
    deadline = time.monotonic() + 90
    while len(list(folder.glob("runs/*/*/metrics.jsonl"))) < 2:
        assert time.monotonic() < deadline, "no run began"
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    return folder, process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_runs_that_are_stopped_write_a_checkpoint_first(tmp_path, number, code):
    folder, process = start(tmp_path, TRAINING, "100000")
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode in (code, -number), output
    assert "stopping: runs may write checkpoints for 60 seconds" in output
    for variant in ("baseline", "head_rmsnorm"):
        path = run_folder(folder, variant, 0)
        assert list(path.glob("checkpoint-*")), "not after 20 seconds, but when it was told to stop"
        assert not (path / "error.txt").exists(), "to be stopped is no failure"
    assert json.loads((folder / "settings.json").read_text())["training"]["epochs"] == 100000


def test_a_second_ctrl_c_kills_at_once(tmp_path):
    _, process = start(tmp_path, STUBBORN)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) != 0
    process.stdout.close()
