"""What decides whether a class of transformers is on its interface: its source, or byte code where there is none."""

import importlib
from types import SimpleNamespace

import pytest
from torch import nn

from conditioned_attention.sites.transformers import bytecode, source
from conditioned_attention.sites.transformers import interface as on_interface

BASES = on_interface._BASES
TURNS, BRANCHES = "its forward turns from ", "its model file branches on the implementation's name"

# class -> the implementations that it is converted over, and what is said of the others; None: not on the interface
TELLING = {
    "llama.LlamaAttention": (BASES, ""),
    "bert.BertSelfAttention": (BASES, ""),
    "gpt2.GPT2Attention": (("sdpa",), ""),  # asks for "eager" itself, to compute a product in float32
    "sam2.Sam2Attention": (("sdpa", "eager"), TURNS),  # takes "sdpa" in place of flash attention where there is a mask
    "sam2.Sam2MultiScaleAttention": (BASES, ""),  # in the same file, where no name decides
    "qwen2_5_omni.Qwen2_5OmniAudioAttention": (tuple(base for base in BASES if base != "eager"), BRANCHES),
    "qwen2_5_omni.DiTAttention": (tuple(base for base in BASES if base != "eager"), BRANCHES),
    "gemma4.Gemma4VisionAttention": (("eager", *on_interface._FLASH, on_interface.PACKED), BRANCHES),
    "deepseek_v32.DeepseekV32Attention": ((), ""),
    "llama.LlamaMLP": None,
    "yoso.YosoSelfAttention": None,
}


def load(name):
    model, _, cls = name.partition(".")
    return getattr(importlib.import_module(f"transformers.models.{model}.modeling_{model}"), cls)


def verdicts(cls):
    """What is said of a module of this class over each implementation; nothing of it is built."""
    said = {}
    for base in BASES:
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        module.config = SimpleNamespace(**{on_interface.NAME: base})
        said[base] = on_interface.recognise(module)
    return said


@pytest.fixture(params=["source", "byte code"])
def reader(request, monkeypatch):
    on_interface._readings.clear()
    if request.param == "byte code":
        monkeypatch.setattr(source, "read", lambda function: None)
    else:
        monkeypatch.setattr(bytecode, "read", lambda function: pytest.fail("the source is there"))
    yield
    on_interface._readings.clear()


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", TELLING)
def test_telling_classes(name, reader):
    said = verdicts(load(name))
    if TELLING[name] is None:
        assert set(said.values()) == {None}
        return
    converted, reason = TELLING[name]
    assert tuple(base for base, answer in said.items() if isinstance(answer, on_interface.Interface)) == converted
    assert all(said[base].startswith(reason or (TURNS, BRANCHES)) for base in BASES if base not in converted)


FILE = '''
@decorated(
    "sdpa"
)
def judge(config):
    """eager"""
    table = {{}}
    name = "eager"
    {line}
    return config._attn_implementation, table, name


class Attention(nn.Module):
    def forward(self, x):
        return ALL_ATTENTION_FUNCTIONS.get(self.config._attn_implementation, eager_attention_forward)(x)
'''
LINES = {
    'if config._attn_implementation == "eager": table = None': True,
    'if config._attn_implementation in ("flex_attention", "eager"): table = None': True,
    'table.setdefault(config._attn_implementation, "eager")': True,
    'table = table["eager"]': False,
    'table["eager"] = config': False,
    'table: str = "eager"': False,
    'table = "eagerly"': False,
}


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("from_a_file", [True, False])
def test_a_word_that_decides(line, from_a_file, tmp_path):
    """In a file, or in code that was made while the program ran, of which only byte code is left."""
    file, text = tmp_path / "modeling_own.py", FILE.format(line=line)
    file.write_text(text)
    names = {"nn": nn, "ALL_ATTENTION_FUNCTIONS": {}, "decorated": lambda _: lambda f: f, "__name__": __name__}
    exec(compile(text, str(file) if from_a_file else "<string>", "exec"), names)
    assert (source.read(names["Attention"].forward) is not None) == from_a_file
    said = verdicts(names["Attention"])
    assert str(said["eager"]).startswith(BRANCHES) == LINES[line]
    assert isinstance(said["sdpa"], on_interface.Interface)


@pytest.mark.parametrize("now", ["\n\n", "half a line of"])
def test_a_file_that_has_changed_since(now, tmp_path):
    """Its lines are no longer those of the class: byte code still is."""
    file = tmp_path / "modeling_own.py"
    names = {"nn": nn, "ALL_ATTENTION_FUNCTIONS": {}, "decorated": lambda _: lambda f: f, "__name__": __name__}
    text = FILE.format(line='if config._attn_implementation == "eager": table = None')
    exec(compile(text, str(file), "exec"), names)
    file.write_text(now + text.replace("eager", "lazy"))
    assert source.read(names["Attention"].forward) is None
    assert str(verdicts(names["Attention"])["eager"]).startswith(BRANCHES)
