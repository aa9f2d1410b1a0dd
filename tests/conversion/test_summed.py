"""W + C is what is computed with, and W what everybody else sees: in threads, and by whatever call."""

import sys
import threading
import types

import pytest
import timm
import torch
import torch.nn.functional as F
from accelerate import cpu_offload
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from conditioned_attention import conditioning, precondition, register_attention, restore, spectral_condition
from conditioned_attention.sites import find_projections, find_sites
from tests import models
from tests.conversion.by_hand import STRENGTH, polar, rectangular_identity, weights_by_hand
from tests.conversion.survivors import swin
from tests.models import output


def eva():
    return timm.create_model("eva02_tiny_patch14_224", img_size=28, depth=2, num_heads=4, embed_dim=32, num_classes=9)


def beit():
    return timm.create_model("beit_base_patch16_224", img_size=32, depth=2, num_heads=4, embed_dim=32, num_classes=9)


IMAGE = models.vectors(2, 3, 32, 32)
# model -> (how it is built, what it is called with): projections that are called, read, packed and transposed
KINDS = {
    "called: Llama": (models.llama, {"input_ids": models.tokens(), "use_cache": False}),
    "called, one weight: timm ViT": (models.timm_vit, {"x": models.images()}),
    "transposed: GPT-2": (models.gpt2, {"input_ids": models.tokens(), "use_cache": False}),
    "read: torchvision Swin": (swin, {"x": models.vectors(2, 3, 22, 18)}),
    "read: timm EVA": (eva, {"x": models.vectors(2, 3, 28, 28)}),
    "read: timm BEiT": (beit, {"x": IMAGE}),
    "packed: torch.nn.TransformerEncoder": (models.torch_encoder, {"src": models.vectors(2, 7, 32)}),
}


def build(kind):
    torch.manual_seed(1)
    model = KINDS[kind][0]().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.5 / parameter[0].numel() ** 0.5)
    return model


def run(model, kind):
    return output(model, **KINDS[kind][1])


