"""Heads that are reached by a hook: classes of one's own, layouts, and what happens when modules are exchanged."""

import copy
import pickle
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conditioned_attention import conditioning, precondition, register_attention, restore
from conditioned_attention.preconditioner import RowNorm
from conditioned_attention.sites import registered
from conditioned_attention.sites.hook import Layout
from tests.oracle import NormalisedRows


class OwnAttention(nn.Module):
    """What a user writes."""

    def __init__(self, width=32, heads=4):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class BareAttention(nn.Module):
    """Returns its heads, side by side, and something else."""

    num_heads = 4

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(32, 96)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), "weights"


class Derived(OwnAttention):
    pass


@pytest.fixture(autouse=True)
def only_here(monkeypatch):
    monkeypatch.setattr(registered, "_registered", {})


@pytest.fixture
def model():
    register_attention(OwnAttention, at="out", heads="heads")
    return nn.Sequential(OwnAttention(), nn.GELU(), OwnAttention())


X = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))


def oracle(model):
    with NormalisedRows():
        return model(X)


@pytest.mark.parametrize(
    ("axes", "along", "shape", "rows"),
    [
        ("B N H*D", "D", (2, 5, 12), "bn(hd)->bhnd"),
        ("B N H*D", "D", (2, 5, 6, 12), "b...(hd)->bhnd"),
        ("B N H*D", "D", (2, 12), "b(hd)->bh1d"),
        ("B N D*H", "D", (2, 5, 12), "bn(dh)->bhnd"),
        ("B H*D N", "D", (2, 12, 5, 6), "b(hd)n->bhnd"),
        ("B H N D", "D", (2, 3, 5, 4), ""),
        ("B N H D", "D", (2, 5, 3, 4), ""),
        ("B N H*D", "N", (2, 5, 12), ""),
        ("B H*D N", "N", (2, 12, 5, 6), ""),
    ],
)
def test_layouts(axes, along, shape, rows):
    """Each row of the definition has unit length, and every other number is where it was."""
    x = torch.randn(shape)
    y = Layout(axes, along).apply(RowNorm(), x, 3)
    heads = {
        "B N H*D": lambda t: t.reshape(2, -1, 3, 4),
        "B N D*H": lambda t: t.reshape(2, -1, 4, 3).transpose(2, 3),
        "B H*D N": lambda t: t.reshape(2, 3, 4, -1).permute(0, 3, 1, 2),
        "B H N D": lambda t: t.transpose(1, 2),
        "B N H D": lambda t: t,
    }[axes]  # (B, N, H, D)
    dim = -1 if along == "D" else 1
    torch.testing.assert_close(heads(y), F.normalize(heads(x), dim=dim))


def test_layouts_that_are_none():
    for axes in ("B N", "B N H*D*C", "B*N H D", "B N HD", "H*D", "N*B H D", "B N H**D", ""):
        with pytest.raises(ValueError, match="layout="):
            Layout(axes)
    with pytest.raises(ValueError, match=r"along='H' is unknown; valid are \('D', 'N'\)"):
        Layout(along="H")
    with pytest.raises(ValueError, match=r"heads were expected as 'B H N D', got a tensor of shape \(3, 4, 5\)"):
        Layout("B H N D").apply(RowNorm(), torch.randn(3, 4, 5), 3)
    for axes, shape in (
        ("B N H*D", (2, 5, 13)),
        ("B H*D N", (2, 13, 6, 6)),
        ("B N H D", (2, 3, 5, 4)),
        ("B D*H N", (2, 4, 6)),
    ):
        with pytest.raises(ValueError, match=r"with 3 of them, got a tensor of shape \(2, "):
            Layout(axes).apply(RowNorm(), torch.randn(shape), 3)


def test_own_class(model):
    plain, expected = model(X), oracle(model)
    report = precondition(model, strict=True)
    assert [(row.name, row.mechanism) for row in report.rows] == [("0", "hook"), ("2", "hook")]
    torch.testing.assert_close(model(X), expected)
    assert not torch.allclose(plain, expected, rtol=1e-2)
    assert restore(model).names("restored") == ["0", "2"]
    assert (model(X) == plain).all()
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert restore(model).names("restored") == []


def test_heads_that_are_returned():
    register_attention(BareAttention, at=None)
    attention = BareAttention()
    with NormalisedRows():
        expected, _ = attention(X)
    precondition(attention)
    y, rest = attention(X)
    torch.testing.assert_close(y, expected)
    assert rest == "weights"
    restore(attention)
    assert not torch.allclose(attention(X)[0], y)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_heads_that_are_pruned_after_conversion(model, compiled):
    """Their number is asked at each call; taken at conversion, it would cut two heads of 8 into four of 4."""
    run = torch.compile(model, backend="eager") if compiled else model
    precondition(model, strict=True)
    run(X)
    for attention in (model[0], model[2]):
        rows = torch.cat([torch.arange(8), torch.arange(16, 24)])
        for part in attention.qkv.weight, attention.qkv.bias:
            part.data = part.data.unflatten(0, (3, 32))[:, rows].flatten(0, 1)
        attention.out.weight.data = attention.out.weight.data[:, rows]
        attention.heads = 2
    ours = run(X)
    restore(model)
    assert (ours - model(X)).abs().max() > 0.01 * ours.abs().max(), "the comparison would be vacuous"
    torch.testing.assert_close(ours, oracle(model))


class Named(NamedTuple):
    heads: torch.Tensor
    weights: str


class NamedBareAttention(BareAttention):
    def forward(self, x):
        return Named(*super().forward(x))


