"""The families at the size of this project's own runs: their tokens and heads, their start, and what converts."""

import math

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from conditioned_attention.experiments.models.small_family import SmallFamily
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from conditioned_attention.sites import find_sites

FAMILIES = ("vit", "vit_wide_heads", "swin", "xcit", "davit")
each_family = pytest.mark.parametrize("family", FAMILIES)


def build(family, seed=0, side=28, channels=1, **changes):
    torch.manual_seed(seed)
    return SmallFamily(family, **changes).build(side, channels, 10).eval()


def attention(model, side, channels=1):
    """(tokens, head width) of every attention module with a fused projection."""
    found = []

    def look(module, inputs):
        heads = module.out_features // 3 // heads_of[module]
        found.append((inputs[0].shape[1], heads))

    heads_of = {site.module.qkv: site.module.num_heads for site in find_sites(model) if hasattr(site.module, "qkv")}
    hooks = [qkv.register_forward_pre_hook(look) for qkv in heads_of]
    assert model(torch.randn(2, channels, side, side)).shape == (2, 10)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("side", "tokens", "few"), [(28, 49, 16), (32, 64, 16), (64, 64, 16)])
@each_family
def test_tokens_and_heads(family, side, tokens, few):
    expected = {"vit": (tokens + 1, 16), "vit_wide_heads": (few + 1, 32)}.get(family, (tokens, 16))
    found = attention(build(family, side=side), side)
    if family == "davit":  # over channels it has no windows
        assert found.pop(1) == (4 * tokens, 16)
    assert set(found) == {expected}


@each_family
def test_linear_layers_start_by_their_width_and_all_else_as_in_timm(family):
    by_width, theirs, set_ = (build(family, init=init).state_dict() for init in ("width", "library", 0.1))
    linear = {name for name, module in build(family).named_modules() if isinstance(module, nn.Linear)}
    scaled = {f"{name}.weight" for name in linear} | {"cls_token", *({"pos_embed"} if "vit" in family else ())}
    for name, weight in theirs.items():
        if name not in scaled:
            assert torch.equal(weight, by_width[name]), name
            continue
        width = 64 if name.startswith("head") or weight.dim() == 3 else min(weight.shape)
        torch.testing.assert_close(by_width[name], weight * math.sqrt(768 / width), msg=name)
        torch.testing.assert_close(set_[name], weight * 5, msg=name)
    first = next(name for name in theirs if name.endswith("attn.qkv.weight"))
    width = by_width[first].shape[1]
    assert width == (32 if family in ("swin", "davit") else 64)
    assert by_width[first].std().item() == pytest.approx(0.02 * math.sqrt(768 / width), rel=0.05)


@pytest.mark.one_in(2)
@each_family
def test_what_is_compared_applies_or_says_why_not(family):
    x = torch.randn(2, 1, 28, 28)
    plain = build(family)(x)
    for name in ("preconditioned", "spectral", "preconditioned+spectral", "conditioned_init", "qk_norm"):
        model = build(family)
        if name == "qk_norm" and family in ("xcit", "davit"):
            with pytest.raises(ValueError, match="never sees queries and keys"):
                VARIANTS[name].apply(model)
            continue
        VARIANTS[name].apply(model)
        assert not torch.allclose(model(x), plain, atol=1e-3), name


@each_family
def test_drop_path(family):
    assert all(not m.drop_prob for m in build(family).modules() if isinstance(m, DropPath))
    assert max(m.drop_prob for m in build(family, drop_path=0.1).modules() if isinstance(m, DropPath)) == pytest.approx(
        0.1
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"family": "volo"}, "family='volo' is unknown; valid are 'vit', 'vit_wide_heads', 'swin'"),
        ({"family": "swin", "width": 48}, "swin takes a width that is a multiple of 32 and a depth that is one of 2"),
        ({"family": "davit", "depth": 6}, "a depth that is one of 4, got width=64 and depth=6"),
        ({"family": "vit", "depth": 0}, "depth=0"),
        ({"family": "vit", "drop_path": 1.0}, r"drop_path must be in \[0, 1\), got 1.0"),
        ({"family": "vit", "init": -1.0}, "init must be positive and finite"),
        ({"family": "vit", "init": "depth"}, "init='depth' is unknown; valid are 'library', 'width'"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        SmallFamily(**settings)


def test_another_side_is_refused():
    with pytest.raises(ValueError, match="images of 28, 32 or 64 pixels, got 30"):
        build("swin", side=30)
