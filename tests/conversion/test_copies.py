"""A copy of a converted Hugging Face model has configs of its own, of which nobody has told the library."""

import copy
import pickle

import pytest
import torch

from conditioned_attention import precondition, restore
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
