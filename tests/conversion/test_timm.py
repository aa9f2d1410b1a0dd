"""timm's attention classes: converted ones against the outside oracle, refused and optional ones by their reasons."""

import pytest
import torch
from torch import nn

from conditioned_attention import precondition, restore
from conditioned_attention.sites import timm as table
from tests.conversion.timm_cases import CASES
from tests.models import weigh
from tests.oracle_softmax import NormalisedAttention


def build(case):
    """The module in float64 and training mode, with dropout, all its numbers random so that conditioning shows."""
    torch.manual_seed(1)
    module, args, kwargs = CASES[case]()
    for parameter in module.parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
        nn.init.normal_(parameter, std=1.5 / fan_in**0.5)
    dropout = getattr(module, "attn_drop", None)
    if isinstance(dropout, nn.Dropout) and not dropout.inplace:  # TNT's backward fails with it
        dropout.p = 0.2
    return module.double(), args, kwargs


def run(module, args, kwargs):
    """The output, and the gradient of every parameter that has one."""
    module.zero_grad()
    torch.manual_seed(3)
    result = module(*args, **kwargs)
    weigh(result).backward()
    return result.detach(), {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("case", CASES)
def test_hooked_classes_agree_with_the_outside_oracle(case):
    module, args, kwargs = build(case)
    if hasattr(module, "fused_attn"):
        module.fused_attn = True
        agrees_with_the_oracle(module, args, kwargs)
        module.fused_attn = False
    agrees_with_the_oracle(module, args, kwargs)


def agrees_with_the_oracle(module, args, kwargs):
    keys, (plain, _) = list(module.state_dict()), run(module, args, kwargs)
    with NormalisedAttention():
        oracle, gradients = run(module, args, kwargs)
    size = oracle.abs().max()
    assert (plain - oracle).abs().max() > 0.01 * size, "the comparison would be vacuous"

    # The oracle has no eps, and dropout leaves rows of 1e-44 where timm masks with -100.
    assert precondition(module, include="*", strict=True, eps=1e-60).converted == [""]
    ours, our_gradients = run(module, args, kwargs)
    assert (ours - oracle).abs().max() < 1e-10 * size
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert (our_gradients[name] - gradient).abs().max() < 1e-10 * largest, name
    assert list(module.state_dict()) == keys

    assert restore(module).names("restored") == [""]
    assert (run(module, args, kwargs)[0] == plain).all()


def test_every_hooked_class_has_a_case():
    tested = {case.split(" ")[0] for case in CASES}
    assert {".".join(name.split(".")[-2:]) for name in (*table._HOOKED, *table._CHOSEN)} == tested
