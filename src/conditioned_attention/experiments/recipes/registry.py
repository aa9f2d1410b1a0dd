"""The recipes by name."""

from __future__ import annotations

from typing import Any

from conditioned_attention.experiments.recipes.image_folder import ImageFolder
from conditioned_attention.experiments.recipes.next_byte import NextByteRecipe
from conditioned_attention.experiments.recipes.recipe import Recipe
from conditioned_attention.experiments.recipes.small_images import Digits, FashionMNIST
from conditioned_attention.storage.settings import plain

RECIPES: dict[str, type[Any]] = {
    "digits": Digits,
    "fashion_mnist": FashionMNIST,
    "image_folder": ImageFolder,
    "next_byte": NextByteRecipe,
}


def name_of(recipe: Recipe) -> str:
    """As on the command line."""
    return next((name for name, cls in RECIPES.items() if type(recipe) is cls), type(recipe).__name__)


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """What sets a recipe's numbers, as plain data with its name: not where the data lie."""
    return {"recipe": name_of(recipe), **plain(recipe)}
