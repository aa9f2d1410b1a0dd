"""The experiments by name, and how one is run, compared and measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from conditioned_attention.experiments.compare import Comparison, compare, run_folder
from conditioned_attention.experiments.cost import measure_cost
from conditioned_attention.experiments.image_folder import ImageFolder
from conditioned_attention.experiments.images import Digits, FashionMNIST
from conditioned_attention.experiments.task import Task
from conditioned_attention.experiments.training import Training, train
from conditioned_attention.experiments.variants import Variant, find_variants


class Recipe(Protocol):
    """A typed, frozen dataclass: everything that a run depends on but its variant and seed."""

    @property
    def training(self) -> Training: ...

    def task(self, *, tuning: bool = False) -> Task:
        """With ``tuning`` a fixed tenth of the training set is the evaluation set, and the real one is not touched."""


RECIPES: dict[str, type[Any]] = {"digits": Digits, "fashion_mnist": FashionMNIST, "image_folder": ImageFolder}


@dataclass(frozen=True)
class RecipeTraining:
    """``train(variant, seed)`` for `compare`: runs of a recipe, each in its folder, resumed from its checkpoints."""

    recipe: Recipe
    folder: Path

    @property
    def evaluations(self) -> int:
        """How many rows a run yields."""
        training = self.recipe.training
        return -(-training.epochs // training.evaluate_every)

    def __call__(self, variant: Variant, seed: int) -> Iterator[dict[str, Any]]:
        path = run_folder(self.folder, variant.name, seed)
        return train(self.recipe.task(), self.recipe.training, variant, seed, path)


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """What sets a recipe's numbers, as plain data with its name: not where data lie or how often files are written."""
    name = next((name for name, cls in RECIPES.items() if type(recipe) is cls), type(recipe).__name__)
    values = dataclasses.asdict(recipe)  # type: ignore[call-overload]
    for key in ("data_dir", "cache_dir", "max_unreadable"):
        values.pop(key, None)
    for key in ("log_every", "checkpoint_seconds"):
        del values["training"][key]
    return {"recipe": name, **values}


def compare_recipe(
    recipe: Recipe,
    variants: Sequence[str | Variant],
    seeds: int | Iterable[int],
    folder: Path,
    *,
    workers: int = 1,
    threads: int = 1,
    cost: bool = True,
    progress: bool = True,
) -> Comparison:
    """`compare` on a recipe, then time and memory of each variant, measured when nothing else runs."""
    chosen = find_variants(variants)
    task = recipe.task()  # missing data is an error before anything starts
    result = compare(
        RecipeTraining(recipe, folder),
        chosen,
        seeds,
        folder=folder,
        workers=workers,
        threads=threads,
        metric=task.metric,
        settings=settings_of(recipe),
        progress=progress,
    )
    if not cost:
        return result
    return dataclasses.replace(result, cost=measure_cost(task, recipe.training, chosen, threads=threads))
