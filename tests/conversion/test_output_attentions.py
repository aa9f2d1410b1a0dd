"""``config.output_attentions`` of a Hugging Face model that is converted."""

import copy

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from conditioned_attention import apply_conditioning, precondition, restore
from tests.models import tokens


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_config_that_asks_for_attentions(compiled, tmp_path):
    """transformers lets it name eager and nothing else, when it is saved and when it is loaded."""
    plain = _eager_bert(output_attentions=True)
    model = _eager_bert(output_attentions=True)
    precondition(model)
    result, without = model(tokens()), _eager_bert(output_attentions=False)
    precondition(without)
    assert torch.equal(result.logits, without(tokens()).logits)
    assert len(result.attentions) == 2
    assert model(tokens(), output_attentions=False).attentions is None
    if compiled:
        torch.compiler.reset()
        assert len(torch.compile(model, fullgraph=True, backend="eager")(tokens()).attentions) == 2
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    with pytest.raises(RuntimeError, match="apply_conditioning"):
        loaded(tokens())
    apply_conditioning(loaded)
    for each in (loaded, copy.deepcopy(loaded)):
        assert torch.equal(each(tokens()).attentions[1], result.attentions[1])
        assert torch.equal(each(tokens()).logits, result.logits)
        restore(each)
        assert each.config.output_attentions
        assert each.config.to_dict().keys() == plain.config.to_dict().keys()
        assert not each._forward_pre_hooks
        assert torch.equal(each(tokens()).attentions[1], plain(tokens()).attentions[1])
    never = type(model).from_pretrained(tmp_path).eval()
    restore(never)
    assert torch.equal(never(tokens()).attentions[1], plain(tokens()).attentions[1])


def test_of_a_part_alone_attentions_stay_in_the_config():
    """The model that would pass the flag on is not in view."""
    model = _eager_bert(output_attentions=True)
    with precondition(model.bert.encoder.layer[0]):
        assert model.config.output_attentions
    assert len(model(tokens()).attentions) == 2


def _eager_bert(**options):
    torch.manual_seed(4)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return BertForMaskedLM(BertConfig(vocab_size=99, attn_implementation="eager", **sizes, **options)).eval()
