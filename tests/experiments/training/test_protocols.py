"""What published protocols ask of a training loop: mixup, several losses, the best weights, a test set, a start."""

import dataclasses
import json
import math
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from conditioned_attention import conditioning
from conditioned_attention.experiments.training import position
from conditioned_attention.experiments.training.loop import train
from conditioned_attention.experiments.training.position import Pace
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.training.start import StartWeights
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from conditioned_attention.experiments.variants.changes import MeanOfC, SpectralStart
from conditioned_attention.experiments.variants.variant import Variant
from conditioned_attention.storage.files import read_json
from conditioned_attention.storage.json_lines import JsonLines
from tests.experiments.tiny import OFTEN, SELDOM, TinyDigits
from tests.experiments.training.test_resume import Killed

BASELINE = VARIANTS["baseline"]
SHORT = Training(epochs=2, batch_size=30, monitor_every=0)


def run(task, folder, settings=SHORT, variant=BASELINE, seed=0, launch=SELDOM):
    return list(train(task, settings, variant, seed, folder, launch))


def without_time(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


class Mixed(TinyDigits):
    """Mixup, where the docstring of `Task` says to write it; the evaluation set is watched."""

    def collate_train(self, items):
        images, labels = super().collate_train(items)
        share = torch.rand(())
        return share * images + (1 - share) * images.roll(1, 0), labels

    def evaluator(self):
        inner, self.seen = super().evaluator(), []
        update = inner.update
        inner.update = lambda model, batch, gather: (self.seen.append(batch[0]), update(model, batch, gather))
        return inner


def test_mixup_mixes_the_training_set_alone(tmp_path):
    task = Mixed()
    mixed = run(task, tmp_path / "mixed")
    assert torch.equal(torch.cat(task.seen), task.eval_data().images)
    assert mixed[0]["train_loss"] != run(TinyDigits(), tmp_path / "plain")[0]["train_loss"]


class Noisy(TinyDigits):
    """Draws in its evaluation, as test-time augmentation does."""

    def evaluator(self):
        torch.rand(7)
        return super().evaluator()


def test_how_often_one_looks_changes_nothing_of_what_is_trained(tmp_path):
    seldom = run(Noisy(), tmp_path / "seldom", dataclasses.replace(SHORT, evaluate_every=2))
    often = run(Noisy(), tmp_path / "often", dataclasses.replace(SHORT, evaluate_steps=2))
    assert [row["step"] for row in often] == [2, 4, 6, 8, 10, 12, 14]
    assert seldom[-1]["score"] == often[-1]["score"]
    logs = [without_time(JsonLines(tmp_path / name / "train.jsonl").read()) for name in ("seldom", "often")]
    assert logs[0] == logs[1]


@pytest.mark.slow
def test_a_loss_of_several_components_is_their_sum_and_each_is_logged(tmp_path):
    class Two(TinyDigits):
        def loss(self, model, batch):
            whole = super().loss(model, batch)
            return {"box": 0.25 * whole, "mask": 0.75 * whole}

    two, one = run(Two(), tmp_path / "two"), run(TinyDigits(), tmp_path / "one")
    assert two[-1]["train_loss"] == pytest.approx(one[-1]["train_loss"], rel=1e-3)
    assert two[-1]["train_loss/box"] == pytest.approx(two[-1]["train_loss"] / 4, rel=1e-5)
    row = JsonLines(tmp_path / "two" / "train.jsonl").read()[0]
    assert row["loss/mask"] == pytest.approx(0.75 * row["loss"], rel=1e-5)
    for nothing in ({}, None):
        Two.loss = lambda self, model, batch, nothing=nothing: nothing
        with pytest.raises((ValueError, TypeError), match="loss"):
            run(Two(), tmp_path / f"wrong {nothing}")


def test_so_many_batches_are_evaluated_always_the_same(tmp_path):
    class Counting(Mixed):
        collate_train = TinyDigits.collate_train

    task = Counting()
    run(task, tmp_path, dataclasses.replace(SHORT, evaluate_batches=2))
    assert torch.equal(torch.cat(task.seen), task.eval_data().images[:60])


class WithTestSet(TinyDigits):
    """Its scores are given, and so is what it scores: the best evaluation is the second of four."""

    SCORES = {4: 10.0, 8: 50.0, 12: 50.0, 14: 20.0}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.at, self.weights, self.tested = [], {}, []

    def test_data(self):
        return self.eval_data()

    def evaluator(self):
        task = self

        class Scripted:
            def update(self, model, batch, gather):
                self.weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}

            def compute(self):
                known = [step for step, w in task.weights.items() if equal(w, self.weights)]
                if len(task.weights) == len(task.SCORES):
                    task.tested.append(known)
                    return {"score": 33.0, "other": 1.0}
                step = list(task.SCORES)[len(task.weights)]
                task.weights[step] = self.weights
                return {"score": task.SCORES[step]}

        return Scripted()


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("ema", [None, 0.5])
def test_the_best_weights_are_tested_once_and_stay(tmp_path, ema):
    settings = dataclasses.replace(SHORT, evaluate_steps=4, select="best", ema=ema)
    task = WithTestSet()
    rows = run(task, tmp_path, settings)
    assert [row["score"] for row in rows] == [10.0, 50.0, 50.0, 20.0]
    assert task.tested == [[8]], "once, with the weights of the first of the best"
    last = rows[-1]
    assert (last["test_score"], last["test_other"], last["selected_step"], last["selected_score"]) == (33, 1, 8, 50)
    assert all("test_score" not in row for row in rows[:-1])
    assert run(WithTestSet(), tmp_path, settings) == rows, "a finished run is not tested again"


