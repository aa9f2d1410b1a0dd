"""A folder that version 0.1 (commit df2d7f4) has written: read, reported and gone on with."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from conditioned_attention.experiments import commands
from conditioned_attention.experiments.commands import compare_recipe
from conditioned_attention.experiments.evidence.tables import table
from conditioned_attention.experiments.models.vision_transformer import VisionTransformer
from conditioned_attention.experiments.recipes.small_images import Digits
from conditioned_attention.experiments.report.write import read_subjects, write_reports
from conditioned_attention.experiments.runs.gather import gather
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.storage.files import read_json

RECIPE = Digits(
    model=VisionTransformer(hidden_size=16, layers=1, heads=2, init="library"),
    training=Training(epochs=1, monitor_every=0),
)


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(Path(__file__).with_name("of_0_1"), tmp_path / "of_0_1"))


def test_it_is_reported_with_the_numbers_it_had(folder):
    before = read_json(folder / "results.json")
    found = gather(folder)
    assert [row.variant for row in found.summary()] == ["baseline", "preconditioned"]
    assert found.settings == before["settings"]
    header, rows = table(found.summary())
    assert [dict(zip(header, row)) for row in rows] == [{k: row[k] for k in header} for row in before["table"]]
    assert write_reports(read_subjects([folder]), [folder], None).exists()


def test_what_is_finished_is_not_run_again_and_what_is_missing_is(folder, monkeypatch):
    trained = []
    monkeypatch.setattr(commands, "train", lambda *args: trained.append(args[2:4]) or [{"score": 1.0}])
    compare_recipe(RECIPE, ["baseline", "preconditioned"], 2, folder, cost=False, progress=False)
    assert trained == []
    compare_recipe(RECIPE, ["baseline"], 3, folder, cost=False, progress=False)
    assert [(variant.name, seed) for variant, seed in trained] == [("baseline", 2)]


def test_other_settings_are_refused_by_name(folder):
    other = Digits(RECIPE.model, Training(epochs=1, monitor_every=0, optimizer="sgd"))
    with pytest.raises(ValueError, match=r"training\.optimizer: as in earlier versions there, sgd now"):
        compare_recipe(other, ["baseline", "preconditioned"], 2, folder, cost=False, progress=False)


def test_a_start_that_it_did_not_know_is_refused_in_one_line(folder, monkeypatch):
    """Its weights started as the library has them, which is not what is done without a word any more."""
    trained = []
    monkeypatch.setattr(commands, "train", lambda *args: trained.append(args[2:4]) or [{"score": 1.0}])
    other = dataclasses.replace(RECIPE, model=dataclasses.replace(RECIPE.model, init="width"))
    assert other.model == VisionTransformer(hidden_size=16, layers=1, heads=2)
    words = r"\(model\.init: as in earlier versions there, width now\); choose another folder$"
    with pytest.raises(ValueError, match=rf"^{folder}/runs/baseline/seed-0 holds a run of other settings {words}"):
        compare_recipe(other, ["baseline"], 3, folder, cost=False, progress=False)
    with pytest.raises(ValueError, match=rf"^{folder} holds runs of other settings {words}"):
        compare_recipe(other, ["head_l2"], 1, folder, cost=False, progress=False)
    assert trained == []


def test_the_start_is_written_unless_it_is_what_earlier_versions_did(tmp_path):
    compare_recipe(RECIPE, ["baseline"], 1, tmp_path / "a", cost=False, progress=False)
    assert "init" not in read_json(tmp_path / "a" / "settings.json")["model"]
    wide = dataclasses.replace(RECIPE, model=dataclasses.replace(RECIPE.model, init="width"))
    compare_recipe(wide, ["baseline"], 1, tmp_path / "b", cost=False, progress=False)
    assert read_json(tmp_path / "b" / "settings.json")["model"]["init"] == "width"
    with pytest.raises(ValueError, match=r"model\.init: width there, as in earlier versions now"):
        compare_recipe(RECIPE, ["baseline"], 1, tmp_path / "b", cost=False, progress=False)
