"""Adapters and quantizers on corrected projections: exact, or an error that says to fold first."""

import copy
import importlib
import inspect
import warnings

import peft
import pytest
import torch
from peft import LoraConfig, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

from conditioned_attention import conditioning, fold, restore, spectral_condition
from conditioned_attention.sites.adapters import _ADDING
from tests import models
from tests.conversion.by_hand import STRENGTH, rectangular_identity, weights_by_hand
from tests.models import output

TARGETS = ["q_proj", "v_proj"]
FOLD_FIRST = r"reads the weight of a corrected projection, .*call fold\(model\) before the adapter is made"

# what tuners want for layers of 32 features
OPTIONS = {
    "IA3": {"feedforward_modules": []},
    "ADALORA": {"total_step": 10},
    "BOFT": {"boft_block_size": 4},
    "OFT": {"oft_block_size": 4},
    "RANDLORA": {"r": 4},
    "VBLORA": {"num_vectors": 8, "vector_length": 4, "topk": 2},
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 20},
    "WAVEFT": {"n_frequency": 20},
    "SHIRA": {"r": 2},
    "MISS": {"r": 4},
    "ROAD": {"group_size": 8},
}
# that go on linear layers by their names, and need nothing but a config
TUNERS = {
    kind.value: config
    for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
    if "target_modules" in inspect.signature(config).parameters
    and kind.value not in ("ADAPTION_PROMPT", "TRAINABLE_TOKENS", "SHADOW", "GLORA")  # GLoRA takes exact classes
}
ADDING = {kind for kind, config in TUNERS.items() if config.__module__.split(".")[2] in _ADDING}
LORA = {
    "LoRA": {},
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "rsLoRA": {"use_rslora": True},
}


def build():
    torch.manual_seed(1)
    model = models.llama().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.5 / parameter[0].numel() ** 0.5)
    return model


def corrected():
    model = build()
    spectral_condition(model, STRENGTH)
    return model


def by_hand():
    return weights_by_hand(build(), rectangular_identity)


def adapt(model, config):
    """With numbers in the adapters as training would leave them."""
    torch.manual_seed(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(model, copy.deepcopy(config)).eval()
    fresh = output(wrapped, **INPUTS)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return wrapped, fresh


INPUTS = {"input_ids": models.tokens(), "use_cache": False}


def assert_same(ours, expected):
    assert (ours - expected).abs().max() <= 2e-5 * expected.abs().max()


def assert_exact(config):
    """Fresh, trained and merged it computes what it does on the model that has C in its weights."""
    (ours, fresh), (theirs, expected_fresh) = (adapt(model, config) for model in (corrected(), by_hand()))
    assert_same(fresh, expected_fresh)
    expected = output(theirs, **INPUTS)
    assert (expected - expected_fresh).abs().max() > 1e-2 * expected.abs().max()
    assert_same(output(ours, **INPUTS), expected)
    merged = ours.merge_and_unload()
    assert_same(output(merged, **INPUTS), expected)
    assert conditioning(merged) == conditioning(corrected())
    fold(merged)
    assert_same(output(merged, **INPUTS), expected)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", sorted(ADDING))
def test_adapters_that_add_are_exact(kind):
    assert_exact(TUNERS[kind](target_modules=TARGETS, **OPTIONS.get(kind, {})))


@pytest.mark.parametrize("kind", LORA)
def test_kinds_of_lora(kind):
    assert_exact_but_for_first_weights(LoraConfig(target_modules=TARGETS, r=4, **LORA[kind]))


def assert_exact_but_for_first_weights(config):
    """PiSSA and OLoRA begin with directions of W, which are not those of W + C; the model stays what it was."""
    model = corrected()
    before = output(model, **INPUTS)
    wrapped, fresh = adapt(model, config)
    assert_same(fresh, before)
    trained = output(wrapped, **INPUTS)
    assert (trained - before).abs().max() > 1e-2 * before.abs().max()
    assert_same(output(wrapped.merge_and_unload(), **INPUTS), trained)


def test_lora_that_takes_the_place_of_the_parameter():
    """By torch.nn.utils.parametrize, in each call."""
    name = "model.layers.0.self_attn.q_proj.weight"
    wrapped = get_peft_model(corrected(), LoraConfig(target_modules=[], target_parameters=[name]))
    with pytest.raises(RuntimeError, match=r"q_proj\.weight is no parameter of its .*call fold\(model\) before"):
        output(wrapped, **INPUTS)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", sorted({*TUNERS} - ADDING))
def test_other_adapters_are_refused_when_they_are_made(kind):
    config = TUNERS[kind](target_modules=TARGETS, **OPTIONS.get(kind, {}))
    with pytest.raises(RuntimeError, match=FOLD_FIRST):
        adapt(corrected(), config)


@pytest.mark.parametrize("kind", ["IA3", "OFT", "DoRA"])
def test_other_adapters_on_a_folded_model(kind):
    config = (
        LoraConfig(target_modules=TARGETS, use_dora=True)
        if kind == "DoRA"
        else TUNERS[kind](target_modules=TARGETS, **OPTIONS[kind])
    )
    if kind == "DoRA":
        with pytest.raises(RuntimeError, match=FOLD_FIRST):
            adapt(corrected(), config)
    model = corrected()
    fold(model)
    (ours, fresh), (theirs, expected_fresh) = adapt(model, config), adapt(by_hand(), config)
    assert_same(fresh, expected_fresh)
    assert_same(output(ours, **INPUTS), output(theirs, **INPUTS))
    assert_same(output(ours.merge_and_unload(), **INPUTS), output(theirs, **INPUTS))


@pytest.mark.parametrize(("kind", "named"), [("IA3", "ia3"), ("DoRA", "DoRA"), ("BOFT", "boft")])
def test_other_adapters_that_are_there_before_are_refused(kind, named):
    config = (
        LoraConfig(target_modules=TARGETS, use_dora=True)
        if kind == "DoRA"
        else TUNERS[kind](target_modules=TARGETS, **OPTIONS[kind])
    )
    wrapped, _ = adapt(build(), config)
    before = output(wrapped, **INPUTS)
    with pytest.raises(
        ValueError, match=rf"an adapter around it \({named} of PEFT\).*call spectral_condition\(model\)"
    ):
        spectral_condition(wrapped, STRENGTH)
    assert torch.equal(output(wrapped, **INPUTS), before)


def test_merged_adapters_that_are_switched_off_in_a_call():
    """PEFT takes them out of the weights in the forward then, which writes to W."""
    wrapped, _ = adapt(corrected(), LoraConfig(target_modules=TARGETS))
    trained, plain = output(wrapped, **INPUTS), output(corrected(), **INPUTS)
    wrapped.merge_adapter()
    assert_same(output(wrapped, **INPUTS), trained)
    with wrapped.disable_adapter():
        assert_same(output(wrapped, **INPUTS), plain)
    assert_same(output(wrapped, **INPUTS), trained)


def test_every_tuner_of_peft_is_known_to_these_tests():
    assert {"LORA", "IA3", "BOFT", "OFT", "VERA"} <= {*TUNERS}
    assert len(TUNERS) > 15
    assert {name.upper() for name in _ADDING} <= {kind.value for kind in PeftType}
    assert len(ADDING) == len(_ADDING)
    assert peft.__version__


# Quantizers


class Coded(torch.Tensor):
    """A weight that is kept as codes and a scale, as those of torchao and quanto are."""

    @staticmethod
    def __new__(cls, codes, scale):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype)

    def __init__(self, codes, scale):
        self.codes, self.scale = codes, scale

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is nn.functional.linear:
            x, weight, *bias = args
            return nn.functional.linear(x, weight.codes * weight.scale, *bias)
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].scale)
        raise NotImplementedError(f"Coded dispatch: {function}")


