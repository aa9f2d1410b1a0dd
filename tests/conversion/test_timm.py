"""timm's attention classes: converted ones against the outside oracle, refused and optional ones by their reasons."""

import importlib
import sys

import pytest
import timm
import torch
from timm.layers import SimPool1d
from timm.layers.attention import Attention, AttentionRope
from timm.layers.attention_pool import AttentionPoolLatent
from timm.layers.cbam import SpatialAttn
from torch import nn

from conditioned_attention import apply_conditioning, conditioning, precondition, restore
from conditioned_attention.measure.probing.probe import head_outputs
from conditioned_attention.sites.site import class_name
from conditioned_attention.sites.timm import heads as table
from tests.conversion.timm_cases import CASES, MODELS
from tests.conversion.timm_families import COMMAND, FAMILIES, PAGE, page, says_softmax, survey
from tests.models import weigh
from tests.oracle import NormalisedHeads

# Whole models that mix the logits of several heads, and the softmax of SplitAttn.
NO_ATTENTION = {
    "timm.layers.split_attn.RadixSoftmax",
    "timm.models.efficientvim.EfficientViM",
    "timm.models.efficientvim.EfficientViMDistilled",
}
TABLE = {*table._SWAPPED, *table._HOOKED, *table._CHOSEN, *table._REFUSED}


def build(case):
    """The module in float64 and training mode, with dropout, all its numbers random so that conditioning shows."""
    torch.manual_seed(1)
    module, args, kwargs = CASES[case]()
    dropout = getattr(module, "attn_drop", None)
    if isinstance(dropout, nn.Dropout) and not dropout.inplace:  # TNT's backward fails with it
        dropout.p = 0.2
    return randomised(module), args, kwargs


def randomised(module):
    for parameter in module.parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
        nn.init.normal_(parameter, std=1.5 / fan_in**0.5)
    return module.double()


