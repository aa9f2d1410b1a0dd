"""`lean`: what it refuses, that nothing bad reaches PyTorch's raw operators, and what it keeps."""

import contextlib
import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel

from conditioned_attention import explain, functional, preconditioned_attention
from conditioned_attention.attention.fused import launch as fused_launch
from conditioned_attention.attention.lean import flash
from conditioned_attention.attention.lean import rows as lean_rows
from conditioned_attention.profiling.memory import held_bytes
from tests.attention.kernels import assert_good, needs_kernels
from tests.pairwise import pairwise
from tests.triton_interpreter import VARIABLE

Q = torch.randn(2, 4, 5, 8)
BIAS = torch.zeros(5, 5, requires_grad=True)


def lean(*args, **kwargs):
    return preconditioned_attention(*args, impl="lean", **kwargs)


def composed(*args, **kwargs):
    return preconditioned_attention(*args, impl="composed", **kwargs)


def results(function, *leaves, upstream=None):
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    output = function(*leaves)
    generator = torch.Generator().manual_seed(1)
    if upstream is None:
        upstream = torch.randn(output.shape, generator=generator).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream)]


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.fixture
def auto_prefers_lean(monkeypatch):
    """At any size; the table prefers it from half a million numbers on."""
    monkeypatch.setattr(functional, "_AUTO", (functional._Rule("cpu", 0, "lean", "a test"),))


# What it refuses


@contextlib.contextmanager
def replaced_attention():
    stock = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda *args, **kwargs: stock(*args, **kwargs)
    try:
        yield
    finally:
        F.scaled_dot_product_attention = stock


class Watching(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Subclass(torch.Tensor):
    pass


NESTED = torch.nested.nested_tensor([torch.randn(n, 4, 8) for n in (3, 7)], layout=torch.jagged).transpose(1, 2)

REFUSALS = [
    ("dropout", (Q, Q, Q, None, 0.1), {}, None, "no dropout"),
    ("value width", (Q, Q, Q[..., :4]), {}, None, "value width 4 differs from key width 8"),
    ("five dimensions", (Q[None], Q[None], Q[None]), {}, None, "2 to 4"),
    ("another number of dimensions", (Q, Q[0], Q[0]), {}, None, "same number of dimensions"),
    ("heads that broadcast", (Q, Q[:, :1], Q[:, :1]), {}, None, "broadcast"),
    ("batch that broadcasts", (Q, Q[:1], Q[:1]), {}, None, "broadcast"),
    ("grouped, batch that broadcasts", (Q, Q[:1, :2], Q[:1, :2]), {"enable_gqa": True}, None, "broadcast"),
    ("learned bias", (Q, Q, Q, BIAS), {}, None, "no gradient to a mask"),
    ("no sequences", (Q[:0], Q[:0], Q[:0]), {}, None, "empty"),
    ("no queries", (Q[:, :, :0], Q, Q), {}, None, "empty"),
    ("no keys", (Q, Q[:, :, :0], Q[:, :, :0]), {}, None, "empty"),
    ("rows of the weights", (Q, Q, Q), {"rows": "weights"}, None, "rows of the output only"),
    ("jagged", (NESTED, NESTED, NESTED), {}, None, "nested"),
    ("a subclass", (Q.as_subclass(Subclass), Q, Q), {}, None, "Subclass"),
    ("meta device", (Q.to("meta"), Q.to("meta"), Q.to("meta")), {}, None, "meta"),
    ("flash switched off", (Q, Q, Q), {}, lambda: sdpa_kernel(SDPBackend.MATH), "switched off"),
    ("attention replaced", (Q, Q, Q), {}, replaced_attention, "was replaced"),
    ("a function mode", (Q, Q, Q), {}, Watching, "TorchFunctionMode"),
    ("forward mode", (Q, Q, Q), {}, torch.autograd.forward_ad.dual_level, "forward-mode"),
]


@pytest.mark.parametrize(
    ("args", "kwargs", "surroundings", "words"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS]
)
@pytest.mark.usefixtures("auto_prefers_lean")
def test_refuses_with_the_reason_and_auto_takes_the_other(args, kwargs, surroundings, words):
    with surroundings() if surroundings else contextlib.nullcontext():
        with pytest.raises(ValueError, match=words):
            lean(*args, **kwargs)
        with pytest.raises(ValueError, match=words):
            explain(*args, impl="lean", **kwargs)
        explanation = explain(*args, **kwargs)
        assert explanation.impl == "composed"
        assert words in explanation.refused["lean"]
        assert preconditioned_attention(*args, **kwargs).shape == composed(*args, **kwargs).shape


def test_float64_beside_autocast_is_refused():
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="float64, which autocast leaves"):
        lean(Q, Q.double(), Q)


