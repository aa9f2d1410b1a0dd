"""The list of recipes, and what their settings say was run."""

import dataclasses
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from conditioned_attention.experiments import compare
from conditioned_attention.experiments.commands import RecipeTraining, compare_recipe
from conditioned_attention.experiments.recipes.image_folder import ImageFolder
from conditioned_attention.experiments.recipes.recipe import Recipe
from conditioned_attention.experiments.recipes.registry import (
    RECIPES,
    default_recipe,
    recipe_class,
    recipe_of,
    settings_of,
)
from conditioned_attention.experiments.recipes.small_images import Digits
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.storage.settings import places_of
from tests.experiments.loops import scores
from tests.experiments.tiny import Tiny
from tests.test_cli import call

OLD_TRAINING = {
    "epochs": 10, "tokens": None, "seconds": None, "batch_size": 64, "accumulation": 1, "lr": 0.001,
    "schedule": "cosine", "warmup": 0.1, "final_lr": 0.01, "weight_decay": 0.05, "clip": 1.0, "precision": "no",
    "ema": None, "evaluate_every": 1, "monitor_every": 1,
}  # fmt: skip
OLD_VIT = {"library": "transformers", "patch_size": 2, "hidden_size": 64, "layers": 6, "heads": 8, "mlp_ratio": 4}
OLD_GPT = {"context": 128, "hidden_size": 128, "layers": 4, "heads": 4, "dropout": 0.0}
OLD = {
    "digits": {"model": OLD_VIT, "training": {**OLD_TRAINING, "epochs": 24}},
    "fashion_mnist": {
        "train_limit": None,
        "model": {**OLD_VIT, "patch_size": 4, "hidden_size": 128},
        "training": {**OLD_TRAINING, "batch_size": 128},
    },
    "image_folder": {
        "eval_split": None, "image_column": None, "label_column": None, "image_size": 224, "augment": "light",
        "timm_model": None,
        "model": {**OLD_VIT, "patch_size": 16, "hidden_size": 384, "layers": 12, "heads": 6},
        "training": {**OLD_TRAINING, "epochs": 100, "lr": 0.0005},
    },
    "next_byte": {
        "text": "files", "eval_windows": None, "model": OLD_GPT,
        "training": {**OLD_TRAINING, "epochs": 8, "batch_size": 32, "lr": 0.002, "weight_decay": 0.1},
    },
}  # fmt: skip
PLACES = {
    "fashion_mnist": {"data_dir": Path("elsewhere")},
    "image_folder": {"data_dir": Path("a"), "max_unreadable": 3, "cache_dir": Path("b")},
    "next_byte": {"text": "files", "path": Path("novel.txt"), "max_unreadable": 0},
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_comes_back_from_its_settings_and_places(name):
    places = {"data_dir": Path("/a")} if "data_dir" in {f.name for f in dataclasses.fields(recipe_class(name))} else {}
    recipe = recipe_class(name)(**places)
    betas = dataclasses.replace(recipe.training, betas=(0.9, 0.98), max_steps=3)
    changed = [recipe, dataclasses.replace(recipe, training=betas)]
    if name in OLD:  # a value that is left out of what is written, and not the default
        changed.append(dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, init="library")))
    for one in changed:
        stored = json.loads(json.dumps([settings_of(one), places_of(one)]))
        assert recipe_of(*stored) == one
    for changes in ({"nothing": 1}, {"training": {"batch_size": 64}}):
        with pytest.raises(ValueError, match="of this version"):
            recipe_of(stored[0] | changes, stored[1])


@pytest.mark.parametrize("name", OLD)
def test_where_data_lie_is_no_setting(name):
    """To the letter what version 0.1 wrote, so that its folders go on; but the start is another since, and says so."""
    recipe = recipe_class(name)(**PLACES.get(name, {}))
    assert settings_of(recipe) == {"recipe": name, **OLD[name], "model": {**OLD[name]["model"], "init": "width"}}
    as_then = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, init="library"))
    assert settings_of(as_then) == {"recipe": name, **OLD[name]}
    other = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, lr=1.0))
    assert settings_of(other) != settings_of(recipe)


def test_every_recipe_is_a_frozen_dataclass():
    for name in RECIPES:
        cls = recipe_class(name)
        assert dataclasses.is_dataclass(cls)
        assert cls.__dataclass_params__.frozen
        default = default_recipe(name)
        assert (default is None) == (cls is ImageFolder)
        assert default is None or isinstance(default.training, Training)
        assert callable(cls.task)
    assert Recipe
    with pytest.raises(ValueError, match="recipe 'imagenet' is unknown; valid are digits, "):
        recipe_class("imagenet")


WITHOUT_A_RECIPE = """
import sys
from conditioned_attention.cli import main
from conditioned_attention.experiments.recipes.registry import RECIPES
def call(*arguments):
    try:
        main(list(arguments))
    except SystemExit as ended:
        assert not ended.code, (arguments, ended.code)
    found = [f for f, _ in RECIPES.values() if f"conditioned_attention.experiments.recipes.{f}" in sys.modules]
    assert not found, (arguments, found)
call("report", sys.argv[1])
call("inspect", "vit_tiny_patch16_224", "--structure")
print("env:")
call("env")
"""


@pytest.mark.slow
def test_commands_without_a_recipe_import_none(tmp_path):
    compare(scores, seeds=1, folder=tmp_path, progress=False)
    command = [sys.executable, "-c", WITHOUT_A_RECIPE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout.partition("env:\n")[2])
    assert data["implementations"]["composed"] == "available"
    assert data["torch"]
    assert data["devices"][0] == "cpu"


@dataclasses.dataclass(frozen=True)
class Counted(Tiny):
    """Counts how often its data are read."""

    built: list = dataclasses.field(default_factory=list, compare=False)

    def task(self, *, tuning=False):
        self.built.append(tuning)
        return super().task(tuning=tuning)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*widen it")
def test_a_task_is_built_once_a_process(tmp_path):
    """2 variants × 2 seeds × 2 rates, and the cost of each variant."""
    recipe = Counted(Training(epochs=1, batch_size=30, monitor_every=0))
    compare_recipe(recipe, ["baseline", "head_rmsnorm"], 2, tmp_path, tune=(1e-3, 2e-3), progress=False)
    assert sorted(recipe.built) == [False, True]


def test_tuning_has_no_start_for_each_variant_and_seed(tmp_path):
    recipe = Tiny(Training(epochs=1, batch_size=30, start_from=str(tmp_path / "{variant}" / "{seed}")))
    with pytest.raises(ValueError, match=r"tune trains with seeds of its own, for which there is none"):
        compare_recipe(recipe, ["baseline"], 1, tmp_path / "compared", tune=(1e-3,), progress=False)
    assert not (tmp_path / "compared").exists()


def test_a_run_of_the_command_line_reads_its_data_once(tmp_path, monkeypatch):
    built, task = [], Digits.task
    monkeypatch.setattr(Digits, "task", lambda self, **kwargs: built.append(kwargs) or task(self, **kwargs))
    small = ["--layers", "1", "--hidden-size", "16", "--library", "timm", "--epochs", "1", "--batch-size", "256"]
    assert call("train", "digits", "--folder", str(tmp_path), *small) == 0
    assert built == [{}]


def test_a_worker_reads_the_data_itself(tmp_path):
    training = RecipeTraining(Tiny(), tmp_path)
    before = len(pickle.dumps(training))
    assert training.task is training.task
    assert len(pickle.dumps(training)) < before + 500, "what the data are goes along, and not the data"
