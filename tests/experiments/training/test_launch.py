"""What the environment says of a launcher: believed where it is whole, and said where it may be left over."""

from types import SimpleNamespace

import pytest

from conditioned_attention.environment import is_main, world_size
from conditioned_attention.experiments.commands import train_recipe
from conditioned_attention.experiments.training import launch
from conditioned_attention.experiments.training.launch import Launch
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from tests.experiments.light import Light


def test_processes_agree_on_a_number_as_it_is():
    """A clock of months is exact to the step: float32 has seconds from 97 days on."""
    two = SimpleNamespace(num_processes=2, device="cpu", gather=lambda value: value)
    assert launch.agree(two, 2.0**23 + 0.1) == 2.0**23 + 0.1


@pytest.mark.parametrize(
    ("variables", "main"),
    [
        ({}, True),
        ({"RANK": "3"}, True),  # of no launcher: there is one process
        ({"RANK": "1", "WORLD_SIZE": "1"}, True),
        ({"RANK": "0", "WORLD_SIZE": "2"}, True),
        ({"RANK": "1", "WORLD_SIZE": "2"}, False),
    ],
)
def test_who_keeps_the_files(monkeypatch, variables, main):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_main() == main


@pytest.mark.parametrize("word", ["two", "0", "-1", ""])
def test_a_launcher_that_says_nonsense(monkeypatch, word):
    monkeypatch.setenv("WORLD_SIZE", word)
    with pytest.raises(ValueError, match=f"WORLD_SIZE='{word}' in the environment: a launcher sets a number"):
        world_size()


def test_a_rank_that_is_left_over_loses_no_run(tmp_path, monkeypatch):
    """Before: trained, kept nothing but checkpoints, and blocked the folder."""
    monkeypatch.setenv("RANK", "3")
    rows = []
    path = train_recipe(Light(), VARIANTS["baseline"], 0, folder=tmp_path / "run", show=rows.append)
    assert (path / "result.json").exists()
    assert len(rows) == 2
    monkeypatch.delenv("RANK")
    train_recipe(Light(), VARIANTS["baseline"], 0, folder=tmp_path / "run", show=rows.append)
    assert rows[:2] == rows[2:]


@pytest.fixture
def untold(monkeypatch):
    monkeypatch.setattr(launch, "_told", set())


def test_variables_that_are_left_over_are_said_once(monkeypatch, untold, recwarn):
    Launch().accelerator("no", 1)
    assert len(recwarn) == 0
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # as `accelerate launch` sets for one process
    monkeypatch.setenv("ACCELERATE_DYNAMO_MODE", "default")
    Launch().accelerator("no", 1)
    assert len(recwarn) == 0
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "7")
    with pytest.warns(UserWarning, match="the environment has ACCELERATE_GRADIENT_ACCUMULATION_STEPS=7, from"):
        accelerator = Launch().accelerator("no", 1)
    assert accelerator.gradient_accumulation_steps == 1, "settings count"
    recwarn.clear()
    Launch().accelerator("no", 1)
    assert len(recwarn) == 0