def assert_same(ours, expected):
    assert (ours - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.fixture
def hurried(monkeypatch):
    """Threads take turns as often as Python lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(call, threads, calls):
    """What ``call`` returns, or raises, in every call of every thread."""
    results = []

    def work():
        for _ in range(calls):
            try:
                results.append(call())
            except Exception as error:
                results.append(error)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return results


@pytest.mark.parametrize(
    ("kind", "options", "calls"),
    [
        ("called: Llama", {}, 50),
        pytest.param("called: Llama", {"correction": "polar"}, 10, marks=pytest.mark.slow),
        *(pytest.param(kind, {}, 10, marks=pytest.mark.one_in(4)) for kind in KINDS if kind != "called: Llama"),
    ],
)
@torch.no_grad()
def test_threads_share_nothing_that_changes(kind, options, calls, hurried):
    model, made = build(kind), polar if options else rectangular_identity
    spectral_condition(model, *(() if options else (STRENGTH,)), **options, strict=True)
    expected = run(weights_by_hand(build(kind), made), kind)

    def call():
        with torch.no_grad():
            return run(model, kind)

    results = in_threads(call, 4, calls)
    assert len(results) == 4 * calls
    for result in results:
        assert isinstance(result, torch.Tensor), result
        assert_same(result, expected)
    for site in find_sites(model):
        for projection in find_projections(site.module).weights:
            owner = projection.owner(site.module)
            assert getattr(owner, projection.parameter) is owner._parameters[projection.parameter]


def test_a_thread_that_reads_the_parameter_while_others_run(hurried):
    """As an optimizer by attribute, or a checkpoint, does."""
    model = build("read: torchvision Swin")
    spectral_condition(model, STRENGTH)
    qkv = model.features[1][0].attn.qkv
    stop, seen = threading.Event(), set()

    def read():
        while not stop.is_set():
            seen.add(id(qkv.weight))

    reader = threading.Thread(target=read)
    reader.start()
    with torch.no_grad():
        results = in_threads(lambda: run(model, "read: torchvision Swin"), 2, 10)
    stop.set(), reader.join()
    assert not [result for result in results if isinstance(result, Exception)]
    assert seen == {id(qkv._parameters["weight"])}


def called_by_forward(model, monkeypatch):
    """Attention modules are called past `nn.Module.__call__`, so that no hook of theirs runs."""
    attention = {id(site.module) for site in find_sites(model)}
    original = nn.Module.__call__

    def call(module, *args, **kwargs):
        return module.forward(*args, **kwargs) if id(module) in attention else original(module, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "__call__", call)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_forward_called_directly(kind, monkeypatch):
    model, expected = build(kind), run(weights_by_hand(build(kind), rectangular_identity), kind)
    spectral_condition(model, STRENGTH)
    called_by_forward(model, monkeypatch)
    assert_same(run(model, kind), expected)


@pytest.mark.parametrize("kind", ["called, one weight: timm ViT", "read: torchvision Swin"])
@torch.no_grad()
def test_a_forward_that_the_instance_got(kind):
    """From elsewhere, under another name: the call is what tells then."""
    model, expected = build(kind), run(weights_by_hand(build(kind), rectangular_identity), kind)
    spectral_condition(model, STRENGTH)
    for site in find_sites(model):
        forward = type(site.module).forward

        def somebodys(self, *args, forward=forward, **kwargs):
            return self.plain_one(*args, **kwargs)

        site.module.plain_one = types.MethodType(forward, site.module)
        site.module.forward = types.MethodType(somebodys, site.module)
    assert_same(run(model, kind), expected)


class Reading(nn.Module):
    """Reads its weight in a function below its forward."""

    def __init__(self):
        super().__init__()
        self.heads, self.qkv, self.out = 4, nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x):
        return self.out(self.attend(x))

    def attend(self, x):
        q, k, v = project(self.qkv, x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def project(layer, x):
    return F.linear(x, layer.weight, layer.bias)


@torch.no_grad()
def test_a_weight_read_below_forward():
    register_attention(Reading, at="out", heads="heads", projections={"qkv": "qkv"})
    torch.manual_seed(1)
    model, x = Reading(), models.vectors(2, 7, 32)
    plain = model(x)
    spectral_condition(model, STRENGTH)
    for call in (model, model.forward):
        ours = call(x)
        with torch.no_grad():
            by_hand = Reading()
            by_hand.load_state_dict(model.state_dict())
            assert_same(ours, weights_by_hand(by_hand, rectangular_identity)(x))
    assert (ours - plain).abs().max() > 1e-3


def test_what_is_written_to_the_weight_is_written_to_the_parameter():
    model = build("packed: torch.nn.TransformerEncoder")
    spectral_condition(model, STRENGTH)
    attention = model.layers[0].self_attn
    parameter = attention._parameters["in_proj_weight"]
    with torch.no_grad():
        attention.in_proj_weight.fill_(2.0)
    assert parameter.eq(2.0).all()
    attention._reset_parameters()
    assert not parameter.eq(2.0).any()
    attention.in_proj_weight = nn.Parameter(torch.ones_like(parameter))
    assert attention._parameters["in_proj_weight"] is not parameter
    by_hand = build("packed: torch.nn.TransformerEncoder")
    by_hand.load_state_dict(model.state_dict())
    kind = "packed: torch.nn.TransformerEncoder"
    assert_same(run(model, kind), run(weights_by_hand(by_hand, rectangular_identity), kind))


@pytest.mark.parametrize("kind", KINDS)
def test_classes_come_back(kind):
    model, plain = build(kind), build(kind)
    spectral_condition(model, STRENGTH)
    assert str(model) == str(plain)
    assert all(isinstance(ours, type(theirs)) for ours, theirs in zip(model.modules(), plain.modules()))
    restore(model)
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert [set(vars(ours)) for ours in model.modules()] == [set(vars(theirs)) for theirs in plain.modules()]


@pytest.mark.parametrize("order", [("spectral", "heads"), ("heads", "spectral")])
@pytest.mark.parametrize("first_off", ["spectral", "heads"])
def test_one_of_both_methods_is_taken_off(order, first_off):
    """Where the module that is switched to another class is the one that owns the weight."""
    kind = "packed: torch.nn.TransformerEncoder"
    model, heads, weights = build(kind), build(kind), weights_by_hand(build(kind), rectangular_identity)
    precondition(heads)
    reports = {}
    for what in order:
        reports[what] = spectral_condition(model, STRENGTH) if what == "spectral" else precondition(model)
    both = weights_by_hand(build(kind), rectangular_identity)
    precondition(both)
    assert_same(run(model, kind), run(both, kind))
    reports[first_off].__exit__(None, None, None)
    assert_same(run(model, kind), run(heads if first_off == "spectral" else weights, kind))
    restore(model)
    assert torch.equal(run(model, kind), run(build(kind), kind))
    assert type(model.layers[0].self_attn) is nn.MultiheadAttention


@torch.no_grad()
def test_traces_of_fx_hold_the_parameter():
    """And not the sum as it was when they were made."""
    kind = "read: torchvision Swin"
    model = build(kind)
    spectral_condition(model, STRENGTH)
    traced = create_feature_extractor(model, ["head"])
    by_hand = build(kind)
    for each in (model, by_hand):
        for parameter in each.parameters():
            parameter.mul_(1.1)
    traced.load_state_dict(model.state_dict(), strict=False)
    expected = run(weights_by_hand(by_hand, rectangular_identity), kind)
    assert_same(traced(*KINDS[kind][1].values())["head"], expected)


# Projections that somebody else has as well


def test_a_projection_of_another_module_too_is_refused():
    model = build("called, one weight: timm ViT")
    model.again = nn.Sequential(model.blocks[0].attn.qkv)
    report = spectral_condition(model, STRENGTH)
    assert report.refused == ["blocks.0.attn"]
    assert report.converted == ["blocks.1.attn"]
    assert "qkv belongs to another Sequential too" in str(report)
    x = models.vectors(2, 32)
    assert torch.equal(model.again(x), build("called, one weight: timm ViT").blocks[0].attn.qkv(x))


def test_a_shared_attention_module_is_corrected_once():
    model, by_hand = build("called, one weight: timm ViT"), build("called, one weight: timm ViT")
    for each in (model, by_hand):
        each.blocks[1].attn = each.blocks[0].attn
    spectral_condition(model, STRENGTH)
    assert_same(output(model), output(weights_by_hand(by_hand, rectangular_identity)))
    assert conditioning(model)["transforms"][0]["modules"] == ["blocks.0.attn", "blocks.1.attn"]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("first", ["conversion", "offload"])
@pytest.mark.parametrize("kind", ["called: Llama", "called, one weight: timm ViT", "transposed: GPT-2"])
@torch.no_grad()
def test_weights_that_are_moved_in_each_call(kind, first):
    """accelerate's hooks put the parameters on the device before a layer runs, and away again."""
    model, expected = build(kind), run(weights_by_hand(build(kind), rectangular_identity), kind)
    for step in (first, "conversion" if first == "offload" else "offload"):
        if step == "offload":
            cpu_offload(model, torch.device("cpu"))
        else:
            spectral_condition(model, STRENGTH, strict=True)
    for _ in range(2):
        assert_same(run(model, kind), expected)
    restore(model)
    assert_same(run(model, kind), run(build(kind), kind))


@pytest.mark.one_in(2)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["called, one weight: timm ViT", "read: torchvision Swin"])
@torch.no_grad()
def test_torch_jit_trace(kind):
    model = build(kind)
    spectral_condition(model, STRENGTH)
    traced = torch.jit.trace(model, tuple(KINDS[kind][1].values()))
    assert_same(run(traced, kind), run(weights_by_hand(build(kind), rectangular_identity), kind))
