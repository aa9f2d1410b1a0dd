"""The recipe ``listops``: its parts, its published protocol, and a run."""

import dataclasses
import json

import pytest
import torch

from conditioned_attention.experiments.data.lra.listops import ListOpsTrees
from conditioned_attention.experiments.models.lra_encoder import LRAEncoder
from conditioned_attention.experiments.recipes.long_range_arena import ListOps
from conditioned_attention.experiments.recipes.registry import settings_of
from conditioned_attention.experiments.training.schedule import build_schedule
from tests.test_cli import call

TREES = ListOpsTrees(longer_than=4, shorter_than=33, max_depth=4)


def tiny(folder, **changes):
    model = LRAEncoder(length=32, hidden_size=16, mlp_size=16, landmarks=8, convolution=3)
    sizes = {"samples": 60, "eval_samples": 20, "test_samples": 30}
    return ListOps(**{**sizes, "trees": TREES, "model": model, "cache_dir": folder, **changes})


def test_the_published_rates():
    """Of OneCycleLR by hand: up from max / 25 in 1,000 steps, and down to 4e-10; the first beta goes the other way."""
    training = ListOps().training
    assert training.full_steps(96_000) == 5_000
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=training.lr)
    schedule = build_schedule(optimizer, training, 5_000)
    rates, betas = [], []
    for _ in range(5_000):
        rates.append(optimizer.param_groups[0]["lr"])
        betas.append(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
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
    assert rows[-1]["floor_share"] < 1, "condition numbers of some heads are measured"
