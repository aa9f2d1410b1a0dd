"""A folder that version 0.1 (commit df2d7f4) has written: read, reported and gone on with."""

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
    model=VisionTransformer(hidden_size=16, layers=1, heads=2), training=Training(epochs=1, monitor_every=0)
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
    with pytest.raises(ValueError, match=r"training\.optimizer: None there, sgd now"):
        compare_recipe(other, ["baseline", "preconditioned"], 2, folder, cost=False, progress=False)