@pytest.mark.usefixtures("auto_prefers_lean")
def test_auto_takes_it_where_it_can_and_nothing_is_copied():
    assert explain(Q, Q, Q).impl == "lean"
    turned = Q.transpose(2, 3).contiguous().transpose(2, 3)
    assert explain(turned, turned, turned).impl == "composed"
    assert "copy" in explain(turned, turned, turned).refused["lean"]
    assert explain(turned, turned, turned, impl="lean").impl == "lean"
    with torch.device("cpu"):  # a function mode, but one that watches nothing
        assert explain(Q, Q, Q).impl == "lean"


def test_auto_prefers_by_size():
    small, large = torch.zeros(1, 1, 10, 8), torch.zeros(8, 12, 197, 64)
    assert explain(small, small, small).impl == "composed"
    assert "small" in explain(small, small, small).refused["lean"]
    assert explain(large, large, large).impl == "lean"
    assert "one float a row" in explain(large, large, large).reason
    assert "keeps one more tensor" in explain(large, large, large).refused["composed"]


# Nothing bad reaches the raw operators


@contextlib.contextmanager
def watched_operators():
    """Fails if something reaches the operators that they cannot take; gives the list of calls."""
    calls = []

    def check(query, key, value, mask, *others):
        for tensor in (query, key, value, *others):
            assert tensor.dim() == 4
            assert tensor.numel() > 0
            assert tensor.dtype == query.dtype
            assert tensor.stride(-1) == 1 or tensor.shape[-1] == 1
        (b, h, n, d), (kb, g, m, kd) = query.shape, key.shape
        assert key.shape == value.shape
        assert (kb, kd) == (b, d)
        assert h % g == 0
        assert all(other.shape == query.shape for other in others)
        if mask is not None:
            assert mask.dim() == 4
            assert mask.shape[2:] == (n, m)
            assert not mask.requires_grad
            assert mask.stride(-1) == 1 or m == 1
            assert mask.shape[0] in (1, b)
            assert mask.shape[1] in (1, h)
            assert mask.dtype in (query.dtype, torch.float32)

    forward, backward = flash.forward, flash.backward

    def watched_forward(call, query, key, value, mask):
        check(query, key, value, mask)
        calls.append("forward")
        return forward(call, query, key, value, mask)

    def watched_backward(call, upstream, query, key, value, mask, kept):
        check(query, key, value, mask, upstream, kept[0])
        calls.append("backward")
        return backward(call, upstream, query, key, value, mask, kept)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flash, "forward", watched_forward)
        patch.setattr(flash, "backward", watched_backward)
        yield calls


@st.composite
def odd_inputs(draw):
    """Shapes, strides and masks as odd as attention takes them: any order in memory, gaps, sizes of 0 and 1."""
    dims, repeats, d = draw(st.integers(2, 4)), draw(st.integers(1, 2)), draw(st.integers(1, 9))
    b, g, n, m = draw(st.integers(0, 3)), draw(st.integers(1, 2)), draw(st.integers(0, 4)), draw(st.integers(0, 4))
    repeats = repeats if dims > 2 else 1
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))

    def in_any_order(*shape):
        shape = shape[-dims:]
        order = draw(st.permutations(range(dims)))
        gap = draw(st.integers(1, 2))
        tensor = torch.randn([shape[i] for i in order] + [gap], generator=generator)[..., 0]
        return tensor.permute([order.index(i) for i in range(dims)])

    shapes = (b, g * repeats, n, d), (b, g, m, d), (b, g, m, d if draw(st.integers(0, 5)) else d + 1)
    mask, sizes = None, (b, g * repeats, n, m)[-dims:]
    if draw(st.booleans()):
        kept = sizes[-draw(st.integers(2, dims)) :]
        mask = torch.randn([size if draw(st.booleans()) else 1 for size in kept], generator=generator)
        mask = mask > 0 if draw(st.booleans()) else mask
    return [in_any_order(*shape) for shape in shapes], mask, repeats > 1, in_any_order(b, g * repeats, n, d)


@settings(max_examples=300, deadline=None)
@given(odd_inputs(), st.booleans(), st.sampled_from(["stopped", "through"]))
def test_odd_inputs_are_refused_or_give_what_composed_gives(inputs, causal, gradient):
    leaves, mask, gqa, upstream = inputs
    options = {"attn_mask": mask, "is_causal": causal, "enable_gqa": gqa, "gradient": gradient}
    with watched_operators() as calls:
        if "lean" in explain(*leaves, **options).refused and (
            leaves[2].shape[-1] != leaves[0].shape[-1] or is_empty(leaves, mask)
        ):
            with pytest.raises(ValueError, match="cannot run here"):
                lean(*leaves, **options)
            assert not calls
            return
        ours = results(lambda *t: lean(*t, **options), *leaves, upstream=upstream)
        assert calls == ["forward", "backward"]
    theirs = results(lambda *t: composed(*t, **options), *leaves, upstream=upstream)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * largest_factor(*leaves, mask, causal, gqa))


