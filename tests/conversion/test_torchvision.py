"""torchvision: Swin, Swin V2, video Swin and MViT by class swap, MaxViT by a hook; all against an oracle outside."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.maxvit import MaxVit
from torchvision.models.swin_transformer import (
    PatchMerging,
    PatchMergingV2,
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
    SwinTransformer,
    SwinTransformerBlock,
    SwinTransformerBlockV2,
)
from torchvision.models.video.mvit import MSBlockConfig, MViT
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d, SwinTransformer3d

from conditioned_attention import precondition, restore
from conditioned_attention.conversion import convert
from tests.conversion.called import calls
from tests.models import Identity, vectors, weigh
from tests.oracle import NormalisedHeads


def swin(block, downsample, window=(4, 3), **kwargs):
    """Images that windows do not fill, in stages that are shifted and not."""
    return SwinTransformer([2, 2], 16, [2, 2], [2, 4], list(window), num_classes=10, block=block, **kwargs)


def swin_v1(**kwargs):
    return swin(SwinTransformerBlock, PatchMerging, **kwargs)


def swin_v2(**kwargs):
    return swin(SwinTransformerBlockV2, PatchMergingV2, **kwargs)


def maxvit():
    return MaxVit((32, 32), 8, 4, [16], [2], 4, 0.0, num_classes=10)


def swin3d():
    return SwinTransformer3d([2, 2, 2], 16, [2, 2], [2, 4], [2, 4, 3], num_classes=10, stochastic_depth_prob=0.0)


def mvit(v2):
    """V1 pools, V2 also adds relative positions and the pooled queries."""
    blocks = [
        MSBlockConfig(2, 16, 32, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 2, 2]),
        MSBlockConfig(4, 32, 32, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 1, 1]),
    ]
    flags = {"residual_pool": v2, "residual_with_cls_embed": False, "rel_pos_embed": v2, "proj_after_attn": v2}
    return MViT((16, 16), 4, blocks, **flags, num_classes=10, stochastic_depth_prob=0.0)


IMAGE, CLIP = (2, 3, 22, 18), (2, 3, 4, 16, 16)
MODELS = {
    "swin": (partial(swin_v1, stochastic_depth_prob=0.0), IMAGE, 4, "class swap"),
    "swin_v2": (partial(swin_v2, stochastic_depth_prob=0.0), IMAGE, 4, "class swap"),
    "maxvit": (maxvit, (2, 3, 32, 32), 4, "hook"),
    "swin3d": (swin3d, (2, 3, 6, 22, 18), 4, "class swap"),
    "mvit_v1": (partial(mvit, False), CLIP, 2, "class swap"),
    "mvit_v2": (partial(mvit, True), CLIP, 2, "class swap"),
}
each_model = pytest.mark.parametrize("name", MODELS)


def build(name):
    """In float64, with weights large enough that conditioning shows behind any norm."""
    torch.manual_seed(1)
    model = MODELS[name][0]().double().eval()
    randomise(model)
    return model, vectors(*MODELS[name][1]).double()


def randomise(model):
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.5 / parameter[0].numel() ** 0.5)
        else:
            nn.init.normal_(parameter, mean=0.3, std=0.3)


def results(model, x):
    """The output and all gradients, the input's too."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = model(x)
    weigh(y[0] if isinstance(y, tuple) else y).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"output": y[0] if isinstance(y, tuple) else y, "input": x.grad, **found}


def assert_equal(ours, expected, rtol=1e-9):
    assert ours.keys() == expected.keys()
    largest = max(tensor.abs().max() for name, tensor in expected.items() if name != "output")
    for name, tensor in expected.items():
        size = tensor.abs().max() if name == "output" else largest
        assert (ours[name] - tensor).abs().max() <= rtol * size, name


@pytest.mark.one_in(2)
@each_model
def test_output_and_gradients_are_those_of_the_outside_oracle(name):
    model, x = build(name)
    plain = results(model, x)["output"]
    with NormalisedHeads() as mode:
        oracle = results(model, x)
    report = precondition(model, strict=True)
    assert {row.mechanism for row in report.rows} == {MODELS[name][3]}
    assert len(report.converted) == mode.hits == MODELS[name][2]
    assert (plain - oracle["output"]).abs().max() > 0.01 * plain.abs().max(), "the comparison would be vacuous"
    assert_equal(results(model, x), oracle)
    restore(model)
    assert (results(model, x)["output"] == plain).all()


@each_model
def test_without_c_it_is_the_stock_model(name):
    model, x = build(name)
    stock = results(model, x)
    convert(model, Identity(), strict=True)
    assert_equal(results(model, x), stock)


@each_model
def test_modules_are_called_as_in_torchvision(name):
    """And `qkv` and `proj` of Swin, whose weights it reads, for their hooks and adapters."""
    model, x = build(name)
    expected = calls(model, lambda model: model(x))
    precondition(model, strict=True)
    ours = calls(model, lambda model: model(x))
    assert [call for call in expected if call not in ours] == []
    assert {path.rpartition(".")[2] for path, _ in ours if (path, _) not in expected} <= {"qkv", "proj"}


