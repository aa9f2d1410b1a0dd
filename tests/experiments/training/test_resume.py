"""A run that was stopped anywhere, in whatever way, ends with the numbers of one that was not, bit for bit."""

import dataclasses
import json
import os
import re
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.runs.run import carry_out, single_job
from conditioned_attention.experiments.training import checkpoints, loop
from conditioned_attention.experiments.training.checkpoints import damage
from conditioned_attention.experiments.training.interruption import Stop, signals_noted
from conditioned_attention.experiments.training.launch import Launch
from conditioned_attention.experiments.training.loop import train
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from conditioned_attention.storage.json_lines import JsonLines
from conditioned_attention.storage.ownership import checkpoints_in
from tests.experiments import edits
from tests.experiments.tiny import OFTEN, ShakenDigits
from tests.models import timm_vit
from tests.processes import Forked

# 7 optimizer steps an epoch of 14 micro-batches, evaluated every third or fourth step
SETTINGS = Training(epochs=2, batch_size=30, accumulation=2, ema=0.9, evaluate_every=0.5)
STEPS = 14


class Killed(BaseException):
    """Nothing in the library catches it."""


def run(folder, launch=OFTEN, **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    return list(train(ShakenDigits(), settings, VARIANTS["preconditioned"], 0, folder, launch))


def without_time(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def tensors(folder):
    from safetensors.torch import load_file

    newest = sorted(folder.glob("checkpoint-*"))[-1]
    average = torch.load(newest / "extra.pt", weights_only=True)["average"]
    return load_file(newest / "model.safetensors") | {f"ema.{key}": value for key, value in average.items()}


def assert_same_run(a, b):
    for name in ("train.jsonl", "conditions.jsonl", "projections.jsonl"):
        assert without_time(JsonLines(a / name).read()) == without_time(JsonLines(b / name).read())
    left, right = tensors(a), tensors(b)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, run(folder)


@pytest.mark.slow
def test_whoever_stops_between_two_rows_leaves_a_checkpoint(tmp_path, unbroken):
    folder, rows = unbroken
    seldom = dataclasses.replace(OFTEN, checkpoint_seconds=1e6)
    for stopped_at in (4, 8):
        going = train(ShakenDigits(), SETTINGS, VARIANTS["preconditioned"], 0, tmp_path, seldom)
        assert next(row for row in going if row["step"] == stopped_at)
        going.close()
        assert sorted(tmp_path.glob("checkpoint-*"))[-1].name == f"checkpoint-{stopped_at:08}"
    assert without_time(run(tmp_path)) == without_time(rows)
    assert_same_run(tmp_path, folder)


def test_a_signal_between_two_rows_of_a_comparison_leaves_a_checkpoint(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    seldom = dataclasses.replace(OFTEN, checkpoint_seconds=1e6)
    job = single_job(tmp_path, VARIANTS["preconditioned"], 0, Metric("score"), {})
    with pytest.raises(KeyboardInterrupt) as caught:  # which keeps a reference to every frame
        carry_out(lambda v, s: train(ShakenDigits(), SETTINGS, v, s, tmp_path, seldom), job, interrupted)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-00000004"]
    del caught


def kill_at(monkeypatch, place, count):
    """The ``count``-th time that the run comes by ``place`` it dies, before or after what happens there."""
    owner, name, after = {
        "before a step": (loop._Run, "take_step", False),
        "after a step": (loop._Run, "take_step", True),
        "in the middle of an accumulation": (ShakenDigits, "loss", False),
        "before an evaluation": (loop._Run, "evaluate", False),
        "after an evaluation": (loop._Run, "evaluate", True),
        "in the middle of a checkpoint": (checkpoints, "_seal", False),
        "when a checkpoint is about to get its name": (checkpoints, "_seal", True),
        "before old checkpoints are removed": (checkpoints.Checkpoints, "_remove_before", False),
    }[place]
    original, calls = getattr(owner, name), [0]

    def dies(*args, **kwargs):
        calls[0] += 1
        if calls[0] == count and not after:
            raise Killed
        result = original(*args, **kwargs)
        if calls[0] == count:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, dies)


@pytest.mark.slow  # the quick suite sends signals, below, and kills in test_protocols
@pytest.mark.parametrize(
    ("place", "count"),
    [
        ("before a step", 1),
        ("after a step", 1),
        ("after a step", 5),
        ("after a step", 7),  # the end of an epoch, before its evaluation
        ("after a step", STEPS),
        ("in the middle of an accumulation", 2),
        ("in the middle of an accumulation", 12),
        ("in the middle of an accumulation", 20),
        ("before an evaluation", 1),
        ("before an evaluation", 2),
        ("after an evaluation", 1),
        ("after an evaluation", 4),
        ("in the middle of a checkpoint", 1),
        ("in the middle of a checkpoint", 6),
        ("when a checkpoint is about to get its name", 9),
        ("before old checkpoints are removed", 8),
    ],
)
def test_killed(tmp_path, monkeypatch, unbroken, place, count):
    with monkeypatch.context() as patch:
        kill_at(patch, place, count)
        with pytest.raises(Killed):
            run(tmp_path)
    assert without_time(run(tmp_path)) == without_time(unbroken[1])
    assert_same_run(tmp_path, unbroken[0])


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["one_cycle", pytest.param("constant", marks=pytest.mark.slow)])
def test_killed_again_and_again(tmp_path, monkeypatch, schedule):
    whole = tmp_path / "whole"
    expected, broken = run(whole, schedule=schedule), tmp_path / "broken"
    for _ in range(4):
        with monkeypatch.context() as patch:
            kill_at(patch, "in the middle of an accumulation", 6)  # three steps further every time
            with pytest.raises(Killed):
                run(broken, schedule=schedule)
    assert without_time(run(broken, schedule=schedule)) == without_time(expected)
    assert_same_run(broken, whole)


@pytest.mark.slow
def test_checkpoints_are_rare_and_a_kill_goes_back_to_the_last(tmp_path, monkeypatch, unbroken):
    with monkeypatch.context() as patch:
        kill_at(patch, "after a step", 13)
        with pytest.raises(Killed):
            run(tmp_path, Launch(checkpoint_seconds=1e9, log_every=2))
    assert not list(tmp_path.glob("checkpoint-*"))
    assert without_time(run(tmp_path)) == without_time(unbroken[1])
    assert_same_run(tmp_path, unbroken[0])


@pytest.mark.slow
def test_workers_change_nothing(tmp_path, monkeypatch, unbroken):
    launch = dataclasses.replace(OFTEN, loader_workers=2)
    with monkeypatch.context() as patch:
        kill_at(patch, "in the middle of an accumulation", 9)
        with pytest.raises(Killed):
            run(tmp_path, launch)
    assert without_time(run(tmp_path, launch)) == without_time(unbroken[1])
    assert_same_run(tmp_path, unbroken[0])


def test_a_finished_run_yields_its_rows_again(unbroken):
    folder, rows = unbroken
    assert run(folder) == rows
    assert [row["step"] for row in rows] == [4, 8, 12, 14]
    assert [row["epoch"] for row in rows] == [4 / 7, 8 / 7, 12 / 7, 2]


def test_chance_is_different_in_every_epoch(tmp_path):
    """Otherwise the tests above would hold of a loop that augments nothing."""
    seen = []

    class Watched(ShakenDigits):
        def loss(self, model, batch):
            seen.append(batch[0].sum().item())
            return super().loss(model, batch)

    settings = Training(epochs=2, batch_size=210, monitor_every=0, lr=1e-9)
    list(train(Watched(), settings, VARIANTS["baseline"], 0, tmp_path))
    assert seen[0] != seen[1]


# Real signals, to a real process


def child(folder, **launch):
    return Forked(folder.with_suffix(".said"), run, folder, dataclasses.replace(OFTEN, **launch))


def wait_for(process, condition):
    while not condition() and process.running():
        time.sleep(0.005)
    assert process.running(), process.said.read_text()


@pytest.mark.slow
def test_sigkill(unbroken, tmp_path):
    process = child(tmp_path)
    wait_for(process, lambda: list(tmp_path.glob("checkpoint-*")))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert without_time(run(tmp_path)) == without_time(unbroken[1])
    assert_same_run(tmp_path, unbroken[0])


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 1)])
def test_sigterm_and_ctrl_c_write_a_checkpoint(unbroken, tmp_path, number, code):
    process = child(tmp_path, checkpoint_seconds=1e9)
    wait_for(process, lambda: (tmp_path / "train.jsonl").exists() and (tmp_path / "train.jsonl").read_text())
    process.send_signal(number)
    assert process.wait() == code
    said = process.said.read_text()
    assert said.rstrip().endswith("KeyboardInterrupt") == (number == signal.SIGINT)
    step = int(re.search(r"stopped at step (\d+) of 14; called again, it goes on from .*checkpoint-0*\1", said)[1])
    assert 2 <= step < STEPS
    assert without_time(run(tmp_path)) == without_time(unbroken[1])
    assert_same_run(tmp_path, unbroken[0])


