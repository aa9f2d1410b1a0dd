"""Words out of closed sets: every settings class refuses one that it does not know, when it is made."""

import dataclasses
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from transformers import PreTrainedConfig

from conditioned_attention.bench.cases import CASES
from conditioned_attention.choices import check_choices, choices_of
from conditioned_attention.experiments.models.gpt import GPT
from conditioned_attention.experiments.models.vision_transformer import VisionTransformer
from conditioned_attention.experiments.recipes.image_folder import ImageFolder
from conditioned_attention.experiments.recipes.next_byte import NextByteRecipe
from conditioned_attention.experiments.training.settings import Training
from tests import structure

EXAMPLES = {
    "Case": next(iter(CASES.values())),
    "Export": {"folder": Path("."), "output": Path(".")},
    "ImageFolder": {"data_dir": Path(".")},
    "Inspect": {"model": "vit"},
    "Item": {"name": "table1", "paper": "2603.27153", "place": "", "shows": ""},
    "List": {"what": "gpus"},
    "SmallFamily": {"family": "vit"},
    "Reached": {"epoch": None, "n": 0},
    "Row": {"what": "", "recipe": None, "plain": "", "conditioned": ""},
    "SampleOrder": {"order": "stored", "length": 1, "seed": 0, "used": 1},
}


def fields():
    """Every field with a closed set of every dataclass of the library, wherever the set itself stands."""
    found = []
    for name in structure.files():
        if name.startswith(("attention.triton", "__main__")):
            continue
        module = importlib.import_module(f"conditioned_attention.{name}")
        for cls in vars(module).values():
            if isinstance(cls, type) and issubclass(cls, PreTrainedConfig):  # whose fields are transformers'
                continue
            if dataclasses.is_dataclass(cls) and isinstance(cls, type) and cls.__module__ == module.__name__:
                try:
                    found += [(cls, field) for field in choices_of(cls)]
                except NameError:  # it holds what only a type checker imports
                    assert not any("Literal" in str(field.type) for field in dataclasses.fields(cls)), cls
    return found


FIELDS = fields()


def test_the_walk_finds_them():
    found = {(cls.__name__, name) for cls, name in FIELDS}
    assert {("Training", "schedule"), ("VisionTransformer", "library"), ("StepSettings", "device")} <= found
    assert {("ImageFolder", "augment"), ("Inspect", "spectral")} <= found, "of another file, and among other types"


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda x: getattr(x, "__name__", x))
def test_a_wrong_word_is_refused_when_the_object_is_made(cls, name):
    example = EXAMPLES["ImageFolder"] if issubclass(cls, ImageFolder) else EXAMPLES.get(cls.__name__, {})
    good = cls(**example) if isinstance(example, dict) else example
    wrong = ("nonsense",) if isinstance(getattr(good, name), tuple) else "nonsense"
    with pytest.raises(ValueError, match=rf"^{name}='nonsense' is unknown; valid are ['\d]"):
        dataclasses.replace(good, **{name: wrong})


def test_what_earlier_versions_took_in_silence():
    """They trained the cosine, built Hugging Face's model and read the standard library."""
    for make in (
        lambda: Training(schedule="linear"),
        lambda: VisionTransformer(library="torchvision"),
        lambda: NextByteRecipe(text="wikipedia"),
        lambda: VisionTransformer(heads=7),
        lambda: GPT(heads=3),
    ):
        with pytest.raises(ValueError, match=r"valid are|must divide|heads divide"):
            make()


@dataclass(frozen=True)
class Both:
    one: Literal["a", "b"] | None = None
    several: tuple[Literal["a", "b"], ...] = ()
    number: float | Literal["auto"] | None = None
    other: int | None = None

    def __post_init__(self):
        check_choices(self)


def test_none_and_tuples():
    assert Both("a", ("b", "a"), 7, 7).several == ("b", "a")
    assert Both(number=0.5).number == 0.5
    with pytest.raises(ValueError, match=r"one='c' is unknown; valid are 'a', 'b', None"):
        Both("c")
    with pytest.raises(ValueError, match=r"several='c' is unknown; valid are 'a', 'b'$"):
        Both(several=("a", "c"))
    with pytest.raises(ValueError, match=r"number='much' is unknown; valid are 'auto', None, float, int$"):
        Both(number="much")
