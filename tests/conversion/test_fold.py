"""`fold` and `unfold` where weights are shared: C is added once, or not at all."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from torch import nn

from conditioned_attention import conditioning, fold, restore, spectral_condition, unfold
from tests import models
from tests.conversion.by_hand import STRENGTH
from tests.models import output


def encoder():
    torch.manual_seed(1)
    return models.torch_encoder().eval()


def llama():
    torch.manual_seed(1)
    return models.llama().eval()


def one_parameter(model):
    model.layers[1].self_attn.in_proj_weight = model.layers[0].self_attn.in_proj_weight


def one_memory(model):
    """Two parameters over the same numbers."""
    model.layers[1].self_attn.in_proj_weight = nn.Parameter(model.layers[0].self_attn.in_proj_weight.data)


def one_owner(model):
    """The module that has the weight is the attention module here."""
    model.layers[1].self_attn = model.layers[0].self_attn


@pytest.mark.parametrize("options", [{}, {"per_head": True}, {"correction": "polar"}, {"roles": "qk"}])
@pytest.mark.parametrize("tie", [one_parameter, one_memory, one_owner])
@torch.no_grad()
def test_c_is_added_once_to_a_weight_that_is_shared(tie, options):
    model = encoder()
    tie(model)
    weight = model.layers[0].self_attn.in_proj_weight
    before = weight.detach().clone()
    spectral_condition(model, STRENGTH if "correction" not in options else 1.0, **options)
    truth = output(model)
    fold(model)
    assert (weight - before).abs().max() > 0.01
    assert torch.allclose(output(model), truth, rtol=1e-5, atol=1e-5)
    unfold(model)
    assert torch.allclose(output(model), truth, rtol=1e-5, atol=1e-5)
    assert torch.allclose(weight, before, atol=1e-6)


@torch.no_grad()
def test_one_weight_for_queries_of_two_layers():
    model = llama()
    model.model.layers[1].self_attn.q_proj.weight = model.model.layers[0].self_attn.q_proj.weight
    plain = output(model)
    spectral_condition(model, STRENGTH)
    truth = output(model)
    assert (truth - plain).abs().max() > 1e-4
    fold(model)
    assert torch.allclose(output(model), truth, rtol=1e-5, atol=1e-5)


def changed_nothing(model, before):
    return all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_different_corrections_of_one_weight_are_refused():
    model = llama()
    layers = model.model.layers
    layers[1].self_attn.k_proj.weight = layers[0].self_attn.v_proj.weight
    spectral_condition(model, STRENGTH, include="*.0.*")
    spectral_condition(model, 2 * STRENGTH, include="*.1.*")
    truth, before = output(model), copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn and .*layers\.1\.self_attn share memory.*of its own"):
        fold(model)
    assert changed_nothing(model, before)
    assert torch.equal(output(model), truth)


@pytest.mark.parametrize("roles", ["qkv", "v"])
def test_a_weight_of_a_module_without_c_is_refused(roles):
    """A layer that is not corrected, or a module that is no attention."""
    model = llama()
    layers = model.model.layers
    layers[1].self_attn.v_proj.weight = layers[0].self_attn.v_proj.weight
    spectral_condition(model, STRENGTH, include="*.0.*", roles=roles)
    with pytest.raises(ValueError, match=r"is model\.layers\.1\.self_attn\.v_proj\.weight as well, which has no C"):
        fold(model)
    layers[1].self_attn.v_proj.weight = nn.Parameter(layers[0].self_attn.v_proj.weight.detach().clone())
    model.extra = nn.Linear(32, 16, bias=False)
    model.extra.weight = layers[0].self_attn.v_proj.weight
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"is extra\.weight as well"):
        fold(model)
    assert changed_nothing(model, before)


def test_memory_in_part():
    """Views of one large tensor, as optimizers that flatten parameters make: apart they are no matter."""
    model = llama()
    layers = [layer.self_attn for layer in model.model.layers]
    flat = torch.randn(2 * 32 * 32)
    for layer, part in zip(layers, flat.split(32 * 32)):
        layer.q_proj.weight = nn.Parameter(part.view(32, 32))
    spectral_condition(model, STRENGTH)
    truth = output(model)
    fold(model)
    assert torch.allclose(output(model), truth, rtol=1e-5, atol=1e-5)
    unfold(model)
    layers[1].q_proj.weight = nn.Parameter(flat[32 : 32 + 32 * 32].view(32, 32))
    with pytest.raises(ValueError, match="share memory of their weights, and their corrections of it differ"):
        fold(model)


def test_offloaded_weights_are_refused():
    """What is added to a weight on the meta device is nowhere, and the module would count as folded."""
    model, other = llama(), llama()
    spectral_condition(model, STRENGTH)
    record = conditioning(model)
    for each in (model, other):
        cpu_offload(each, execution_device=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn: weight of its Linear has its values elsewhere"):
        fold(model)
    assert conditioning(model) == record
    with pytest.raises(ValueError, match="computed from them"):
        spectral_condition(other, 0.5, correction="polar")


def test_a_temporary_correction_that_was_folded_is_not_forgotten():
    """Its undo would leave W + C, and nothing that says so."""
    model = encoder()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"has been folded into the weights of .*: call unfold"):  # noqa: SIM117
        with spectral_condition(model, STRENGTH):
            fold(model)
    unfold(model)
    restore(model)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, before[name])
