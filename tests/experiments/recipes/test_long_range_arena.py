"""The recipe ``listops``: its parts, its published protocol, and a run."""

import dataclasses
import json

import pytest
import torch

from conditioned_attention.experiments.recipes.long_range_arena import ListOps
from conditioned_attention.experiments.recipes.registry import settings_of
from conditioned_attention.experiments.training import loop
from conditioned_attention.experiments.training.loop import train
from conditioned_attention.experiments.training.schedule import build_schedule
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from conditioned_attention.storage.json_lines import JsonLines
from conditioned_attention.storage.ownership import checkpoints_in
from tests.experiments.tiny import OFTEN, SELDOM, TREES, six_steps
from tests.experiments.tiny import tiny_lists as tiny
from tests.test_cli import call


def test_the_published_rates():
    """Of OneCycleLR by hand: up from max / 25 in 1,000 steps, and down to 4e-10; the first beta goes the other way."""
    training = ListOps().training
    assert training.full_steps(96_000) == 5_000
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=training.lr)
    schedule = build_schedule(optimizer, training, 5_000)
    rates, betas = [], []
    optimizer.step()  # once, or the schedule warns that it comes first
    for _ in range(5_000):
        rates.append(optimizer.param_groups[0]["lr"])
        betas.append(optimizer.param_groups[0]["betas"][0])
        schedule.step() if len(rates) < 5_000 else None
    assert [rates[0], rates[999], rates[-1]] == pytest.approx([4e-6, 1e-4, 4e-10])
    assert [betas[0], betas[999], betas[-1]] == pytest.approx([0.95, 0.85, 0.95])


def test_the_sets_of_a_run_and_of_a_search(tmp_path):
    """Evaluation and test lists stay the same however many there are to train on; a search sees neither."""
    task, more = tiny(tmp_path).task(), tiny(tmp_path, samples=90).task()
    sets = [task.train_data(), task.eval_data(), task.test_data()]
    assert [len(data) for data in sets] == [60, 20, 30]
    assert more.eval_data().fingerprint() == task.eval_data().fingerprint()
    assert more.test_data().fingerprint() == task.test_data().fingerprint()
    lists = [{data.sequence(i).tobytes() for i in range(len(data))} for data in sets]
    assert len(set.union(*lists)) == 110
    search = tiny(tmp_path).task(tuning=True)
    assert [len(search.train_data()), len(search.eval_data()), search.test_data()] == [54, 6, None]
    assert {search.eval_data().sequence(i).tobytes() for i in range(6)} < lists[0]
    model = task.build_model()
    assert model(task.probe()).shape == (8, 10)
    assert model.encoder.tokens.num_embeddings == 32
    with pytest.raises(ValueError, match=r"model\.length=32 is less than lists may have"):
        tiny(tmp_path, trees=dataclasses.replace(TREES, shorter_than=34))
    assert "cache_dir" not in settings_of(tiny(tmp_path))


def test_the_release_is_read_instead(tmp_path):
    for name, lines in (("train", ["( ( ( [MAX 2 ) 9 ) ] )\t9"] * 3), ("val", ["5\t5", "broken"]), ("test", ["4\t4"])):
        (tmp_path / f"basic_{name}.tsv").write_text("\n".join(["Source\tTarget", *lines, ""]))
    task = tiny(tmp_path, release=tmp_path).task()
    assert [len(data) for data in (task.train_data(), task.eval_data(), task.test_data())] == [3, 1, 1]
    assert task.notes == ["basic_val.tsv: 1 broken lines are left out: line 3 has 1 columns, not 2"]


def test_a_reduced_run_by_command(tmp_path):
    """Lengths, sizes and steps are options; the weights of the best evaluation are tested."""
    options = {
        "samples": 40, "eval-samples": 16, "test-samples": 8, "longer-than": 4, "shorter-than": 33, "max-depth": 4,
        "length": 32, "hidden-size": 16, "landmarks": 16, "max-steps": 4, "batch-size": 8, "warmup-steps": 2,
        "evaluate-steps": 2, "evaluate-batches": 1, "cache-dir": tmp_path / "cache",
    }  # fmt: skip
    words = [word for name, number in options.items() for word in (f"--{name}", str(number))]
    folder = tmp_path / "run"
    assert call("train", "listops", "--variant", "preconditioned_weights", "--folder", str(folder), *words) == 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    assert 0 <= rows[-1]["test_score"] <= 100
    assert rows[-1]["selected_score"] == max(row["score"] for row in rows)
    heads = JsonLines(folder / "conditions.jsonl").read()
    assert {row["step"] for row in heads} == {0, 2, 4}
    assert {row["resolution"] for row in heads} == {1 / (32 * torch.finfo(torch.float64).eps)}
    kappa = [row["kappa_before"] for row in heads]
    assert all(1 < value < 1e13 for value in kappa), "none is at the floor, from the start on"
    assert max(kappa[:4]) > 1 / (32 * torch.finfo(torch.float32).eps), "where some would be in float32"


def test_heads_are_measured_on_long_lists(tmp_path):
    """With fewer stretches that hold tokens than a head is wide it is singular, whatever it is measured in."""
    task = tiny(tmp_path).task()
    lengths = task.eval_data().lengths
    assert sorted((task.probe() != 0).sum(1).tolist()) == sorted(lengths.tolist())[-8:]
    assert lengths[:8].min() < sorted(lengths)[-8]


class Killed(BaseException):
    """Nothing in the library catches it."""


def six(folder, launch=SELDOM, **changes):
    recipe = tiny(folder.parent / "cache")
    return list(train(recipe.task(), six_steps(recipe, **changes), VARIANTS["preconditioned"], 0, folder, launch))


def logged(folder, name="train.jsonl"):
    return [{**row, "seconds": 0} for row in JsonLines(folder / name).read()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, six(folder)


@pytest.mark.slow
def test_it_goes_on_to_the_bit(whole, tmp_path, monkeypatch):
    """With dropout, padding, micro-batches, a first beta that moves, and the weights of the best evaluation."""
    folder, rows = tmp_path / "run", whole[1]

    def dies_at_the_last(self):
        if self.here.step == 5:
            raise Killed
        take_step(self)

    take_step = loop._Run.take_step
    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "take_step", dies_at_the_last)
        with pytest.raises(Killed):
            six(folder, OFTEN)
    assert [{**row, "seconds": 0} for row in six(folder)] == [{**row, "seconds": 0} for row in rows]
    assert rows[-1]["selected_step"] < 5, "the best weights are of before the kill"
    assert logged(folder) == logged(whole[0])
    for name in ("model.safetensors", "optimizer.bin", "extra.pt"):
        mine, expected = (checkpoints_in(place)[-1] / name for place in (folder, whole[0]))
        assert mine.read_bytes() == expected.read_bytes(), name


@pytest.mark.slow
def test_half_precision_stays_near(whole, tmp_path):
    six(tmp_path / "run", precision="bf16")
    half, full = ([row["loss"] for row in logged(folder)] for folder in (tmp_path / "run", whole[0]))
    assert half != full
    assert half == pytest.approx(full, rel=0.02)
    first = [logged(folder, "conditions.jsonl")[:4] for folder in (tmp_path / "run", whole[0])]
    assert first[0] == first[1], "heads are measured in float64 all the same"
