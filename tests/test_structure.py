"""The shape of the package: what it imports, which way the arrows point, and that its examples run."""

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import conditioned_attention
from conditioned_attention import conversion, experiments, measure
from conditioned_attention.functional import IMPLEMENTATIONS
from conditioned_attention.measure import plots
from tests import structure

SOURCE = Path(conditioned_attention.__file__).parent

# Each floor may import what stands below it; within a floor the drawing in arrows.txt says what is allowed.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"bench", "inspection"},
    {"experiments"},
    {"calibration"},
    {"conversion", "measure", "environment"},
    {"sites"},
    {"modules", "varlen"},
    {"functional"},
    {"attention", "controls", "d_optimal"},
    {"storage", "profiling"},
    {
        "preconditioner",
        "reference",
        "spectral",
        "choices",
        "_command_line",
        "_interrupt",
        "_on_import",
        "_streams",
        "_torch",
        "_warnings",
    },
    {"_precision"},
]
EXPERIMENTS = [
    {"commands", "exported"},
    {"planning", "trained"},
    {"recipes"},
    {"training", "report"},
    {"tasks", "runs"},
    {"data", "models", "variants", "evidence"},
]


def upward(modules, floors, part):
    """The arrows that do not point down from one floor to another, by the part of a module's name that names a room."""
    level = {name: i for i, floor in enumerate(floors) for name in floor}
    found = {(room(module, part), room(target, part)) for module, targets in modules.items() for target in targets}
    unknown = {name for arrow in found for name in arrow if name is not None} - level.keys()
    assert not unknown, f"rooms without a floor: {unknown}"
    return {(a, b) for a, b in found if None not in (a, b) and a != b and level[a] >= level[b]}


def room(module, part):
    names = module.split(".")
    return names[part] if part == 0 or (names[0] == "experiments" and len(names) > part) else None


def test_no_arrow_is_new():
    drawn, now = set(structure.DRAWING.read_text().splitlines()), set(structure.drawing().splitlines())
    assert now == drawn, "the arrows have changed: if that is meant, python -m tests.structure draws them anew"


def test_there_is_no_circle():
    modules = structure.arrows()
    assert "attention.fused.attend" in modules["functional"], "the walk found nothing"
    assert structure.circle(structure.between_rooms(modules)) is None
    assert structure.circle(modules) is None


def test_arrows_point_down():
    modules = structure.arrows()
    assert not upward(modules, FLOORS, 0)
    assert not upward(modules, EXPERIMENTS, 1)


def test_a_circle_and_an_arrow_upwards_are_seen():
    there_and_back = {"experiments.data.scan": {"cli"}, "cli": {"experiments.runs.run", "experiments.data.scan"}}
    assert structure.circle(there_and_back) is not None
    assert upward(there_and_back, FLOORS, 0) == {("experiments", "cli")}
    assert upward({"experiments.data.scan": {"experiments.tasks.task"}}, EXPERIMENTS, 1) == {("data", "tasks")}


def test_implementations_do_not_import_each_other():
    modules = structure.arrows()
    for name in IMPLEMENTATIONS:
        own = [module for module in modules if f"{module}.".startswith(f"attention.{name}.")]
        assert own
        for other in set(IMPLEMENTATIONS) - {name}:
            assert not any(
                f"{target}.".startswith(f"attention.{other}.") for module in own for target in modules[module]
            )


@pytest.mark.slow
def test_importing_costs_what_torch_costs():
    """Beyond torch and the standard library nothing is imported, and none of torch's slow parts."""
    code = """
import sys
import torch
before = set(sys.modules)
import conditioned_attention
new = {name for name in set(sys.modules) - before if not name.startswith("conditioned_attention")}
print(sorted(name for name in new if name.partition(".")[0] not in (*sys.stdlib_module_names, "torch")))
assert "torch._dynamo" not in sys.modules and "torch._inductor" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_every_public_name_has_a_docstring_and_is_exported():
    for name in conditioned_attention.__all__:
        assert getattr(conditioned_attention, name).__doc__


MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages([str(SOURCE)], "conditioned_attention.")
    if not module.name.endswith("cli") and "attention.triton" not in module.name
)


PUBLIC = {
    f"{thing.__module__}.{name}"
    for package in (conditioned_attention, conversion, measure, plots, experiments)
    for name in package.__all__
    if callable(thing := getattr(package, name)) and inspect.getdoc(thing)
}


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    """Those of public names as a reader has them, who imports what they use: without the names of their module."""
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    tests = doctest.DocTestFinder(exclude_empty=False).find(importlib.import_module(name))
    for test in tests:
        if test.name in PUBLIC:
            assert test.examples, f"{test.name} has no example"
            test.globs = {"__name__": "__main__"}
        if test.examples:  # a run of none takes a millisecond
            assert runner.run(test).failed == 0