@pytest.mark.slow
def test_stopped_in_the_middle_of_an_evaluation(unbroken, tmp_path):
    class Impatient(ShakenDigits):
        def evaluator(self):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().evaluator()

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        list(train(Impatient(), SETTINGS, VARIANTS["preconditioned"], 0, tmp_path, OFTEN))
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert without_time(run(tmp_path)) == without_time(unbroken[1])
    assert_same_run(tmp_path, unbroken[0])


@pytest.mark.slow
@pytest.mark.parametrize(("checkpoint", "rows"), [(4, 1), (STEPS, 4)])
def test_a_signal_while_a_checkpoint_is_written_is_not_forgotten(unbroken, tmp_path, monkeypatch, checkpoint, rows):
    """The one after the evaluation of step 4, when the loop hands out a row; and the last of the run."""
    seal = checkpoints._seal

    def interrupted(folder):
        seal(folder)
        position = json.loads((folder / "position.json").read_text())
        if (position["step"], len(position["history"])) == (checkpoint, rows):
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_seal", interrupted)
        with pytest.raises(SystemExit) as ended:
            run(tmp_path)
    assert ended.value.code == 143
    assert sorted(tmp_path.glob("checkpoint-*"))[-1].name == f"checkpoint-{min(checkpoint + 1, STEPS):08d}"
    assert without_time(run(tmp_path)) == without_time(unbroken[1])
    assert_same_run(tmp_path, unbroken[0])


