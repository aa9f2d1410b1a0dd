"""What a user whose torchvision does not fit torch is told, and that nobody else is told anything."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conditioned_attention import environment

COMMANDS = """
import sys
from conditioned_attention.cli import main

for arguments in (line.split() for line in sys.argv[1:]):
    try:
        main(arguments)
    except SystemExit as ended:
        print("exit", ended.code, flush=True)
        print("---", flush=True)
        print("---", file=sys.stderr, flush=True)
"""
WITH_TORCH_ALONE = """
import sys
import warnings

MISSING = "accelerate matplotlib numpy rich scipy sklearn timm transformers triton tyro".split()

class Missing:
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
warnings.filterwarnings("ignore", module="torch")  # torch itself has a word about NumPy
import torch
import conditioned_attention as ca

assert "torch._dynamo" not in sys.modules, "nothing heavy is loaded on the way"
x = torch.randn(1, 2, 5, 8, requires_grad=True)
assert ca.preconditioned_attention(x, x, x).norm(dim=-1).allclose(torch.ones(1, 2, 5))
ca.preconditioned_attention(x, x, x, rows="weights").sum().backward()
for call in (ca.explain, lambda x, *_: [ca.condition_number(x), ca.log_complexity(x), ca.precondition_rows(x)]):
    str(call(x, x, x))
layer = torch.nn.TransformerEncoderLayer(4, 2, 4)
layer.self_attn = ca.MultiheadAttention(4, 2)
layer(torch.randn(3, 1, 4)).sum().backward()
model = torch.nn.Transformer(4, 2, 1, 1, 4)
print(len(ca.precondition(model).converted), "converted")
str(ca.conditioning(model)), str(ca.restore(model))
class OwnAttention(torch.nn.Linear): pass
try:
    ca.precondition(torch.nn.Sequential(OwnAttention(4, 2)))
except ValueError as error:
    assert "not in the table" in str(error)
ca.restore(torch.nn.Linear(2, 2)), ca.conditioning(torch.nn.Linear(2, 2))

from conditioned_attention.experiments import compare
from conditioned_attention.measure.plots import plot_spectra

for call in (lambda: compare(print), lambda: plot_spectra(torch.eye(3))):
    try:
        call()
    except ModuleNotFoundError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs code beside a torchvision whose import fails as that for another torch does; gives both outputs."""
    place = tmp_path_factory.mktemp("site")
    (place / "torchvision").mkdir()
    (place / "torchvision/__init__.py").write_text(
        'raise RuntimeError("operator torchvision::nms does not exist\\nat")'
    )
    (place / "torchvision-0.19.0+cpu.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.19.0+cpu\n"
    (place / "torchvision-0.19.0+cpu.dist-info/METADATA").write_text(metadata)
    paths = [str(place), str(Path(environment.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]

    def run(code, *arguments):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            cwd=place, capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    return run


@pytest.mark.slow
def test_a_torchvision_for_another_torch_is_one_line_with_the_command_that_mends_it(run):
    commands = [
        "env",
        "train digits --epochs 1",
        "train digits --epochs 1 --library timm",
        "train digits --dry-run",
        "train next_byte",
        "compare digits --epochs 1 --seeds 1 --folder compared",
        "inspect vit_tiny_patch16_224",
        "bench step --models vit_b --rounds 1",
    ]
    out, err = run(COMMANDS, *commands)
    outputs, errors = (text.split("---\n")[:-1] for text in (out, err))
    assert len(outputs) == len(errors) == len(commands)
    (problem,) = json.loads(outputs[0].removesuffix("exit 0\n"))["problems"]
    assert problem == (
        f"torchvision 0.19.0+cpu does not fit torch {torch.__version__} (operator torchvision::nms does not exist); "
        f"install a pair that was built together: pip install --force-reinstall {environment._pair(torch.__version__)}"
    )
    assert errors[0] == ""
    for command, output, error in zip(commands[1:], outputs[1:], errors[1:]):
        assert (error, output) == (f"error: {problem}\n", "exit 2\n"), command


def test_torch_alone_is_enough_without_a_word_and_what_needs_more_says_so_in_a_line(run):
    """Also beside a torchvision that does not fit: nothing but torch is needed for what the core does."""
    out, err = run(WITH_TORCH_ALONE)
    assert err == ""
    assert out.splitlines() == [
        "3 converted",
        "compare needs: pip install 'conditioned-attention[experiments]' (No module named 'rich')",
        "drawing needs: pip install 'conditioned-attention[plots]' (No module named 'matplotlib')",
    ]


@pytest.mark.parametrize(
    ("torch_version", "asked_for"),
    [
        ("2.14.1", "torch==2.14.1 'torchvision==0.29.*'"),
        ("2.14.1+cu130", "torch==2.14.1 'torchvision==0.29.*'"),
        ("2.14.1+cpu", "torch==2.14.1 'torchvision==0.29.*' --index-url https://download.pytorch.org/whl/cpu"),
        ("2.15.0a0+git0123abc", "--pre torch torchvision"),
        ("2.15.0.dev20261101+cpu", "--pre torch torchvision"),
    ],
)
def test_the_pair_that_fits(torch_version, asked_for):
    assert environment._pair(torch_version) == asked_for


def test_a_machine_without_torchvision_or_with_one_that_fits_has_no_problem(monkeypatch):
    assert environment.torchvision_misfit() is None
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setattr(environment, "_version", lambda package: "not installed")
    assert environment.torchvision_misfit.__wrapped__() is None
    with environment.needs("timm"):
        pass


def test_an_error_without_words_has_its_name(monkeypatch):
    def fails(name):
        raise AttributeError

    monkeypatch.setattr(environment, "import_module", fails)
    monkeypatch.setattr(environment, "_version", lambda package: "0.1")
    assert "does not fit torch" in environment.torchvision_misfit.__wrapped__()
    assert "(AttributeError)" in environment.torchvision_misfit.__wrapped__()