def quantize_by_hand(model):
    for module in model.modules():
        if isinstance(module, nn.Linear):
            scale = module.weight.detach().abs().amax() / 127
            codes = (module.weight.detach() / scale).round().to(torch.int8)
            module.weight = nn.Parameter(Coded(codes, scale), requires_grad=False)


def quantize_with_torchao(model):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())


def quantize_with_quanto(model):
    quanto = pytest.importorskip("optimum.quanto")
    quanto.quantize(model, weights=quanto.qint8)
    quanto.freeze(model)


QUANTIZERS = [quantize_by_hand, quantize_with_torchao, quantize_with_quanto]


@pytest.mark.parametrize("quantize", QUANTIZERS)
@torch.no_grad()
def test_quantizers(quantize):
    model = build()
    quantize(model)
    with pytest.raises(ValueError, match=r"call spectral_condition\(model\) and fold\(model\) before that is done"):
        spectral_condition(model, STRENGTH)
    model = corrected()
    truth, plain = output(model, **INPUTS), output(build(), **INPUTS)
    quantize(model)
    with pytest.raises(RuntimeError, match=r"call fold\(model\) before"):
        output(model, **INPUTS)
    attention = model.model.layers[0].self_attn
    restore(model)
    assert not attention._forward_pre_hooks
    output(model, **INPUTS)
    model = corrected()
    fold(model)
    quantize(model)
    assert (output(model, **INPUTS) - truth).norm() < 0.2 * (plain - truth).norm()


def test_a_quantized_weight_where_no_hook_looks():
    """The forward of the attention module is called past its hooks."""
    model = corrected()
    attention = model.model.layers[0].self_attn
    quantize_by_hand(attention)
    with pytest.raises(RuntimeError, match=r"is a .*Coded, as quantizers put them in place.*call fold\(model\) before"):
        attention.q_proj.forward(torch.randn(2, 3, 32))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8])
def test_weights_of_one_byte(dtype):
    model = build()
    for layer in model.model.layers:
        layer.self_attn.k_proj.weight = nn.Parameter(torch.zeros(16, 32).to(dtype), requires_grad=False)
    with pytest.raises(ValueError, match=rf"k_proj.weight is of {dtype}, to which C cannot be added"):
        spectral_condition(model, STRENGTH)


def test_a_projection_that_is_replaced_by_another_module():
    model = corrected()
    attention = model.model.layers[0].self_attn
    attention.q_proj = nn.Linear(32, 32, bias=False)
    with pytest.raises(RuntimeError, match=r"since then the module of q_proj\.weight, now a torch.*Linear"):
        output(model, **INPUTS)
    restore(model)
    output(model, **INPUTS)


@pytest.mark.parametrize("library", ["torchao", "optimum.quanto"])
def test_names_of_their_weights_are_those_of_their_libraries(library):
    """By which `not_to_add_to` tells them from torch's own, as DTensor."""
    assert not importlib.import_module(pytest.importorskip(library).__name__).__name__.startswith("torch.")
