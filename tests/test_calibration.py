"""`calibrate`: one number a head, folded into W_O; against the same heads scaled by hand."""

import copy
from dataclasses import dataclass

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrize

from conditioned_attention import calibrate, precondition, register_attention, restore, spectral_condition
from conditioned_attention.controls import PowerNorm, PreconditionedQKNorm
from conditioned_attention.conversion import convert
from conditioned_attention.measure.probing.probe import head_outputs
from conditioned_attention.preconditioner import HeadTransform, RowNorm
from conditioned_attention.sites import find_sites, install
from tests import models
from tests.conversion.test_pretrained import MINILM, minilm
from tests.models import inputs, output

KINDS = ["bert", "gpt2", "llama", "t5", "timm_vit", "torch_encoder", "torch_transformer", "torchvision_vit"]


def double(name):
    model = models.build(name).double()
    batch = inputs(model)
    return model, {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in batch.items()}


def result(model, batch):
    with torch.no_grad():
        return output(model, **batch)


@dataclass(frozen=True)
class ByHand(HeadTransform, recorded=False):
    """Another transform, and then a number a head."""

    inner: HeadTransform
    scale: torch.Tensor

    kind = "by hand"

    def __call__(self, output, weights=None):
        return self.inner(output, weights) * self.scale[:, None, None]


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("name", "transform"), [*((name, RowNorm()) for name in KINDS), ("llama", PowerNorm(0.5))])
def test_it_is_the_least_squares_scale_of_every_head(name, transform):
    model, batch = double(name)
    heads, expected = head_outputs(model, batch), copy.deepcopy(model)
    scales = {}
    for call in heads:
        y, c = call.before, transform(call.before)
        scales[call.module] = (y * c).sum((0, 2, 3)) / (c * c).sum((0, 2, 3))
    install(find_sites(expected), lambda site: ByHand(transform, scales[site.name]))
    names = model.state_dict().keys()
    convert(model, transform)
    found = calibrate(model, batch).scales
    assert found.keys() == scales.keys()
    for module, scale in scales.items():
        torch.testing.assert_close(found[module], scale, rtol=1e-12, atol=0)
    torch.testing.assert_close(result(model, batch), result(expected, batch), rtol=1e-11, atol=1e-11)
    assert model.state_dict().keys() == names


def test_a_known_scale_is_found_and_undone():
    """Heads that were divided by numbers that somebody knows are as they were."""
    model, batch = double("llama")
    plain, weight = result(model, batch), model.model.layers[0].self_attn.o_proj.weight.detach().clone()
    known = torch.tensor([0.5, 3.0, 0.01, 7.0], dtype=torch.float64)
    install(find_sites(model), ByHand(PowerNorm(1e-300), 1 / known))
    calibration = calibrate(model, batch)
    for scale in calibration.scales.values():
        torch.testing.assert_close(scale, known, rtol=1e-12, atol=0)
    torch.testing.assert_close(result(model, batch), plain, rtol=1e-11, atol=1e-11)
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn: it is calibrated already"):
        calibrate(model, batch)
    for _ in range(2):  # the second time nothing is left to undo
        calibration.undo()
        torch.testing.assert_close(model.model.layers[0].self_attn.o_proj.weight, weight, rtol=1e-14, atol=0)
    with calibrate(model, batch):
        assert (model.model.layers[0].self_attn.o_proj.weight - weight).abs().max() > 0.01
    torch.testing.assert_close(model.model.layers[0].self_attn.o_proj.weight, weight, rtol=1e-14, atol=0)


def test_biases_other_changes_and_plain_modules_stay():
    model, batch = double("gpt2")
    spectral_condition(model, 0.5)
    precondition(model, include="*.0.*")
    before = copy.deepcopy(model.state_dict())
    assert list(calibrate(model, batch).scales) == ["transformer.h.0.attn"]
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"transformer.h.0.attn.c_proj.weight"}