def test_a_score_that_is_no_number_is_never_the_best(tmp_path):
    class Broken(WithTestSet):
        SCORES = {4: math.nan, 8: 50.0, 12: math.nan, 14: 20.0}  # noqa: RUF012

    rows = run(Broken(), tmp_path, dataclasses.replace(SHORT, evaluate_steps=4, select="best"))
    assert [row["score"] for row in rows] == [None, 50.0, None, 20.0]
    assert rows[-1]["selected_step"] == 8


@pytest.mark.slow
def test_the_last_weights_are_tested_unless_the_best_are_asked_for(tmp_path):
    task = WithTestSet()
    rows = run(task, tmp_path, dataclasses.replace(SHORT, evaluate_steps=4))
    assert task.tested == [[14]]
    assert "selected_step" not in rows[-1]


def test_a_killed_run_remembers_its_best_weights(tmp_path, monkeypatch):
    settings = dataclasses.replace(SHORT, evaluate_steps=4, select="best")
    whole = run(TinyDigits(), tmp_path / "whole", settings)
    with monkeypatch.context() as patch:
        patch.setattr(TinyDigits, "finish", lambda self, model: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run(TinyDigits(), tmp_path / "broken", settings, launch=OFTEN)
    assert without_time(run(TinyDigits(), tmp_path / "broken", settings)) == without_time(whole)


def newest(folder):
    from safetensors.torch import load_file

    return load_file(sorted(folder.glob("checkpoint-*"))[-1] / "model.safetensors")


class NewHead(TinyDigits):
    """Fine-tuning: the same body with another last layer."""

    def build_model(self):
        model = super().build_model()
        model.head = nn.Sequential(nn.Linear(model.head.in_features, 10, bias=False))
        return model


def test_a_run_starts_from_the_weights_of_another(tmp_path, caplog):
    variant = VARIANTS["head_rmsnorm_gain"]  # which brings parameters of its own
    run(TinyDigits(), tmp_path / "first" / variant.name / "7", variant=variant, seed=7)
    pattern = str(tmp_path / "first" / "{variant}" / "{seed}")
    still = dataclasses.replace(SHORT, epochs=1, lr=1e-12, start_from=pattern)
    run(NewHead(), tmp_path / "second", still, variant, seed=7)
    before, after = newest(tmp_path / "first" / variant.name / "7"), newest(tmp_path / "second")
    assert all(torch.allclose(before[name], after[name], atol=1e-8) for name in after if name != "head.0.weight")
    assert any("gain" in name for name in after)
    note = read_json(tmp_path / "second" / "start.json")
    assert note["fresh"] == ["head.0.weight"]
    assert note["from"]["variant"] == variant.name
    assert "start fresh: head.0.weight" in caplog.text


def test_a_start_is_part_of_what_a_run_is(tmp_path):
    first, _ = (run(TinyDigits(), tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 1)))
    settings = dataclasses.replace(SHORT, start_from=str(tmp_path / "start"))
    shutil.copytree(tmp_path / "a", tmp_path / "start")
    rows = run(TinyDigits(), tmp_path / "run", settings)
    assert rows[0]["train_loss"] < first[0]["train_loss"]
    shutil.rmtree(tmp_path / "start")
    shutil.copytree(tmp_path / "b", tmp_path / "start")
    with pytest.raises(ValueError, match=r"holds another run \(start\.run\.seed: 0 there, 1 now, start\.files\.model"):
        run(TinyDigits(), tmp_path / "run", settings)