@pytest.mark.parametrize("cls", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
@pytest.mark.parametrize("size", [(8, 6), (9, 8), (3, 9), (4, 2)])  # filled, padded, one window high, one window
@pytest.mark.parametrize("shift", [(0, 0), (2, 1), (2, 0)])
@pytest.mark.parametrize("biases", [True, False])
def test_windows_without_c_are_stock(cls, size, shift, biases):
    """In training, with both dropouts: the random numbers are drawn in the same order."""
    options = {"qkv_bias": biases, "proj_bias": biases, "attention_dropout": 0.2, "dropout": 0.3}
    attention = cls(12, [4, 3], list(shift), 2, **options).double().train()
    randomise(attention)
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(results(attention, x))
        if type(attention) is cls:
            convert(attention, Identity())
    assert type(attention) is not cls
    assert_equal(found[1], found[0])
    if cls is ShiftedWindowAttentionV2 and biases:
        assert (attention.qkv.bias.grad[12:24] == 0).all()


@pytest.mark.parametrize("size", [(4, 8, 6), (5, 9, 8), (1, 9, 3)])
@pytest.mark.parametrize("shift", [(0, 0, 0), (1, 2, 1)])
def test_windows_of_clips_without_c_are_stock(size, shift):
    options = {"attention_dropout": 0.2, "dropout": 0.3}
    attention = ShiftedWindowAttention3d(12, [2, 4, 3], list(shift), 2, **options).double().train()
    randomise(attention)
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    torch.manual_seed(3)
    stock = results(attention, x)
    convert(attention, Identity())
    torch.manual_seed(3)
    assert_equal(results(attention, x), stock)


@pytest.mark.parametrize("build_model", [swin_v1, swin_v2])
def test_dropped_weights_and_paths_in_training(build_model):
    """C is taken after dropout; random numbers are drawn as in the stock model."""
    torch.manual_seed(1)
    model = build_model(dropout=0.1, attention_dropout=0.2).double().train()
    randomise(model)
    x = vectors(*IMAGE).double()
    torch.manual_seed(3)
    with NormalisedHeads():
        oracle = results(model, x)
    precondition(model, strict=True)
    torch.manual_seed(3)
    assert_equal(results(model, x), oracle)


@pytest.mark.parametrize("name", ["swin", "swin_v2", "swin3d", "mvit_v2"])
def test_rows_of_the_weights(name):
    """The softmax that torchvision multiplies, its rows to unit length."""
    model, x = build(name)
    plain = results(model, x)["output"]
    with NormalisedHeads("weights"):
        oracle = results(model, x)
    precondition(model, rows="weights", strict=True)
    assert_equal(results(model, x), oracle, 1e-5)
    assert (plain - oracle["output"]).abs().max() > 0.01 * plain.abs().max()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ["swin", "swin_v2", "maxvit", "swin3d", "mvit_v2"])
def test_features_can_be_extracted(name):
    """torch.fx traces the converted model as it does torchvision's."""
    model, x = build(name)
    precondition(model)
    last = {"maxvit": "blocks.0", "mvit_v2": "norm"}.get(name, "features")
    extracted = create_feature_extractor(model, [last])(x)[last]
    seen = []
    model.get_submodule(last).register_forward_hook(lambda module, args, output: seen.append(output))
    model(x)
    torch.testing.assert_close(extracted, seen[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["swin_v2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("maxvit", "swin3d", "mvit_v2"))]
)
def test_compiles_without_a_graph_break(name):
    """Those of our own forwards; Swin is in test_survival.py, and so are hooks like MaxViT's."""
    model, x = build(name)
    precondition(model)
    expected = results(model, x)
    torch.compiler.reset()
    compiled = results(torch.compile(model, fullgraph=True, backend="eager"), x)
    assert_equal({key.removeprefix("_orig_mod."): tensor for key, tensor in compiled.items()}, expected)


@pytest.mark.one_in(3)
@each_model
def test_an_ensemble_by_vmap(name):
    """Stacked parameters: PyTorch's attention takes no stacked bias that wants a gradient, so C's does without."""
    (first, x), (second, _) = build(name), build(name)
    for parameter in second.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    precondition(first)
    precondition(second)
    parameters, buffers = torch.func.stack_module_state([first, second])

    def outputs(parameters):
        run = partial(torch.func.functional_call, copy.deepcopy(first).to("meta"))
        return torch.func.vmap(lambda p, b: run((p, b), (x,)))(parameters, buffers)

    for found, model in zip(outputs(parameters), (first, second), strict=True):
        torch.testing.assert_close(found, model(x))
    gradients = torch.func.grad(lambda p: weigh(outputs(p)))(parameters)
    weighed = weigh(torch.stack([first(x), second(x)]))
    for name, gradient in zip(parameters, torch.autograd.grad(weighed, list(first.parameters())), strict=True):
        torch.testing.assert_close(gradients[name][0], gradient)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16(name, autocast):
    """Rounding does to the converted model what it does to the plain one, within a factor."""
    model, x = build(name)
    errors = []
    for _ in range(2):
        exact = model(x)
        rounded = copy.deepcopy(model).to(torch.float32 if autocast else torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = rounded(x.to(next(rounded.parameters()).dtype))
        assert y.dtype == torch.bfloat16
        errors.append((y - exact).norm() / exact.norm())
        precondition(model)
    assert errors[1] < 3 * errors[0] + 0.01, errors


class Derived(ShiftedWindowAttentionV2):
    pass


def test_exactly_the_classes_of_the_table():
    model = nn.ModuleList([ShiftedWindowAttentionV2(8, [2, 2], [0, 0], 2), Derived(8, [2, 2], [0, 0], 2)])
    report = precondition(model)
    assert (report.converted, report.refused) == (["0"], ["1"])
    assert "Derived is a subclass of ShiftedWindowAttentionV2 and may" in str(report)