def test_a_second_ctrl_c_is_obeyed_at_once():
    stop = Stop()
    with signals_noted(stop):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


# Disks


def damaged_copy(unbroken, folder, which, what):
    shutil.copytree(unbroken[0], folder)
    found = sorted(folder.glob("checkpoint-*"))
    for path in found if which == "all" else found[-1:]:
        file = path / what
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    return found


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "what", ["model.safetensors", "optimizer.bin", "scheduler.bin", "random_states_0.pkl", "extra.pt", "position.json"]
)
def test_one_flipped_bit_and_the_checkpoint_before_is_used(unbroken, tmp_path, caplog, what):
    folder = tmp_path / "copy"
    newest = damaged_copy(unbroken, folder, "newest", what)[-1]
    assert without_time(run(folder)) == without_time(unbroken[1])
    assert f"{newest} is damaged ({what} is not what was written): kept as damaged-{newest.name}" in caplog.text
    assert damage(folder / f"damaged-{newest.name}")
    assert_same_run(folder, unbroken[0])


def test_a_file_that_is_missing_or_cut_short(unbroken, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(unbroken[0], folder)
    newest = sorted(folder.glob("checkpoint-*"))[-1]
    (newest / "optimizer.bin").unlink()
    assert without_time(run(folder)) == without_time(unbroken[1])
    newest = sorted(folder.glob("checkpoint-*"))[-1]
    os.truncate(newest / "files.json", 20)
    assert without_time(run(folder)) == without_time(unbroken[1])


def test_no_good_checkpoint_is_an_error_that_loses_nothing(unbroken, tmp_path):
    folder = tmp_path / "copy"
    damaged_copy(unbroken, folder, "all", "optimizer.bin")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(RuntimeError, match=r"no checkpoint in .* can be read .*optimizer.bin.*nothing was changed"):
        run(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_checkpoint_of_another_model_is_not_called_damaged(unbroken, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(unbroken[0], folder)

    class Wider(ShakenDigits):
        def build_model(self):
            return timm_vit(mlp_ratio=3)

    with pytest.raises(RuntimeError, match="belongs to another model or version"):
        list(train(Wider(), SETTINGS, VARIANTS["preconditioned"], 0, folder))
    with pytest.raises(ValueError, match=r"holds another run \(ema: 0.9 there, None now\)"):
        run(folder, ema=None)
    with pytest.raises(ValueError, match=r"\(variant: 'preconditioned' there, 'baseline' now, seed: 0 there, 3 now\)"):
        list(train(ShakenDigits(), SETTINGS, VARIANTS["baseline"], 3, folder))
    assert not list(folder.glob("damaged-*"))


def until_the_disk_is_full(folder, most):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    rows = train(ShakenDigits(), SETTINGS, VARIANTS["preconditioned"], 0, folder, OFTEN)
    next(rows)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    list(rows)


@pytest.mark.slow
def test_a_full_disk(unbroken, tmp_path):
    """The operating system refuses to write a file beyond a limit that lies in the middle of the optimizer's state."""
    sizes = [file.stat().st_size for file in sorted(unbroken[0].glob("checkpoint-*"))[-1].iterdir()]
    process = Forked(tmp_path.with_suffix(".said"), until_the_disk_is_full, tmp_path, max(sizes) - 1000)
    assert process.wait() == 1
    said = process.said.read_text()
    assert re.search(r"OSError: the checkpoint .*checkpoint-00000005 could not be written", said), said
    assert [path.name for path in sorted(tmp_path.glob("checkpoint-*"))] == [
        "checkpoint-00000003",
        "checkpoint-00000004",
    ]
    assert not list(tmp_path.glob(".*.tmp"))
    assert without_time(run(tmp_path)) == without_time(unbroken[1])
    assert_same_run(tmp_path, unbroken[0])


def test_positions_are_plain_data(unbroken):
    position = json.loads((sorted(unbroken[0].glob("checkpoint-*"))[-1] / "position.json").read_text())
    assert (position["step"], position["processes"], len(position["history"])) == (STEPS, 1, 4)


@pytest.mark.parametrize(
    ("name", "path", "value", "words"),
    [
        ("position.json", ("step",), "1", "step is '1'; valid is a whole number from 0 on"),
        ("position.json", ("history",), None, "history is null; valid is a list"),
        ("position.json", ("run",), [], r"run is a list, \[\]; valid is an object"),
        ("position.json", ("losses",), "x", "losses is 'x'; valid is an object or a finite number"),
        ("position.json", ("processes",), KeyError, "processes is missing; valid is a whole number from 0 on"),
        ("train.jsonl", ("step",), None, "line 1: step is null"),
        ("conditions.jsonl", ("step",), KeyError, "line 1: step is missing"),
        ("projections.jsonl", ("role",), 3, "line 1: role is 3; valid is text"),
    ],
)
def test_what_somebody_has_edited_is_refused_by_name(tmp_path, unbroken, name, path, value, words):
    """A checkpoint that was sealed again after the edit, and logs, which have no seal."""
    folder = Path(shutil.copytree(unbroken[0], tmp_path / "copy"))
    newest = checkpoints_in(folder)[-1]
    file = (newest if name == "position.json" else folder) / name
    lines = [file.read_text()] if name == "position.json" else file.read_text().splitlines()
    lines[0] = json.dumps(edits.changed(json.loads(lines[0]), path, value))
    file.write_text("\n".join(lines) + "\n")
    (newest / "files.json").unlink()
    checkpoints._seal(newest)
    with pytest.raises(ValueError, match=rf"{name}[:,] {words}"):
        run(folder)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("text", ["[]", '{"model.safetensors": null}', "[" * 100_000, '{"a": [1e999, 0]}', "\0", ""])
def test_a_list_of_files_that_somebody_has_edited_is_damage(tmp_path, unbroken, text):
    folder = Path(shutil.copytree(unbroken[0], tmp_path / "copy"))
    newest = checkpoints_in(folder)[-1]
    (newest / "files.json").write_text(text)
    assert damage(newest)
    assert without_time(run(folder)) == without_time(unbroken[1])
    assert (folder / f"damaged-{newest.name}").is_dir()
