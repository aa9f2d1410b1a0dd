"""`register_attention(…, projections=…)`: W_Q, W_K and W_V of classes of one's own, in every way they may lie."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conditioned_attention import precondition, register_attention, restore, spectral_condition
from conditioned_attention.measure.probing.projections import projection_records

STRENGTH = 0.7


class Own(nn.Module):
    """Four heads of 8; how the rows of its weights lie is for its subclasses to say."""

    heads, width = 4, 32

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(32, 32)

    def forward(self, x):
        q, k, v = (y.unflatten(-1, (-1, 8)).transpose(1, 2) for y in self.project(x))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=k.shape[1] < 4)
        return self.out(y.transpose(1, 2).flatten(2))


class Fused(Own):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(32, 96)

    def project(self, x):
        return self.qkv(x).chunk(3, -1)


class ByHead(Fused):
    def project(self, x):
        return (y.flatten(2) for y in self.qkv(x).unflatten(-1, (4, 3, 8)).unbind(3))


class Grouped(Own):
    """Two key heads, a gate among the rows, and a weight that is no submodule's."""

    def __init__(self):
        super().__init__()
        self.q = nn.Parameter(torch.randn(32, 32) / 6)
        self.inner = nn.ModuleDict({"kgv": nn.Linear(32, 16 + 5 + 16)})

    def project(self, x):
        k, _, v = self.inner["kgv"](x).split((16, 5, 16), -1)
        return F.linear(x, self.q), k, v


PLACES = {
    Fused: {"qkv": "qkv"},
    ByHead: {"qkv": "H*qkv"},
    Grouped: lambda module: {"q": "q", "inner.kgv": ("k-v", (16, module.inner["kgv"].out_features - 32, 16))},
}


class Shifted(nn.Module):
    """What attention becomes whose queries, keys and values gain λ x[..., :k]."""

    def __init__(self, attention):
        super().__init__()
        project = attention.project
        attention.project = lambda x: (y + STRENGTH * x[..., : y.shape[-1]] for y in project(x))
        self.attention = attention

    def forward(self, x):
        return self.attention(x)


@pytest.mark.parametrize("cls", PLACES)
def test_the_effect(cls):
    register_attention(cls, at="out", heads="heads", projections=PLACES[cls])
    torch.manual_seed(0)
    attention, x = cls(), torch.randn(2, 5, 32)
    plain = attention(x)
    assert spectral_condition(attention, STRENGTH).converted == [""]
    found = attention(x)
    assert precondition(attention).converted == [""]
    restore(attention)
    assert torch.equal(attention(x), plain)
    torch.testing.assert_close(found, Shifted(attention)(x))
    assert projection_records(attention)[0].shape == (32, 32)


@pytest.mark.parametrize(
    ("projections", "error", "words"),
    [
        (["qkv"], TypeError, "must be a mapping or a function"),
        ({"qkv": "qkz"}, ValueError, "letters of q, k, v and -"),
        ({"qkv": ("qkv", (1, 1, 1), 2)}, ValueError, "letters of q, k, v and -"),
        ({"qkv": "qk"}, ValueError, "queries, keys and values once each"),
        ({"q": "q", "qkv": "qkv"}, ValueError, "queries, keys and values once each"),
    ],
)
def test_what_cannot_be(projections, error, words):
    with pytest.raises(error, match=words):
        register_attention(Fused, at="out", heads="heads", projections=projections)


@pytest.mark.parametrize(
    ("projections", "words"),
    [
        (None, "was registered without its projections"),
        ({"query": "qkv"}, "has no weight 'query'"),
        ({"qkv": ("qkv", (32, 32, 16))}, "96 rows, which are not 1 × (32, 32, 16)"),
        (lambda module: {"qkv": ("qkv", (30, 33, 33))}, "cannot be divided evenly among 4 heads"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(projections, words):
    register_attention(Fused, at="out", heads="heads", projections=projections)
    with pytest.raises(ValueError, match=re.escape(words)):
        spectral_condition(Fused(), STRENGTH)
