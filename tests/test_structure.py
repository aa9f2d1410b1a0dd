"""The shape of the package: what it imports, which way the arrows point, and that its examples run."""

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import conditioned_attention
from conditioned_attention.functional import IMPLEMENTATIONS

SOURCE = Path(conditioned_attention.__file__).parent

# Each part may import what stands below it, and itself.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"experiments", "bench", "inspection"},
    {"conversion", "measure", "environment", "storage", "profiling", "_torchvision"},
    {"sites"},
    {"modules", "varlen"},
    {"functional"},
    {"attention", "controls", "d_optimal"},
    {"preconditioner", "reference", "spectral", "_on_import"},
]
LEVEL = {part: i for i, layer in enumerate(LAYERS) for part in layer}
SIDEWAYS = {("bench", "experiments")}


def part_of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("conditioned_attention."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("conditioned_attention."))


def test_arrows_point_one_way():
    found = set()
    for path in SOURCE.rglob("*.py"):
        if path.parent != SOURCE or path.name != "__init__.py":
            found |= {(part_of(path), target) for target in imports(path) if target != part_of(path)}
    assert ("functional", "attention") in found, "the walk found nothing"
    wrong = {(a, b) for a, b in found if LEVEL[a] >= LEVEL[b] and (a, b) not in SIDEWAYS}
    assert not wrong


def test_implementations_do_not_import_each_other():
    for name in IMPLEMENTATIONS:
        text = (SOURCE / "attention" / f"{name}.py").read_text()
        assert not any(other in text for other in IMPLEMENTATIONS if other != name and f"import {other}" in text)


def test_the_core_needs_torch_alone():
    """With everything else made unimportable the public names work, and nothing heavy is loaded on the way."""
    code = """
import sys
for name in ("timm", "transformers", "matplotlib", "triton", "numpy", "scipy", "sklearn", "accelerate", "rich", "tyro"):
    sys.modules[name] = None
import torch
import conditioned_attention as ca
assert "torch._dynamo" not in sys.modules
q = torch.randn(1, 2, 5, 4, requires_grad=True)
ca.preconditioned_attention(q, q, q, rows="weights").sum().backward()
print(ca.explain(q, q, q), ca.condition_number(q), ca.log_complexity(q), ca.precondition_rows(q))
layer = torch.nn.TransformerEncoderLayer(4, 2, 4)
layer.self_attn = ca.MultiheadAttention(4, 2)
layer(torch.randn(3, 1, 4)).sum().backward()
model = torch.nn.Transformer(4, 2, 1, 1, 4)
print(ca.precondition(model), ca.conditioning(model), ca.restore(model))
class OwnAttention(torch.nn.Linear): pass
try:
    ca.precondition(torch.nn.Sequential(OwnAttention(4, 2)))
except ValueError as error:
    print(error)
ca.restore(torch.nn.Linear(2, 2)), ca.conditioning(torch.nn.Linear(2, 2))
from conditioned_attention.experiments.runs import compare
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not in the table" in done.stdout


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


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(importlib.import_module(name), optionflags=options)
    assert result.failed == 0


def test_examples_are_there():
    """The test above passes on modules without examples; these have to have one."""
    for name in (
        "functional",
        "varlen",
        "modules",
        "conversion.convert",
        "measure.numbers.spectra",
        "measure.monitoring.monitor",
        "experiments.runs.compare",
    ):
        module = importlib.import_module(f"conditioned_attention.{name}")
        assert any(test.examples for test in doctest.DocTestFinder().find(module))
