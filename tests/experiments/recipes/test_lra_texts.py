"""The recipes of texts of the Long Range Arena: their sets, their protocol and a run."""

import dataclasses

import pytest

from conditioned_attention.experiments.models.lra_encoder import LRAEncoder
from conditioned_attention.experiments.recipes.lra_texts import LRAText
from tests.experiments.data.lra.files import write_reviews
from tests.experiments.recipes.test_lra_images import protocol

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
    search = dataclasses.replace(recipe, samples=30).task(tuning=True)
    assert [len(search.train_data()), len(search.eval_data()), search.test_data()] == [27, 3, None]
    with pytest.raises(ValueError, match=r"cut must be between 1 and model\.length=64, got 65"):
        dataclasses.replace(recipe, cut=65)