def largest_factor(query, key, value, mask, causal, gqa):
    """The largest entry of C, at least 1: where a row nearly cancels, C multiplies errors of rounding as well."""
    if causal:
        seen = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
        additive = mask is not None and mask.is_floating_point()
        mask = seen if mask is None else mask.masked_fill(~seen, -torch.inf) if additive else mask & seen
    norms = F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=gqa).norm(dim=-1)
    return max([1.0, *(1 / norms[norms > 1e-6]).flatten().tolist()])


def is_empty(leaves, mask):
    return any(tensor.numel() == 0 for tensor in (*leaves, *([] if mask is None else [mask])))


@pytest.mark.parametrize("reduce", [torch.sum, torch.mean, lambda y: y[0, 0, 0, 0], lambda y: y.transpose(2, 3).sum()])
def test_upstream_gradients_as_reductions_make_them(reduce):
    """They are expanded, turned or full of zeros: strides that the raw operators read wrongly."""
    assert_same(
        results(lambda *t: reduce(lean(*t)), Q, Q + 1, Q - 1), results(lambda *t: reduce(composed(*t)), Q, Q + 1, Q - 1)
    )


# What it keeps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", [None, torch.rand(1, 1, 197, 197) > 0.5])
def test_keeps_one_float_a_row_more_than_plain_attention(dtype, mask):
    """Through the output projection, which keeps its input: y must be that input, and not another copy of it."""
    b, h, n, d = 2, 3, 197, 64
    q, k, v = (t.transpose(1, 2).requires_grad_() for t in torch.randn(3, b, n, h, d).to(dtype))
    weight = torch.randn(h * d, h * d, dtype=dtype, requires_grad=True)

    def held(attention):
        forward = lambda: attention(q, k, v, mask).transpose(1, 2).reshape(b, n, h * d) @ weight  # noqa: E731
        return held_bytes(forward, [q, k, v, weight, *([] if mask is None else [mask])])

    row = 4 * b * h * n
    assert held(lean) == held(F.scaled_dot_product_attention) + row
    assert held(composed) > held(F.scaled_dot_product_attention) + d // 2 * row  # what it is there for


def test_keeps_nothing_without_gradients():
    with torch.no_grad():
        assert held_bytes(lambda: lean(Q, Q, Q)) == 0
        assert not lean(Q, Q, Q).requires_grad
    torch.testing.assert_close(lean(Q, Q, Q), composed(Q, Q, Q))


def test_output_may_not_be_overwritten_before_backward():
    q = Q.clone().requires_grad_()
    y = lean(q, q, q)
    y.mul_(2)  # which is no error in itself
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_some_of_the_gradients(wanted):
    def some(function):
        leaves = [t.clone().requires_grad_(i in wanted) for i, t in enumerate((Q, Q + 1, Q - 1))]
        function(*leaves).square().sum().backward()
        return [leaf.grad for leaf in leaves]

    for a, b in zip(some(lambda *t: lean(*t) * t[2]), some(lambda *t: composed(*t) * t[2])):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


def test_backward_twice_accumulates():
    q = Q.clone().requires_grad_()
    y = lean(q, q, q)
    first = torch.autograd.grad(y.sum(), q, retain_graph=True)
    assert_same(first, torch.autograd.grad(y.sum(), q))


@needs_kernels
@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("gradient", "dtype", "rows"),
    pairwise(
        ["stopped", "through"],
        [torch.float32, torch.bfloat16, torch.float16],
        [(16, 1.0), (200, 1.0), (16, 1e-8), (16, 0.0)],
    ),
    ids=str,
)
def test_one_kernel_each_way_does_what_pytorchs_operators_do(gradient, dtype, rows, monkeypatch):
    """As on CUDA; here in Triton's interpreter, around PyTorch's flash attention for CPUs; ``rows``: width, factor."""
    width, factor = rows
    q, k, v = torch.randn(3, 2, 37, 3, width).to(dtype).transpose(2, 3)
    tensors = (q, k, v * factor)
    attend = functools.partial(lean, gradient=gradient)
    without, oracle = results(attend, *tensors), results(attend, *(t.double() for t in tensors))
    monkeypatch.setenv(VARIABLE, "1")
    launched = []
    monkeypatch.setattr(lean_rows, "power_of_two", lambda n: launched.append(n) or fused_launch.power_of_two(n))
    assert_good(results(attend, *tensors), without, oracle, "one kernel")
    assert launched == [width, width]