def test_one_module_in_several_places_has_one_scale():
    model, batch = double("llama")
    model.model.layers[1].self_attn = model.model.layers[0].self_attn
    precondition(model)
    (scale,) = calibrate(model, {**batch, "use_cache": False}).scales.values()
    assert scale.shape == (4,)


@torch.no_grad()
def test_a_zero_head_keeps_its_scale_and_half_precision_rounds_once():
    model = models.build("llama").to(torch.bfloat16)
    attention = model.model.layers[0].self_attn
    attention.v_proj.weight[:8] = 0
    weight = attention.o_proj.weight.float()
    precondition(model)
    scale = calibrate(model, inputs(model)).scales["model.layers.0.self_attn"]
    assert scale.dtype == torch.float32
    assert scale[:2].tolist() == [1.0, 1.0]
    assert torch.equal(attention.o_proj.weight, (weight * scale.repeat_interleave(8)).to(torch.bfloat16))


def test_adapters_that_read_the_heads_are_scaled_with_them():
    model, batch = double("llama")
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["o_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, lora).double().eval()
    plain = copy.deepcopy(adapted)
    convert(adapted, PowerNorm(0.5))
    scales = calibrate(adapted, batch).scales
    install(find_sites(plain), lambda site: ByHand(PowerNorm(0.5), scales[site.name]))
    torch.testing.assert_close(result(adapted, batch), result(plain, batch), rtol=1e-11, atol=1e-11)


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out, self.heads_out = nn.Linear(8, 24), nn.Linear(8, 8), nn.Identity()

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        heads = self.heads_out(nn.functional.scaled_dot_product_attention(q, k, v))
        return self.out(heads.transpose(1, 2).flatten(2) * x.sigmoid())


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


def test_what_cannot_be_folded_is_refused_by_name():
    register_attention(Gated, at="heads_out", heads=2, layout="B H N D")
    gated, x = Gated(), torch.randn(2, 3, 8)
    with pytest.raises(ValueError, match="no attention of this model is converted"):
        calibrate(gated, x)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        calibrate([], x)
    precondition(gated)
    with pytest.raises(ValueError, match=r"\(the model\): its heads do not go into a linear layer"):
        calibrate(gated, x)
    for ruin, words in (
        (lambda a, b: setattr(b.o_proj, "weight", a.o_proj.weight), "is that of another module too"),
        (lambda a, b: setattr(b, "o_proj", a.o_proj), "is that of another module too"),
        (lambda a, b: parametrize.register_parametrization(b.o_proj, "weight", Halved()), "is no parameter with its"),
    ):
        model = models.build("llama")
        ruin(*(layer.self_attn for layer in model.model.layers))
        precondition(model)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=rf"these cannot be calibrated:\n(.*\n)?.*layers\.1\.self_attn: .*{words}"):
            calibrate(model, inputs(model))
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model = models.build("llama")
    convert(model, PreconditionedQKNorm())
    with pytest.raises(ValueError, match="changes queries and keys"):
        calibrate(model, inputs(model))
    restore(model)
    model = models.build("t5")
    precondition(model)
    encoder = {"input_ids": inputs(model)["input_ids"]}
    model.forward = lambda **batch: model.encoder(**batch)
    with pytest.raises(ValueError, match=r"decoder\.block\.0\.layer\.0\.SelfAttention: the batch does not reach it"):
        calibrate(model, encoder)


@pytest.mark.slow
@pytest.mark.skipif(not MINILM.is_dir(), reason="no weights here: run make weights")
@torch.no_grad()
def test_a_trained_model_is_nearer_to_itself():
    """Cosine of the sentences' hidden states with the plain model's."""
    model, batch = minilm()
    kept = batch["attention_mask"].bool()
    plain = model(**batch)[0][kept]
    precondition(model)
    ruined = model(**batch)[0][kept]
    calibrate(model, {"input_ids": batch["input_ids"][1:2]})
    ours = model(**batch)[0][kept]
    near, far = (nn.functional.cosine_similarity(plain, other, -1).mean() for other in (ours, ruined))
    assert near > far + 0.05
