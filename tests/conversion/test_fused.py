"""Converted models on the Triton kernels, as they would run on a GPU: biases learned, keys grouped, tokens hidden."""

import pytest
import torch

from conditioned_attention import functional, precondition
from conditioned_attention.attention.fused import attend as fused
from tests.attention.kernels import interpreted, needs_kernels, poison_more_memory  # noqa: F401
from tests.conversion.test_lean import outcome
from tests.models import MODELS, build
from tests.oracle import NormalisedRows

pytestmark = needs_kernels

STAYS_WITH_TRANSFORMERS = {"t5"}  # whose function adds the position bias
# Seconds in the interpreter; the other models call the kernels with the same: padding, causal, grouped, learned keys.
SLOW = {"clip", "vit", "gpt2", "torchvision_vit", "torch_transformer", "torch_encoder"}


@pytest.fixture
def calls(monkeypatch):
    """Prefers the kernels, and lists what they are called with."""
    monkeypatch.setattr(functional, "_AUTO", (functional._Rule("cpu", 0, "fused", "a test"),))
    seen, run = [], fused._run
    monkeypatch.setattr(fused, "_run", lambda inputs, options: seen.append(inputs) or run(inputs, options))
    return seen


def assert_same(ours, theirs):
    largest = max(each.abs().max().item() for each in theirs)  # the gradient of a key's bias is 0 and rounding
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * largest)


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
        for name in MODELS
        if name not in STAYS_WITH_TRANSFORMERS
    ],
)
def test_same_as_the_outside_oracle(name, calls):
    model = build(name)
    with NormalisedRows():
        expected = outcome(model)
    precondition(model)
    assert_same(outcome(model), expected)
    assert len(calls) == MODELS[name][1]


@pytest.mark.slow
def test_swin_learns_its_bias(calls):
    """Shifted windows: a bias of the heads and a mask of the windows, added up."""
    from timm.models.swin_transformer import SwinTransformer

    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 16, "depths": (2,), "num_heads": (2,)}
    model = SwinTransformer(**sizes, num_classes=3).eval()
    images = torch.randn(2, 3, 32, 32)
    for block in model.layers[0].blocks:
        block.attn.fused_attn = True  # the oracle sees that function alone

    def step():
        model.zero_grad()
        output = model(images)
        output.square().sum().backward()
        return [output.detach(), *(p.grad for p in model.parameters())]

    with NormalisedRows():
        expected = step()
    precondition(model)
    assert_same(step(), expected)
    assert [each.mask.requires_grad for each in calls] == [True, True]
    assert all(block.attn.relative_position_bias_table.grad.any() for block in model.layers[0].blocks)
