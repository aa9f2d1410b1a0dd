"""The training loop: it learns, it is the plain loop, and an interrupted run ends as an unbroken one does."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch

from conditioned_attention.bench.loop import _bare
from conditioned_attention.experiments.training import loop
from conditioned_attention.experiments.training.launch import Launch
from conditioned_attention.experiments.training.loop import train
from conditioned_attention.experiments.training.optimizer import parameter_groups
from conditioned_attention.experiments.training.schedule import build_schedule
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.variants.catalogue import VARIANTS, find_variants
from conditioned_attention.storage.files import UNFINISHED, write_json
from conditioned_attention.storage.json_lines import JsonLines
from conditioned_attention.storage.ownership import claim
from tests.experiments.light import Numbers
from tests.experiments.tiny import OFTEN, SELDOM, Tiny, TinyDigits

BASELINE, OURS = VARIANTS["baseline"], VARIANTS["preconditioned"]


def run(folder, variant=OURS, seed=0, launch=OFTEN, **changes):
    return train(TinyDigits(), dataclasses.replace(Tiny().training, **changes), variant, seed, folder, launch)


def finish(folder, launch=SELDOM, **kwargs):
    return list(run(folder, launch=launch, **kwargs))


def without_time(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, finish(folder, OFTEN)


def test_rows_and_files_of_a_run(unbroken):
    folder, rows = unbroken
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows] == [7, 14, 21], "14 micro-batches of 15, two an optimizer step"
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert {"score", "eval_loss", "log10_kappa", "floor_share", "largest_scale"} <= rows[0].keys()
    log = JsonLines(folder / "train.jsonl").read()
    assert [row["step"] for row in log] == list(range(2, 21, 2))
    assert all(row["grad_norm"] > 0 for row in log)
    assert log[0]["lr"] == pytest.approx(2 / 3 * 1e-3), "of the second step, the last of the warm-up"
    assert [row["seen"] for row in log] == [30 * row["step"] for row in log]
    steps = {row["step"] for row in JsonLines(folder / "conditions.jsonl").read()}
    assert steps == {0, 7, 14, 21}, "measured before training too"
    assert len(list(folder.glob("checkpoint-*"))) == 2


@pytest.mark.slow
def test_samples_that_do_not_fill_a_step_are_left_out(tmp_path):
    """13 micro-batches of 16 with accumulation 2: the thirteenth alone would be a step of half the size."""
    rows = finish(tmp_path, batch_size=32)
    assert [row["step"] for row in rows] == [6, 12, 18]


@pytest.mark.slow
def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    claim(tmp_path)
    (tmp_path / f".checkpoint-00000001{UNFINISHED}").mkdir()
    (tmp_path / f".conditions.jsonl.99{UNFINISHED}").touch()
    theirs = [tmp_path / name for name in (".cache.tmp", ".notes.99.tmp")]
    theirs[0].mkdir()
    theirs[1].touch()
    finish(tmp_path)
    assert sorted(tmp_path.glob(".*.tmp")) == theirs


def test_it_is_the_loop_one_would_write_by_hand(tmp_path):
    settings = Training(epochs=2, batch_size=30, monitor_every=0)
    rows = list(train(TinyDigits(), settings, BASELINE, 0, tmp_path))
    assert rows[-1]["train_loss"] == _bare(TinyDigits(), settings)


def test_what_the_device_has_still_to_do_is_time_spent_training(tmp_path, monkeypatch):
    """A GPU's queue, which is waited for where a line or a row needs the time: no second later, and no step more."""
    now = [0.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(loop.Stopwatch, "wait", lambda watch: now.__setitem__(0, now[0] + 1))
    settings = Training(epochs=1, batch_size=8, evaluate_steps=3, monitor_every=0)
    rows = list(train(Numbers(), settings, BASELINE, 0, tmp_path, OFTEN))
    assert [row["seconds"] for row in JsonLines(tmp_path / "train.jsonl").read()] == [1, 3], "steps 2 and 4"
    assert [row["seconds"] for row in rows] == [2, 3], "steps 3 and 4"


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

    # also before a checkpoint, if no line of the log has shown it; at the latest when the epoch is evaluated
    for log_every, seconds, step in ((1, 0.0, 1), (1000, 0.0, 1), (1000, 1e9, 7)):
        rows = train(
            Broken(), Tiny().training, BASELINE, 0, tmp_path, Launch(log_every=log_every, checkpoint_seconds=seconds)
        )
        with pytest.raises(FloatingPointError, match=f"training loss is nan at step {step}"):
            list(rows)
        assert not list(tmp_path.glob("checkpoint-*"))


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
        ({"lr": 0.0}, "lr must be positive and finite, got 0.0"),
        ({"clip": 0.0}, "clip must be positive and finite"),
        ({"lr": float("inf")}, "lr must be positive and finite"),
        ({"clip": float("nan")}, "clip must be positive and finite"),
        ({"tokens": 0}, "tokens must be positive"),
        ({"seconds": float("inf")}, "seconds must be positive and finite"),
        ({"evaluate_every": 0}, "evaluate_every must be positive"),
        ({"ema": 1.0}, "ema must be between 0 and 1"),
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

    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json"]
    log = JsonLines(tmp_path / "log.jsonl")
    log.append({"step": 1}, {"step": 2})
    log.path.write_text(log.path.read_text() + '{"step": 3, "lo')
    assert [row["step"] for row in log.read()] == [1, 2]
    log.cut_after(1)
    assert log.path.read_text() == '{"step": 1}\n'
