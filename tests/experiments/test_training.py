"""The training loop: it learns, it is the plain loop, and an interrupted run ends as an unbroken one does."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from conditioned_attention.bench.loop import _bare
from conditioned_attention.experiments.files import JsonLines, new_folder, write_json
from conditioned_attention.experiments.training import EpochSampler, Training, build_schedule, parameter_groups, train
from conditioned_attention.experiments.variants import VARIANTS, find_variants
from tests.experiments.tiny import Tiny, TinyDigits

BASELINE, OURS = VARIANTS["baseline"], VARIANTS["preconditioned"]


def run(folder, variant=OURS, seed=0, **changes):
    return train(TinyDigits(), dataclasses.replace(Tiny().training, **changes), variant, seed, folder)


def finish(folder, **kwargs):
    return list(run(folder, **kwargs))


def without_time(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def weights(folder):
    from safetensors.torch import load_file

    return load_file(sorted(folder.glob("checkpoint-*"))[-1] / "model.safetensors")


def assert_same_run(a, b):
    for name in ("train.jsonl", "conditions.jsonl"):
        assert without_time(JsonLines(a / name).read()) == without_time(JsonLines(b / name).read())
    left, right = weights(a), weights(b)
    assert all((left[key] == right[key]).all() for key in left)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, finish(folder)


def test_rows_and_files_of_a_run(unbroken):
    folder, rows = unbroken
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows] == [7, 14, 21], "14 micro-batches of 15, two an optimizer step"
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert {"score", "eval_loss", "log10_kappa", "floor_share", "largest_scale"} <= rows[0].keys()
    log = JsonLines(folder / "train.jsonl").read()
    assert [row["step"] for row in log] == list(range(2, 21, 2))
    assert all(row["grad_norm"] > 0 for row in log)
    assert [row["seen"] for row in log] == [30 * row["step"] for row in log]
    steps = {row["step"] for row in JsonLines(folder / "conditions.jsonl").read()}
    assert steps == {0, 7, 14, 21}, "measured before training too"
    assert len(list(folder.glob("checkpoint-*"))) == 2


@pytest.mark.parametrize("stop_at", [1, 4, 7, 10, 17])
@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
def test_a_run_that_was_cut_off_ends_as_the_unbroken_one(tmp_path, monkeypatch, stop_at, schedule):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = finish(whole, schedule=schedule)
    from conditioned_attention.experiments import training

    log_step = training._Run._log_step

    def stop(self, *args):
        log_step(self, *args)
        if self.step == stop_at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "_log_step", stop)
        with pytest.raises(KeyboardInterrupt):
            finish(broken, schedule=schedule)
    rows = finish(broken, schedule=schedule)
    assert without_time(rows) == without_time(expected)
    assert_same_run(broken, whole)


def test_a_finished_run_yields_its_rows_again(unbroken):
    folder, rows = unbroken
    assert finish(folder) == rows


def test_samples_that_do_not_fill_a_step_are_left_out(tmp_path):
    """13 micro-batches of 16 with accumulation 2: the thirteenth alone would be a step of half the size."""
    rows = finish(tmp_path, batch_size=32)
    assert [row["step"] for row in rows] == [6, 12, 18]


def test_stopped_between_the_last_step_of_an_epoch_and_its_checkpoint(tmp_path, unbroken):
    """The epoch has been evaluated, the checkpoint is of the step before."""
    rows = run(tmp_path)
    next(rows)
    del rows
    assert without_time(finish(tmp_path)) == without_time(unbroken[1])
    assert_same_run(tmp_path, unbroken[0])


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / ".checkpoint-00000001.99.new.tmp").mkdir()
    (tmp_path / ".conditions.jsonl.99.tmp").touch()
    finish(tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_broken_checkpoint_is_an_error_that_loses_nothing(unbroken, tmp_path):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(unbroken[0], folder)
    newest = sorted(folder.glob("checkpoint-*"))[-1]
    (newest / "optimizer.bin").write_bytes(b"nothing")
    with pytest.raises(RuntimeError, match=f"{newest.name} cannot be read"):
        finish(folder)
    assert JsonLines(folder / "train.jsonl").read() == JsonLines(unbroken[0] / "train.jsonl").read()
    shutil.rmtree(newest)
    assert without_time(finish(folder)) == without_time(unbroken[1])


def test_killed_for_real(unbroken, tmp_path):
    code = (
        "import sys; sys.path.insert(0, '.'); import tests.conftest; from tests.experiments.test_training import *;"
        f"from pathlib import Path; finish(Path({str(tmp_path)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code])
    while not list(tmp_path.glob("checkpoint-*")) and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert without_time(finish(tmp_path)) == without_time(unbroken[1])
    assert_same_run(tmp_path, unbroken[0])


def test_it_is_the_loop_one_would_write_by_hand(tmp_path):
    settings = Training(epochs=2, batch_size=30, monitor_every=0)
    rows = list(train(TinyDigits(), settings, BASELINE, 0, tmp_path))
    assert rows[-1]["train_loss"] == _bare(TinyDigits(), settings)


def test_the_monitor_changes_nothing(tmp_path, unbroken):
    rows = finish(tmp_path, monitor_every=0)
    for a, b in zip(rows, unbroken[1]):
        assert (a["score"], a["train_loss"]) == (b["score"], b["train_loss"])


def test_variants_of_a_seed_start_from_the_same_weights_and_data(tmp_path):
    firsts = {}
    for name, seed in (("baseline", 0), ("preconditioned", 0), ("baseline", 1)):
        rows = finish(tmp_path / f"{name}{seed}", variant=VARIANTS[name], seed=seed, epochs=1)
        conditions = JsonLines(tmp_path / f"{name}{seed}" / "conditions.jsonl").read()
        firsts[name, seed] = (conditions[0]["largest_scale"], rows[0]["train_loss"])
    assert firsts["baseline", 0][0] == firsts["preconditioned", 0][0]
    assert firsts["baseline", 0][0] != firsts["baseline", 1][0]
    assert firsts["baseline", 0][1] != firsts["preconditioned", 0][1]


def test_mixed_precision(tmp_path, unbroken):
    rows = finish(tmp_path, precision="bf16", epochs=2)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    first = JsonLines(tmp_path / "conditions.jsonl").read()[0]
    assert first == JsonLines(unbroken[0] / "conditions.jsonl").read()[0], "the probe runs in float32"


def test_fp16_on_a_cpu_is_refused(tmp_path):
    with pytest.raises(ValueError, match="precision='fp16' needs a GPU"):
        finish(tmp_path, precision="fp16")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    class Broken(TinyDigits):
        def loss(self, model, batch):
            return super().loss(model, batch) * float("nan")

    for log_every, step in ((1, 1), (1000, 1)):  # also before a checkpoint, if no line of the log has shown it
        settings = dataclasses.replace(Tiny().training, log_every=log_every)
        with pytest.raises(FloatingPointError, match=f"training loss is nan at step {step}"):
            list(train(Broken(), settings, BASELINE, 0, tmp_path))
    settings = dataclasses.replace(settings, checkpoint_seconds=1e9)
    with pytest.raises(FloatingPointError, match="training loss is nan at step 7"):
        list(train(Broken(), settings, BASELINE, 0, tmp_path))


def test_sampler_is_a_new_permutation_each_epoch_and_resumes():
    sampler = EpochSampler(10, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(10))
    sampler.start_at(0, 4)
    assert list(sampler) == first[4:]
    assert len(sampler) == 6
    sampler.start_at(1, 0)
    assert list(sampler) != first
    assert list(EpochSampler(10, 3, batch_size=4)) == first[:8]


def test_schedules():
    def rates(**kwargs):
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=1.0)
        schedule = build_schedule(optimizer, Training(lr=1.0, **kwargs), 100)
        found = []
        for _ in range(100):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return found

    cosine = rates(warmup=0.1, final_lr=0.1)
    assert cosine[0] == pytest.approx(1 / 11)
    assert max(cosine) == cosine[10] == 1.0
    assert cosine[55] == pytest.approx(0.55, abs=1e-6)
    assert cosine[-1] == pytest.approx(0.1, abs=1e-3)
    assert rates(warmup=0.0)[0] == 1.0
    cycle = rates(schedule="one_cycle", warmup=0.2)
    assert cycle[0] == pytest.approx(1 / 25)
    assert max(cycle) == cycle[19]
    assert set(rates(schedule="constant")) == {1.0}


def test_vectors_do_not_decay():
    decayed, plain = parameter_groups(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2)), 0.1)
    assert [p.dim() for p in decayed["params"]] == [2]
    assert [p.dim() for p in plain["params"]] == [1, 1, 1]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"accumulation": 7}, "accumulation=7 must divide batch_size=64"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"lr": float("inf")}, "lr and clip must be finite"),
        ({"clip": float("nan")}, "lr and clip must be finite"),
        ({"checkpoint_seconds": float("nan")}, "must not be negative"),
        ({"schedule": "one_cycle", "warmup": 0.0}, "needs a warmup"),
        ({"monitor_every": -1}, "must not be negative"),
    ],
)
def test_wrong_settings(changes, words):
    with pytest.raises(ValueError, match=words):
        Training(**changes)


def test_a_batch_larger_than_the_data(tmp_path):
    with pytest.raises(ValueError, match="leaves no batch of 210 samples"):
        finish(tmp_path, batch_size=512, accumulation=1)


def test_unknown_variants():
    with pytest.raises(ValueError, match="variant 'magic' is unknown; valid are baseline, preconditioned"):
        find_variants(["magic"])
    with pytest.raises(ValueError, match="all different"):
        find_variants(["baseline", "baseline"])


def test_files_are_whole_or_not_there(tmp_path):
    write_json(tmp_path / "a.json", {"x": float("nan"), "y": [1.0, float("inf")]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": None, "y": [1.0, None]}

    def fail():
        with new_folder(tmp_path / "half") as folder:
            (folder / "file").write_text("x")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json"]
    log = JsonLines(tmp_path / "log.jsonl")
    log.append({"step": 1}, {"step": 2})
    log.path.write_text(log.path.read_text() + '{"step": 3, "lo')
    assert [row["step"] for row in log.read()] == [1, 2]
    log.cut_after(1)
    assert log.path.read_text() == '{"step": 1}\n'