@pytest.mark.slow
def test_a_start_that_is_not_there_or_does_not_fit(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint in"):
        run(TinyDigits(), tmp_path / "run", dataclasses.replace(SHORT, start_from=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match=r"may have \{variant\} and \{seed\} in braces only"):
        run(TinyDigits(), tmp_path / "run", dataclasses.replace(SHORT, start_from="{task}"))
    run(TinyDigits(), tmp_path / "first")

    class Other(TinyDigits):
        def build_model(self):
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    with pytest.raises(ValueError, match=r"no weight of .* fits Sequential by name and shape"):
        run(Other(), tmp_path / "run", dataclasses.replace(SHORT, start_from=str(tmp_path / "first")))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", ["identity_init", "orthogonal_init", "spectral_polar"])
def test_what_is_made_from_the_start_is_not_made_again_from_trained_weights(tmp_path, name):
    """λ I folded into the start, weights drawn anew, and a correction that is kept beside the weights."""
    run(TinyDigits(), tmp_path / "first", variant=VARIANTS[name])
    settings = dataclasses.replace(SHORT, epochs=1, lr=1e-12, start_from=str(tmp_path / "first"))
    run(TinyDigits(), tmp_path / "second", settings, VARIANTS[name])
    before, after = newest(tmp_path / "first"), newest(tmp_path / "second")
    assert all(torch.allclose(before[key], after[key], atol=1e-8) for key in before)


def test_what_is_measured_at_a_start_is_measured_on_the_weights_that_it_has():
    """The mean of C is that of the trained weights: λ I, which they have already, is not added for the measurement."""
    trained, other = (TinyDigits().build_model() for _ in range(2))
    variant = Variant("both", (SpectralStart("auto"), MeanOfC()))
    start = StartWeights(Path("checkpoint"), trained.state_dict(), {"run": {}, "step": 0})
    start.apply(other, variant, TinyDigits().probe(), None)
    Variant("gains", (MeanOfC(),)).apply(trained, TinyDigits().probe())
    assert conditioning(other) == conditioning(trained)


def test_batches_that_grow_go_on_exactly_after_a_kill(tmp_path, monkeypatch):
    settings = dataclasses.replace(SHORT, epochs=1, accumulation=6, ramp=0.5)
    whole = run(TinyDigits(), tmp_path / "whole", settings)
    assert whole[-1]["seen"] == 210
    assert whole[-1]["step"] > 7
    calls = []

    def dies(self, model, batch):
        calls.append(1)
        if len(calls) == 20:
            raise Killed
        return super(TinyDigits, self).loss(model, batch)

    with monkeypatch.context() as patch:
        patch.setattr(TinyDigits, "loss", dies)
        with pytest.raises(Killed):
            run(TinyDigits(), tmp_path / "broken", settings, launch=OFTEN)
    assert without_time(run(TinyDigits(), tmp_path / "broken", settings)) == without_time(whole)
    assert all(
        torch.equal(a, b) for a, b in zip(newest(tmp_path / "whole").values(), newest(tmp_path / "broken").values())
    )


@pytest.mark.slow
def test_one_rate_an_epoch(tmp_path):
    settings = dataclasses.replace(SHORT, epochs=3, schedule="triangle", warmup=0.0, final_lr=0.0, schedule_per="epoch")
    list(train(TinyDigits(), settings, BASELINE, 0, tmp_path, dataclasses.replace(OFTEN, log_every=1)))
    rates = [row["lr"] / 1e-3 for row in JsonLines(tmp_path / "train.jsonl").read()]
    assert rates == pytest.approx([1.0] * 7 + [2 / 3] * 7 + [1 / 3] * 7)


@pytest.mark.slow
def test_a_compiled_model_trains_and_is_measured_as_it_is_written(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **kwargs: compiled.append(self))
    settings = dataclasses.replace(SHORT, compile=True, monitor_every=1)
    rows = run(TinyDigits(), tmp_path, settings)
    assert len(compiled) == 1
    assert rows[-1]["log10_kappa"] is None or rows[-1]["log10_kappa"] > 0


def test_checkpoints_take_a_fiftieth_of_the_time(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(position.time, "monotonic", lambda: clock[0])
    pace, saves, working = Pace(20.0), 0, 0.0
    for _ in range(100_000):
        clock[0] += 1.0
        working += 1.0
        if pace.due():
            clock[0] += 7.0  # a ViT-B's
            pace.saved(7.0)
            saves += 1
    assert 7.0 * saves / working == pytest.approx(position.SHARE, rel=0.02)
    cheap, every = Pace(20.0), Pace(0.0)
    cheap.saved(0.01)
    every.saved(1e6)
    assert every.due(), "0 is after every step, whatever it costs"
    clock[0] += 19.0
    assert not cheap.due()
    clock[0] += 1.0
    assert cheap.due()


@pytest.mark.slow
def test_a_checkpoint_of_version_0_1_is_gone_on_from(tmp_path):
    """Its position counts no micro-batches, has one loss, and its average lies alone in extra.pt."""
    settings = dataclasses.replace(SHORT, accumulation=2, ema=0.9)
    whole = run(TinyDigits(), tmp_path / "whole", settings)
    going = train(TinyDigits(), settings, BASELINE, 0, tmp_path / "old", OFTEN)
    next(going)
    going.close()
    for checkpoint in (tmp_path / "old").glob("checkpoint-*"):
        there = read_json(checkpoint / "position.json")
        del there["taken"], there["best"]
        there["losses"] = there["losses"].get("loss", 0.0)
        (checkpoint / "position.json").write_text(json.dumps(there))
        average = torch.load(checkpoint / "extra.pt", weights_only=True)["average"]
        torch.save(average, checkpoint / "extra.pt")
        from conditioned_attention.experiments.training.checkpoints import _seal

        (checkpoint / "files.json").unlink()
        _seal(checkpoint)
    assert without_time(run(TinyDigits(), tmp_path / "old", settings)) == without_time(whole)


class Endless(torch.utils.data.IterableDataset):
    """Digits in the order of a stream, which does not say how many there are."""

    def __init__(self, arrays):
        self.arrays = arrays

    def __iter__(self):
        return ((self.arrays.images[i], self.arrays.labels[i]) for i in range(len(self.arrays)))


def test_a_stream_without_a_length_counts_in_steps(tmp_path):
    class Streamed(TinyDigits):
        def train_data(self):
            return Endless(super().train_data())

    settings = dataclasses.replace(
        SHORT, order="streamed", max_steps=9, evaluate_steps=4, monitor_every=1, evaluate_batches=1, evaluate_first=True
    )
    rows = run(Streamed(), tmp_path, settings)
    assert [(row["step"], row["seen"]) for row in rows] == [(0, 0), (4, 120), (8, 240), (9, 270)]
    assert all("epoch" not in row and ("log10_kappa_weights" in row) == (row["step"] > 0) for row in rows)
    measured = Counter(row["step"] for row in JsonLines(tmp_path / "projections.jsonl").read())
    assert (measured.keys(), len(set(measured.values()))) == ({0, 4, 8, 9}, 1), "each once"
    assert rows[-1]["train_loss"] < 2.4
    with pytest.raises(ValueError, match="no length, and so no epochs: give evaluate_steps"):
        run(Streamed(), tmp_path / "other", dataclasses.replace(settings, evaluate_steps=None))


def test_a_variant_looks_at_training_inputs_only(tmp_path):
    seen = []

    class Looks(MeanOfC):
        def apply(self, model, batch=None):
            seen.append(batch)
            return super().apply(model, batch)

    task = TinyDigits()
    run(task, tmp_path, variant=Variant("looks", (Looks(),)))
    assert torch.equal(seen[0], task.train_data().__getitems__(range(8))[0])
