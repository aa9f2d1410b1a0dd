"""The recipes of texts of the Long Range Arena: their sets, their protocol and a run."""

import dataclasses
import json

import pytest

from conditioned_attention.experiments.models.lra_encoder import LRAEncoder
from conditioned_attention.experiments.recipes.lra_texts import LRARetrieval, LRAText
from tests.experiments.data.lra.files import write_pairs, write_reviews
from tests.experiments.recipes.test_lra_images import protocol
from tests.test_cli import call

TINY = LRAEncoder(length=64, hidden_size=8, mlp_size=8, landmarks=8, convolution=3, layers=1)


def test_the_published_protocol_of_text():
    recipe = LRAText()
    assert protocol(recipe.training) == [20_000, 32, 1, 8_000, 500, 781]
    assert recipe.training.full_steps(25_000) == 20_000
    assert (recipe.cut, recipe.model.length, recipe.dev) == (4_000, 4_096, "test")


def test_the_test_set_chooses_unless_a_tenth_is_held_out(tmp_path):
    write_reviews(tmp_path, per_class=20)
    recipe = LRAText(tmp_path, model=TINY, cut=60)
    task = recipe.task()
    assert task.eval_data().fingerprint() == task.test_data().fingerprint()
    assert [len(task.train_data()), len(task.test_data())] == [40, 40]
    assert task.classes == ["neg", "pos"]
    assert task.notes[-1] == "the test set chooses the weights too, as published; --dev held_out does not let it"
    assert task.build_model()(task.probe()).shape == (8, 2)
    held = dataclasses.replace(recipe, dev="held_out").task()
    assert [len(data) for data in (held.train_data(), held.eval_data(), held.test_data())] == [36, 4, 40]
    assert held.eval_data().fingerprint() == task.train_data().part(36, 4).fingerprint()
    assert not any("chooses" in note for note in held.notes)
    less, ten = dataclasses.replace(recipe, test_samples=10).task(), task.test_data().part(0, 10)
    assert less.test_data().fingerprint() == less.eval_data().fingerprint() == ten.fingerprint()
    search = dataclasses.replace(recipe, samples=30).task(tuning=True)
    assert [len(search.train_data()), len(search.eval_data()), search.test_data()] == [27, 3, None]
    with pytest.raises(ValueError, match=r"cut must be between 1 and model\.length=64, got 65"):
        dataclasses.replace(recipe, cut=65)


def test_the_published_protocol_of_retrieval():
    recipe = LRARetrieval()
    assert protocol(recipe.training) == [30_000, 32, 1, 800, 300, 565]
    assert recipe.training.full_steps(147_086) == 30_000
    assert (recipe.cut, recipe.model.length) == (4_000, 4_096)


def test_pairs_go_through_one_encoder(tmp_path):
    write_pairs(tmp_path)
    recipe = LRARetrieval(tmp_path, model=TINY, cut=64)
    task = recipe.task()
    assert [len(data) for data in (task.train_data(), task.eval_data(), task.test_data())] == [12, 12, 12]
    model = task.build_model().eval()
    assert model.classifier[0].in_features == 4 * 8
    first, second = task.probe()
    assert model(first, second).shape == (8, 2)
    longest = [0, 1, 2, 3, 4, 5, 10, 11]  # these two, and the first of the others
    batch = task.collate(task.eval_data().__getitems__(longest))
    assert (task.logits(model, batch[0]) == model(first, second)).all()
    assert task.tokens_per_sample == 128
    search = dataclasses.replace(recipe, samples=11).task(tuning=True)
    assert [len(search.train_data()), len(search.eval_data()), search.test_data()] == [10, 1, None]
    assert len(dataclasses.replace(recipe, test_samples=5).task().test_data()) == 5
    (tmp_path / "new_aan_pairs.eval.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"new_aan_pairs\.eval\.tsv is missing: the release"):
        recipe.task()


def test_a_run_on_pairs(tmp_path):
    write_pairs(tmp_path / "data")
    sizes = {
        "length": 64, "cut": 64, "hidden-size": 8, "mlp-size": 8, "landmarks": 8, "max-steps": 4, "batch-size": 4,
        "warmup-steps": 2, "evaluate-steps": 2, "data-dir": tmp_path / "data",
    }  # fmt: skip
    words = [word for name, number in sizes.items() for word in (f"--{name}", str(number))]
    folder = tmp_path / "run"
    assert call("train", "lra_retrieval", "--variant", "preconditioned", "--folder", str(folder), *words) == 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    assert 0 <= rows[-1]["test_score"] <= 100
    assert rows[-1]["floor_share"] <= 1, "condition numbers of some heads are measured"
