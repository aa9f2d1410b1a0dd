"""The recipes by name: the one list of them.  A recipe's file is imported when the recipe is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from conditioned_attention.experiments.recipes.recipe import Recipe
from conditioned_attention.storage.settings import from_plain, plain

# name, also on the command line -> file beside this one, and class in it
RECIPES = {
    "digits": ("small_images", "Digits"),
    "fashion_mnist": ("small_images", "FashionMNIST"),
    "emoji": ("emoji", "Emoji"),
    "image_folder": ("image_folder", "ImageFolder"),
    "vit_b": ("imagenet", "ViTB"),
    "vit_b_original": ("imagenet", "ViTBOriginal"),
    "deit_b": ("imagenet", "DeiTB"),
    "swin_b": ("imagenet", "SwinB"),
    "xcit_s12": ("imagenet", "XCiTS12"),
    "xcit_m24": ("imagenet", "XCiTM24"),
    "davit_b": ("imagenet", "DaViTB"),
    "volo_d1": ("imagenet", "VOLOD1"),
    "detection_xcit_s12": ("detection", "DetectionXCiTS12"),
    "detection_xcit_m24": ("detection", "DetectionXCiTM24"),
    "composed_scenes": ("detection", "ComposedScenes"),
    "next_byte": ("next_byte", "NextByteRecipe"),
    "gpt": ("decoders", "GPTRecipe"),
    "llama": ("decoders", "LlamaRecipe"),
    "fine_tune": ("fine_tune", "FineTune"),
    "crammed_bert": ("masked_language", "CrammedBertRecipe"),
    "small_bert": ("masked_language", "SmallBert"),
    "glue": ("glue", "GlueRecipe"),
    "labelled_text": ("labelled_text", "LabelledTextRecipe"),
    "recall": ("recall", "RecallRecipe"),
    "burgers": ("burgers", "Burgers"),
    "listops": ("long_range_arena", "ListOps"),
    "lra_image": ("lra_images", "LRAImage"),
    "lra_fashion": ("lra_images", "LRAFashion"),
    "pathfinder32": ("lra_images", "Pathfinder32"),
    "lra_text": ("lra_texts", "LRAText"),
    "lra_retrieval": ("lra_texts", "LRARetrieval"),
    "in_context_regression": ("in_context_regression", "InContextRegressionRecipe"),
}


def recipe_class(name: str) -> type[Any]:
    """The settings class of the recipe with that name; raises ValueError for one that is unknown."""
    if name not in RECIPES:
        raise ValueError(f"recipe {name!r} is unknown; valid are {', '.join(RECIPES)}")
    file, cls = RECIPES[name]
    found: type[Any] = getattr(import_module(f"{__package__}.{file}"), cls)
    return found


def default_recipe(name: str) -> Any:
    """The recipe as it is without options; None if it cannot be without any, such as one that needs a folder."""
    cls = recipe_class(name)
    parameters = dataclasses.fields(cls)
    needed = [f for f in parameters if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    return None if needed else cls()


def name_of(recipe: Recipe) -> str:
    """As on the command line; of a recipe that is not in the list, its class."""
    cls = type(recipe)
    place = cls.__module__.rpartition(".")[2], cls.__name__
    return next((name for name, known in RECIPES.items() if known == place), cls.__name__)


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """What sets a recipe's numbers, as plain data with its name: not where the data lie."""
    return {"recipe": name_of(recipe), **plain(recipe)}


def recipe_of(settings: Mapping[str, Any], places: Mapping[str, Any]) -> Recipe:
    """The recipe that `settings_of` has described, with its data in these places; raises ValueError if it is not known
    here by that name, or has other settings in this version."""
    data = {name: value for name, value in settings.items() if name != "recipe"}
    try:
        recipe: Recipe = from_plain(recipe_class(settings["recipe"]), {**data, **places})
    except TypeError as error:
        raise ValueError(f"recipe {settings['recipe']!r} of this version has other settings: {error}") from error
    if settings_of(recipe) != settings:
        raise ValueError(f"recipe {settings['recipe']!r} of this version does not mean the same by its settings")
    return recipe
