"""A copy of a converted Hugging Face model has configs of its own, of which nobody has told the library."""

import copy
import pickle

import pytest
import torch

from conditioned_attention import apply_conditioning, conditioning, precondition, restore
from tests.models import build, output


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_temporary_conversion_of_the_rest_leaves_the_first_as_it_was(copied):
    model = build("llama")
    plain = output(model)
    precondition(model, include="*.0.*")
    second = copied(model)
    before = output(second)
    with precondition(second) as report:
        assert report.converted == ["model.layers.1.self_attn"]
        assert not torch.equal(output(second), before)
    assert torch.equal(output(second), before)
    assert len(restore(second).names("restored")) == 1
    assert torch.equal(output(second), plain)
    assert torch.equal(output(model), before), "the other model is none of its business"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("name", ["llama", "clip"])
def test_a_part_of_a_copy_is_restored(copied, name):
    """The modules of a copy read one config, as those of the original do: the others keep its name."""
    model = build(name)
    plain = output(model)
    precondition(model)
    conditioned = output(model)
    second = copied(model)
    blocks = [m for n, m in second.named_modules() if n.endswith("layers.0")]
    for block in blocks:
        assert len(restore(block).names("restored")) == 1
    assert not torch.equal(output(second), conditioned)
    precondition(second)
    assert torch.equal(output(second), conditioned)
    restore(second)
    assert torch.equal(output(second), plain)
    assert torch.equal(output(model), conditioned), "the other model is none of its business"
    for block in (m for n, m in copied(model).named_modules() if n.endswith(("layers.0", "layers.1"))):
        restore(block)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_remembers_what_is_true_of_the_copy(copied, tmp_path):
    """Not of the original, and not what was true when it was made."""
    model = build("llama")
    precondition(model)
    second = copied(model)
    restore(second.model.layers[0])
    second.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    apply_conditioning(loaded)
    assert torch.equal(output(loaded), output(second))
    assert conditioning(loaded)["transforms"][0]["modules"] == ["model.layers.1.self_attn"]
    assert len(conditioning(model)["transforms"][0]["modules"]) == 2
