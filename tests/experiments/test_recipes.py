"""The list of recipes, and what their settings say was run."""

import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from conditioned_attention.experiments.commands import RecipeTraining, compare_recipe
from conditioned_attention.experiments.recipes.image_folder import ImageFolder
from conditioned_attention.experiments.recipes.recipe import Recipe
from conditioned_attention.experiments.recipes.registry import RECIPES, default_recipe, recipe_class, settings_of
from conditioned_attention.experiments.recipes.small_images import FashionMNIST
from conditioned_attention.experiments.training.settings import Training
from tests.experiments.tiny import Tiny

OLD_TRAINING = {
    "epochs": 10, "tokens": None, "seconds": None, "batch_size": 128, "accumulation": 1, "lr": 0.001,
    "schedule": "cosine", "warmup": 0.1, "final_lr": 0.01, "weight_decay": 0.05, "clip": 1.0, "precision": "no",
    "ema": None, "evaluate_every": 1, "monitor_every": 1,
}  # fmt: skip


def test_where_data_lie_is_no_setting():
    """To the letter what version 0.1 wrote, so that its folders go on."""
    assert settings_of(FashionMNIST(Path("elsewhere"))) == {
        "recipe": "fashion_mnist",
        "train_limit": None,
        "model": {
            "library": "transformers", "patch_size": 4, "hidden_size": 128, "layers": 6, "heads": 8, "mlp_ratio": 4,
        },
        "training": OLD_TRAINING,
    }  # fmt: skip
    one, two = ImageFolder(Path("a"), max_unreadable=3, cache_dir=Path("b")), ImageFolder(Path("c"))
    assert settings_of(one) == settings_of(two)
    assert settings_of(one) != settings_of(dataclasses.replace(two, image_size=64))


def test_every_recipe_is_a_frozen_dataclass():
    for name in RECIPES:
        cls = recipe_class(name)
        assert dataclasses.is_dataclass(cls)
        assert cls.__dataclass_params__.frozen
        default = default_recipe(name)
        assert (default is None) == (name == "image_folder")
        assert default is None or isinstance(default.training, Training)
        assert callable(cls.task)
    assert Recipe
    with pytest.raises(ValueError, match="recipe 'imagenet' is unknown; valid are digits, "):
        recipe_class("imagenet")


def test_commands_without_a_recipe_import_none():
    code = """
import sys
from conditioned_attention.cli import main
try:
    main(["env"])
except SystemExit as ended:
    assert not ended.code
from conditioned_attention.experiments.recipes.registry import RECIPES
found = [f for f, _ in RECIPES.values() if f"conditioned_attention.experiments.recipes.{f}" in sys.modules]
assert not found, found
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@dataclasses.dataclass(frozen=True)
class Counted(Tiny):
    """Counts how often its data are read."""

    built: list = dataclasses.field(default_factory=list, compare=False)

    def task(self, *, tuning=False):
        self.built.append(tuning)
        return super().task(tuning=tuning)


@pytest.mark.filterwarnings("ignore:.*widen it")
def test_a_task_is_built_once_a_process(tmp_path):
    """2 variants × 2 seeds × 2 rates, and the cost of each variant."""
    recipe = Counted(Training(epochs=1, batch_size=30, monitor_every=0))
    compare_recipe(recipe, ["baseline", "head_rmsnorm"], 2, tmp_path, tune=(1e-3, 2e-3), progress=False)
    assert sorted(recipe.built) == [False, True]


def test_a_worker_reads_the_data_itself(tmp_path):
    training = RecipeTraining(Tiny(), tmp_path)
    before = len(pickle.dumps(training))
    assert training.task is training.task
    assert len(pickle.dumps(training)) == before