def run(module, args, kwargs):
    """The output, and the gradient of every parameter that has one."""
    module.zero_grad()
    torch.manual_seed(3)
    result = module(*args, **kwargs)
    weigh(result).backward()
    return result.detach(), {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("case", CASES)
def test_hooked_classes_agree_with_the_outside_oracle(case):
    module, args, kwargs = build(case)
    if hasattr(module, "fused_attn"):
        module.fused_attn = True
        agrees_with_the_oracle(module, args, kwargs)
        module.fused_attn = False
    agrees_with_the_oracle(module, args, kwargs)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", MODELS)
def test_whole_models_agree_with_the_outside_oracle(name):
    entry, size, options, number = MODELS[name]
    torch.manual_seed(1)
    model = randomised(timm.create_model(entry, img_size=size, num_classes=5, **options))
    assert agrees_with_the_oracle(model, (torch.randn(2, 3, size, size).double(),), {}) == number


def agrees_with_the_oracle(module, args, kwargs):
    """Output, gradients, keys and the way back; returns how many modules were converted."""
    keys, (plain, _) = list(module.state_dict()), run(module, args, kwargs)
    with NormalisedHeads():
        oracle, gradients = run(module, args, kwargs)
    size = oracle.abs().max()
    assert (plain - oracle).abs().max() > 0.01 * size, "the comparison would be vacuous"

    converted = precondition(module, include="*", strict=True).converted
    assert converted
    ours, our_gradients = run(module, args, kwargs)
    assert (ours - oracle).abs().max() < 1e-10 * size
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert (our_gradients[name] - gradient).abs().max() < 1e-10 * largest, name
    assert list(module.state_dict()) == keys

    assert restore(module).names("restored") == converted
    assert (run(module, args, kwargs)[0] == plain).all()
    return len(converted)


def test_every_hooked_class_has_a_case():
    tested = {case.split(" ")[0] for case in CASES}
    assert {".".join(name.split(".")[-2:]) for name in (*table._HOOKED, *table._CHOSEN)} <= tested


@pytest.mark.one_in(10)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_attention_of_a_family_is_overlooked(family):
    """By the look of the source: whatever says softmax is converted, optional, or refused with a reason of its own."""
    assert survey(family).overlooked == set()
    unknown = {finding.name for finding in survey(family).findings if "not in the table" in finding.reason}
    assert unknown == set()


def test_every_family_is_walked():
    assert list(FAMILIES) == timm.list_modules()
    assert sum(len(survey(family).findings) for family in ("swin_transformer", "xcit")) == 3, "the walk found nothing"


@pytest.mark.slow
def test_every_class_of_timm_that_says_softmax_is_in_the_table():
    """Also those that no model holds unless it is asked for."""
    found = {
        cls
        for name, module in sys.modules.items()
        if name.startswith(("timm.layers.", "timm.models."))
        for cls in vars(module).values()
        if isinstance(cls, type) and issubclass(cls, nn.Module) and cls.__module__ == name and says_softmax(cls)
    }
    assert {class_name(cls) for cls in found} - TABLE - NO_ATTENTION == set()


def test_every_name_in_the_table_is_a_class_of_timm():
    for name in TABLE:
        module, _, cls = name.rpartition(".")
        assert issubclass(getattr(importlib.import_module(module), cls), nn.Module)


@pytest.mark.slow
def test_the_page_is_what_is_found_today():
    if f"timm {timm.__version__};" not in PAGE.read_text():
        pytest.skip("docs/timm.md is about another version of timm")
    assert PAGE.read_text() == page(), f"docs/timm.md is out of date: run {COMMAND}"


class Pooled(nn.Module):
    """A block, and a head that pools its tokens by attention."""

    def __init__(self):
        super().__init__()
        self.attn, self.pool = AttentionRope(32, 4), AttentionPoolLatent(32, num_heads=4)

    def forward(self, x):
        return self.pool(self.attn(x))


def test_pools_are_converted_only_where_they_are_asked_for():
    model, x = Pooled(), torch.randn(2, 9, 32)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    report = precondition(model, strict=True)
    assert report.converted == ["attn"]
    [row] = [row for row in report.rows if row.name == "pool"]
    assert row.status == "excluded"
    assert "only if include names it" in row.reason
    without = model(x)
    assert [call.conditioned for call in head_outputs(model, x)] == [True, False]

    assert precondition(model, include=["attn", "pool"]).converted == ["pool"]
    assert not torch.allclose(model(x), without, rtol=1e-2)
    assert [call.conditioned for call in head_outputs(model, x)] == [True, True]
    assert precondition(model).names("unchanged") == ["attn", "pool"]
    with pytest.raises(ValueError, match="already converted"):
        precondition(model, eps=1e-3)

    data, expected = conditioning(model), model(x)
    restore(model)
    apply_conditioning(model, data)
    assert (model(x) == expected).all()


def test_nothing_but_a_pool():
    with pytest.raises(ValueError, match=r"nothing to convert in Sequential:\n  0: it pools tokens .* only if include"):
        precondition(nn.Sequential(SimPool1d(32)))
    assert precondition(nn.Sequential(SimPool1d(32)), include="0").converted == ["0"]
    with pytest.raises(ValueError, match="SimPool1d returns its heads to the power of 1 / gamma"):
        precondition(nn.Sequential(SimPool1d(32, gamma=1.25)))
    with pytest.raises(ValueError, match="take rows='output'"):
        precondition(nn.Sequential(SimPool1d(32)), include="0", rows="weights")


def test_exactly_the_classes_of_the_table():
    class Derived(AttentionRope):
        pass

    with pytest.raises(ValueError, match="Derived is a subclass of AttentionRope and may"):
        precondition(nn.Sequential(Derived(32, 4)))


def test_what_only_calls_itself_attention_does_not_stand_in_the_way():
    model = nn.Sequential(Attention(32, 4), SpatialAttn())
    report = precondition(model, strict=True)
    assert [row.status for row in report.rows] == ["converted", "no attention"]
    assert "computes no softmax" in report.rows[1].reason
    assert report.refused == []
    with pytest.raises(ValueError, match=r"nothing to convert in SpatialAttn:\n.*weighs channels or places"):
        precondition(SpatialAttn())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["cait_xxs24_224", "efficientformerv2_s0", "iformer_t", "levit_128s", "vit_tiny_patch16_224"]
)
def test_torch_fx_traces_converted_models(name):
    """With a hook before one layer and before several, and with forwards that are rewritten."""
    model = timm.create_model(name)
    model.eval()
    precondition(model)
    x = torch.randn(1, *model.pretrained_cfg["input_size"])
    with torch.no_grad():
        traced = torch.fx.symbolic_trace(model)
        assert (traced(x) == model(x)).all()