def test_a_named_tuple_stays_one():
    register_attention(NamedBareAttention, at=None)
    model = NamedBareAttention()
    plain = model(X)
    precondition(model)
    result = model(X)
    assert isinstance(result, Named)
    assert result.weights == "weights"
    assert torch.allclose(result.heads, F.normalize(plain.heads.unflatten(-1, (4, 8)), dim=-1).flatten(2))


def test_heads_that_arrive_in_another_way_are_named():
    class ListedAttention(BareAttention):
        def forward(self, x):
            return list(super().forward(x))

    class KeywordAttention(OwnAttention):
        def forward(self, x):
            return self.out(input=x)

    register_attention(ListedAttention, at=None)
    register_attention(KeywordAttention, at="out", heads="heads")
    for model, words in ((ListedAttention(), "returned a list"), (KeywordAttention(), "keywords only")):
        precondition(model)
        with pytest.raises(TypeError, match=words):
            model(X)


def test_two_attentions_before_one_projection(model):
    """A hook cannot tell whose heads it gets."""
    register_attention(OwnAttention, at="out", heads="heads")
    model.append(OwnAttention())
    model[3].out = model[0].out
    model[3].heads = 2
    with NormalisedRows():
        all_normalised = model[2](X)
    report = precondition(model)
    assert report.converted == ["2"]
    assert report.refused == ["0", "3"]
    assert "is that of 3 too" in report.rows[0].reason
    assert "is that of 0 too" in report.rows[2].reason
    assert torch.allclose(model[2](X), all_normalised, atol=1e-6)
    restore(model)
    assert precondition(model[0]).converted == [""]
    restore(model)
    assert conditioning(model)["transforms"] == []


def test_exactly_the_registered_class(model):
    with pytest.raises(ValueError, match="Derived is a subclass of OwnAttention and may"):
        precondition(nn.Sequential(Derived()))


def test_copies_need_no_registration(model, monkeypatch):
    precondition(model)
    expected = model(X)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    monkeypatch.setattr(registered, "_registered", {})
    for twin in twins:
        assert (twin(X) == expected).all()
        assert conditioning(twin) == conditioning(model)
        assert restore(twin).names("restored") == ["0", "2"]
        assert not torch.allclose(twin(X), expected)


class Wrapped(nn.Module):
    """What LoRA makes of a linear layer."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer, self.more = base_layer, nn.Linear(32, 32, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.more(x)


def test_a_module_that_is_wrapped_after_conversion(model):
    precondition(model)
    model[0].out = Wrapped(model[0].out)
    ours = model(X)
    restore(model)
    torch.testing.assert_close(ours, oracle(model))
    assert not torch.allclose(ours, model(X), rtol=1e-2)
    precondition(model)
    assert (model(X) == ours).all()
    model[0].out = model[0].out.base_layer  # unwrapped again
    ours = model(X)
    restore(model)
    torch.testing.assert_close(ours, oracle(model))


@pytest.mark.slow
def test_wrapped_after_conversion_and_compiled_at_once(model):
    precondition(model)
    model[0].out = Wrapped(model[0].out)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match=r"replaced after conversion|Observed exception"):
        compiled(X)
    expected = model(X)
    torch.compiler.reset()
    torch.testing.assert_close(compiled(X), expected)


def test_compiled_before_conversion(model):
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    plain, expected = compiled(X), oracle(model)
    precondition(model)
    torch.testing.assert_close(compiled(X), expected)
    restore(model)
    assert (compiled(X) == plain).all()


def test_hooks_of_others_see_what_the_projection_gets(model):
    seen = []
    model[0].out.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    precondition(model)
    model(X)
    norms = seen[0].unflatten(-1, (4, 8)).norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    restore(model)
    assert len(model[0].out._forward_pre_hooks) == 1


def test_rows_of_the_weights_are_refused(model):
    with pytest.raises(ValueError, match="never sees the attention weights: take rows='output'"):
        precondition(model, rows="weights")
    assert not any(m._forward_pre_hooks for m in model.modules())


class Unused(OwnAttention):
    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return F.linear(y, self.out.weight, self.out.bias)


def test_a_site_that_is_passed_by():
    register_attention(Unused, at="out", heads="heads")
    model = Unused()
    precondition(model)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no heads came to 'out' in the forward of this Unused"):
            model(X)
    restore(model)
    assert not model._forward_hooks
    model(X)


def test_a_site_that_is_not_there(model):
    register_attention(OwnAttention, at="projection", heads="heads")
    with pytest.raises(ValueError, match="this OwnAttention has no module at 'projection'"):
        precondition(model)
    register_attention(OwnAttention, at="out", heads="num_heads")
    with pytest.raises(ValueError, match="no number of heads in the attribute 'num_heads'"):
        precondition(model)
    register_attention(OwnAttention, at="out", heads=4)
    assert precondition(model).converted == ["0", "2"]


@pytest.mark.parametrize(
    ("cls", "kwargs", "error", "words"),
    [
        (OwnAttention(), {"at": "out"}, TypeError, "cls must be a subclass of torch.nn.Module"),
        (dict, {"at": "out"}, TypeError, "cls must be a subclass"),
        (OwnAttention, {"at": 3}, TypeError, "at must be the path"),
        (OwnAttention, {"at": ""}, TypeError, "at must be the path"),
        (OwnAttention, {"at": "out", "heads": 1.0}, TypeError, "heads must be a number or the name"),
        (OwnAttention, {"at": "out", "heads": 0}, ValueError, "heads must be at least 1"),
        (OwnAttention, {"at": "out", "layout": "BNC"}, ValueError, "layout='BNC'"),
    ],
)
def test_wrong_registrations(cls, kwargs, error, words):
    with pytest.raises(error, match=words):
        register_attention(cls, **kwargs)
