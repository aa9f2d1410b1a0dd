"""preconditioned_attention against the equations of the paper in float64, on a list of named odd cases."""

import functools
import inspect
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from conditioned_attention import explain, precondition_rows, preconditioned_attention, reference
from conditioned_attention.attention.triton import machine
from conditioned_attention.functional import IMPLEMENTATIONS
from tests.judge import assert_as_good_as_plain, plain, stock


@dataclass(frozen=True)
class Case:
    name: str
    query: tuple[int, ...] = (2, 3, 17, 16)
    keys: int | None = None
    kv_heads: int | None = None
    value_width: int | None = None
    mask: str | None = None
    causal: bool = False
    scale: float | None = None
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    logits: float = 1.0  # factors on query and value
    values: float = 1.0

    def tensors(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        *batch, n, d = self.query
        m = self.keys or n
        kv_batch = [*batch[:-1], self.kv_heads] if self.kv_heads else batch
        shapes = [(*batch, n, d), (*kv_batch, m, d), (*kv_batch, m, self.value_width or d)]
        tensors = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
        tensors = [(t * f).to(self.dtype) for t, f in zip(tensors, (self.logits, 1.0, self.values))]
        return [LAYOUTS[self.layout](t) for t in tensors], self.make_mask(n, m, generator)

    def make_mask(self, n, m, generator):
        keep = torch.rand(n, m, generator=generator) > 0.4
        keep[:, 0] = True
        if self.mask == "bool":
            return keep
        if self.mask == "few keys":  # itself, and two of those before it
            return (keep.cumsum(-1) < 3) & keep | torch.eye(n, m, dtype=torch.bool)
        if self.mask == "float":
            return torch.randn(n, m, generator=generator).to(self.dtype)
        if self.mask == "fully masked rows":
            keep[min(2, n - 1)] = False
            return keep
        if self.mask == "fully masked rows, float":
            keep[min(2, n - 1)] = False
            return torch.zeros(n, m, dtype=self.dtype).masked_fill(~keep, -torch.inf)
        if self.mask == "float32":
            return torch.randn(n, m, generator=generator)
        if self.mask == "batched":
            return keep.expand(self.query[0], 1, n, m).clone()
        if self.mask == "padding":  # the last keys of some sequences
            lengths = torch.tensor([m - i % m for i in range(self.query[0])])
            return (torch.arange(m) < lengths[:, None])[:, None, None]
        if self.mask == "heads":  # a bias a head, as relative positions give
            return torch.randn(self.query[1], n, m, generator=generator).to(self.dtype)
        if self.mask == "queries":  # one entry a query, for all keys
            return torch.randn(n, 1, generator=generator).to(self.dtype)
        if self.mask == "transposed":
            return torch.randn(m, n, generator=generator).to(self.dtype).t()
        assert self.mask is None
        return None


# The same numbers, lying differently in memory
LAYOUTS = {
    "contiguous": lambda t: t,
    "heads inside": lambda t: t.transpose(-3, -2).contiguous().transpose(-3, -2),
    "width outside": lambda t: t.transpose(-2, -1).contiguous().transpose(-2, -1),
    "every second": lambda t: torch.stack([t, torch.full_like(t, torch.nan)], -1)[..., 0],
    "one for all": lambda t: t[:1].expand_as(t),
}


CASES = [
    Case("plain"),
    Case("one token", (2, 3, 1, 16)),
    Case("63 tokens, width 60", (1, 2, 63, 60)),
    Case("ViT head", (1, 1, 197, 64)),
    Case("1000 tokens", (1, 1, 1000, 32), causal=True),
    Case("one query, many keys", (2, 3, 1, 16), keys=40),
    Case("causal, more keys", (2, 2, 7, 8), keys=19, causal=True),
    Case("causal, fewer keys", (2, 2, 19, 8), keys=7, causal=True),
    Case("wide value", value_width=24),
    Case("grouped queries", (2, 6, 9, 8), kv_heads=2),
    Case("grouped queries, causal, mask", (2, 6, 9, 8), kv_heads=3, causal=True, mask="bool"),
    Case("bool mask", mask="bool"),
    Case("float mask", mask="float"),
    Case("mask of the batch", mask="batched"),
    Case("bool mask and causal", mask="bool", causal=True),
    Case("float mask and causal", mask="float", causal=True),
    Case("fully masked rows", mask="fully masked rows"),
    Case("fully masked rows, float", mask="fully masked rows, float"),
    Case("scale", scale=0.7),
    Case("2-D", (11, 8)),
    Case("3-D", (3, 11, 8)),
    Case("3-D, mask", (3, 11, 8), mask="bool"),
    Case("5-D", (2, 1, 3, 11, 8)),
    Case("heads inside", layout="heads inside"),
    Case("width outside", layout="width outside"),
    Case("every second number", layout="every second"),
    Case("one sequence for all", layout="one for all"),
    Case("float mask, transposed", mask="transposed"),
    Case("padding mask", mask="padding"),
    Case("bias of the heads", mask="heads"),
    Case("bias of the queries", mask="queries"),
    Case("logits of 3000", logits=3000.0),
    Case("few keys, logits of 10", (2, 1, 17, 60), causal=True, mask="few keys", logits=10.0),
    Case("rows below eps", values=1e-8),
    Case("large values", values=1e6, layout="heads inside"),
    Case("bfloat16", dtype=torch.bfloat16),
    Case("bfloat16, causal, heads inside", dtype=torch.bfloat16, causal=True, layout="heads inside"),
    Case("bfloat16, logits of 30", dtype=torch.bfloat16, logits=30.0),
    Case("float16, logits of 30", dtype=torch.float16, logits=30.0),
    Case("bfloat16, float32 mask", dtype=torch.bfloat16, mask="float32"),
    Case("float16", dtype=torch.float16),
    Case("float16, small values", dtype=torch.float16, values=1e-3),
    Case("float16, large values", dtype=torch.float16, values=1e3),
    Case("float64", dtype=torch.float64),
    Case("float64, mask", dtype=torch.float64, mask="bool"),
]  # fmt: skip
REFUSED = {"lean": {"wide value", "5-D"}}
case_list = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def double(tensor):
    return tensor.double() if tensor is not None and tensor.is_floating_point() else tensor


def run(function, tensors, *args, **kwargs):
    """Output and gradients for a fixed upstream gradient."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    output = function(*leaves, *args, **kwargs)
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream)]


# On a CPU; `test_fused` is where the kernels of "fused" run.
every_impl = pytest.mark.parametrize("impl", [name for name in IMPLEMENTATIONS if name != "fused"])


@case_list
@every_impl
def test_output_and_gradient_are_as_good_as_plain_pytorch(case, impl):
    tensors, mask = case.tensors()
    gqa = case.kv_heads is not None
    if case.name in REFUSED.get(impl, ()):
        with pytest.raises(ValueError, match=f"impl='{impl}' cannot run here"):
            preconditioned_attention(*tensors, mask, impl=impl)
        return
    ours = run(preconditioned_attention, tensors, mask, 0.0, case.causal, scale=case.scale, enable_gqa=gqa, impl=impl)
    plains = run(plain, tensors, mask, case.causal, case.scale, gqa)
    oracle = run(
        reference.preconditioned_attention, [t.double() for t in tensors], double(mask), case.causal, case.scale, gqa
    )
    assert ours[0].dtype == case.dtype
    for what, a, b, c in zip(("output", "dq", "dk", "dv"), ours, plains, oracle):
        assert_as_good_as_plain(a, b, c, 2 if what == "output" else 3, f"{case.name}, {what}")


@case_list
@pytest.mark.parametrize("gradient", ["stopped", "through"])
def test_rows_of_the_weights(case, gradient):
    """Algorithm 1 read literally, with either gradient; in float32 the error is rounding."""
    tensors, mask = case.tensors()
    gqa = case.kv_heads is not None

    def by_equations(q, k, v, mask):
        if gqa:
            repeats = q.shape[-3] // k.shape[-3]
            k, v = k.repeat_interleave(repeats, -3), v.repeat_interleave(repeats, -3)
        weights = reference.attention_weights(q, k, mask, case.causal, case.scale)
        c = 1 / weights.square().sum(-1, keepdim=True).clamp_min(1e-300).sqrt()
        c = c.where(weights.sum(-1, keepdim=True) > 0, 1.0)
        return (c.detach() if gradient == "stopped" else c) * (weights @ v)

    ours = run(
        preconditioned_attention, tensors, mask, 0.0, case.causal,
        scale=case.scale, enable_gqa=gqa, rows="weights", gradient=gradient,
    )  # fmt: skip
    oracle = run(by_equations, [t.double() for t in tensors], double(mask))
    for a, b in zip(ours, oracle):
        assert a.isfinite().all()
        assert (a.double() - b).abs().max() <= 40 * torch.finfo(case.dtype).eps * max(1.0, b.abs().max())


@case_list
@every_impl
def test_gradient_through_the_norm_is_that_of_the_whole_function(case, impl):
    if case.name in REFUSED.get(impl, ()):
        return
    tensors, mask = case.tensors()
    gqa = case.kv_heads is not None

    def normalized(attention):
        def function(q, k, v, mask):
            o = attention(q, k, v, mask)
            return F.normalize(o, dim=-1, eps=1e-6 if o.dtype != torch.float16 else 6.1e-5)

        return function

    def by_equations(q, k, v, mask):
        if gqa:
            repeats = q.shape[-3] // k.shape[-3]
            k, v = k.repeat_interleave(repeats, -3), v.repeat_interleave(repeats, -3)
        return reference.attention_weights(q, k, mask, case.causal, case.scale) @ v

    ours = run(
        preconditioned_attention, tensors, mask, 0.0, case.causal,
        scale=case.scale, enable_gqa=gqa, gradient="through", impl=impl,
    )  # fmt: skip
    plains = run(normalized(lambda *t: stock(*t, case.causal, case.scale, gqa)), tensors, mask)
    oracle = run(normalized(by_equations), [t.double() for t in tensors], double(mask))
    empty_rows = case.mask is not None and case.mask.startswith("fully")
    for what, a, b, c in zip(("output", "dq", "dk", "dv"), ours, plains, oracle):
        assert a.isfinite().all()
        if not empty_rows or what == "output":  # F.normalize divides the gradient of a zero row by its eps
            assert_as_good_as_plain(a, b, c, 2 if what == "output" else 3, f"{case.name}, {what}")


@every_impl
def test_gradcheck_passes_with_c_frozen_and_fails_without(impl):
    ours_of = functools.partial(preconditioned_attention, impl=impl)
    q, k, v = (torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    c = reference.preconditioner(F.scaled_dot_product_attention(q, k, v).detach()).unsqueeze(-1)
    assert torch.autograd.gradcheck(lambda *t: c * F.scaled_dot_product_attention(*t), (q, k, v))
    ours = run(ours_of, (q, k, v))
    frozen = run(lambda *t: c * F.scaled_dot_product_attention(*t), (q, k, v))
    for a, b in zip(ours, frozen):
        torch.testing.assert_close(a, b)
    assert not torch.autograd.gradcheck(ours_of, (q, k, v), raise_exception=False)
    assert torch.autograd.gradcheck(lambda *t: ours_of(*t, gradient="through"), (q, k, v))


@every_impl
def test_stopped_gradient_is_not_that_of_normalize(impl):
    q, k, v = torch.randn(3, 1, 2, 9, 8)
    ours = run(preconditioned_attention, (q, k, v), impl=impl)
    other = run(lambda *t: F.normalize(F.scaled_dot_product_attention(*t), dim=-1), (q, k, v))
    torch.testing.assert_close(ours[0], other[0])
    assert (ours[3] - other[3]).abs().max() > 0.1 * other[3].abs().max()


@every_impl
def test_zero_rows_stay_zero_and_send_back_what_plain_attention_would(impl):
    q, k = torch.randn(2, 1, 1, 6, 8)
    v = torch.zeros(1, 1, 6, 8)
    ours = run(preconditioned_attention, (q, k, v), impl=impl)
    stock_ = run(F.scaled_dot_product_attention, (q, k, v))
    assert (ours[0] == 0).all()
    torch.testing.assert_close(ours[3], stock_[3])


def test_zero_rows_on_their_own():
    rows = torch.zeros(2, 4, requires_grad=True)
    for gradient in ("stopped", "through"):
        (grad,) = torch.autograd.grad(precondition_rows(rows, gradient=gradient), rows, torch.ones(2, 4))
        assert (grad == 1).all()


def test_below_eps_the_scale_is_one_over_eps_and_nothing_is_removed():
    rows = torch.tensor([[3e-8, 4e-8]], requires_grad=True)
    for gradient in ("stopped", "through"):
        y = precondition_rows(rows, gradient=gradient, eps=1e-6)
        torch.testing.assert_close(y.detach(), torch.tensor([[0.03, 0.04]]))
        (grad,) = torch.autograd.grad(y, rows, torch.ones(1, 2))
        torch.testing.assert_close(grad, torch.full((1, 2), 1e6))


def test_zero_rows_keep_one_whatever_eps_is():
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    y = precondition_rows(rows, eps=10.0)
    (grad,) = torch.autograd.grad(y, rows, torch.ones(2, 2))
    torch.testing.assert_close(grad, torch.tensor([[1.0, 1.0], [0.1, 0.1]]))


@every_impl
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_whose_norm_overflows_are_finite(impl, dtype):
    q, k = torch.randn(2, 1, 2, 9, 16, dtype=dtype)
    for result in run(preconditioned_attention, (q, k, (torch.randn(1, 2, 9, 16) * 1e25).to(dtype)), impl=impl):
        assert result.isfinite().all()


def test_float16_uses_an_eps_that_it_can_tell_from_zero():
    y = precondition_rows(torch.tensor([[6e-6, 0.0]], dtype=torch.float16), eps=1e-6)
    assert 0.09 < y[0, 0] < 0.11


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    """Norm, C and product in float32: the result is the number of the dtype nearest to the exact one."""
    rows = torch.randn(500, 64).to(dtype)
    exact = rows.double() / rows.double().norm(dim=-1, keepdim=True)
    error = (precondition_rows(rows).double() - exact).abs()
    assert (error <= 0.501 * torch.finfo(dtype).eps * exact.abs().clamp_min(torch.finfo(dtype).tiny)).all()


@every_impl
@pytest.mark.parametrize("factor", [1e-5, 1e4])
def test_float16_extremes(factor, impl):
    """The norm is taken in float32: neither do large rows overflow nor do small ones vanish."""
    q, k = torch.randn(2, 1, 2, 9, 16, dtype=torch.float16)
    v = (torch.randn(1, 2, 9, 16) * factor).half()
    y, *gradients = run(preconditioned_attention, (q, k, v), impl=impl)
    assert y.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)
    if factor > 1:
        torch.testing.assert_close(y.float().norm(dim=-1), torch.ones(1, 2, 9), atol=2e-3, rtol=0)


def test_dropout_comes_before_c():
    q, k, v = torch.randn(3, 1, 2, 50, 8)
    torch.manual_seed(3)
    y = preconditioned_attention(q, k, v, dropout_p=0.5)
    torch.manual_seed(3)
    o = F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)
    torch.testing.assert_close(y, F.normalize(o, dim=-1))
    torch.manual_seed(3)
    w = preconditioned_attention(q, k, torch.eye(50).expand(1, 2, 50, 50), dropout_p=0.5, rows="weights")
    assert 0.3 < (w == 0).float().mean() < 0.7
    torch.testing.assert_close(w.norm(dim=-1), torch.ones(1, 2, 50))


def test_autocast_runs_in_its_dtype():
    q, k, v = torch.randn(3, 1, 2, 9, 8)
    with torch.autocast("cpu", torch.bfloat16):
        for rows in ("output", "weights"):
            assert preconditioned_attention(q, k, v, torch.zeros(9, 9), rows=rows).dtype == torch.bfloat16
            assert preconditioned_attention(q.double(), k.double(), v.double(), rows=rows).dtype == torch.float64


def test_meta_tensors():
    """Of which autocast knows nothing."""
    q, mask = torch.empty(2, 4, 5, 8, device="meta"), torch.ones(5, 5, dtype=torch.bool, device="meta")
    for rows in ("output", "weights"):
        assert preconditioned_attention(q, q, q, mask, rows=rows).shape == q.shape


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "dynamic"), [("output", False), ("weights", True)])
def test_compiles_without_a_graph_break(rows, dynamic):
    q, k, v = torch.randn(3, 2, 4, 9, 8)
    mask = torch.rand(9, 9) > 0.3
    compiled = torch.compile(preconditioned_attention, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    ours = run(lambda *t: compiled(*t, mask, is_causal=True, rows=rows), (q, k, v))
    eager = run(lambda *t: preconditioned_attention(*t, mask, is_causal=True, rows=rows), (q, k, v))
    for a, b in zip(ours, eager):
        torch.testing.assert_close(a, b)


def test_jagged_tensors():
    parts = [torch.randn(n, 4, 8) for n in (3, 7)]
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged).transpose(1, 2)
    y = preconditioned_attention(nested, nested, nested).transpose(1, 2)
    for part, row in zip(parts, y.unbind()):
        q = part.transpose(0, 1)
        torch.testing.assert_close(row.transpose(0, 1), preconditioned_attention(q, q, q))
    with pytest.raises(ValueError, match="nested"):
        preconditioned_attention(nested, nested, nested, gradient="through")


def test_first_arguments_are_those_of_scaled_dot_product_attention():
    schema = torch.ops.aten.scaled_dot_product_attention.default._schema
    stock = [(a.name, a.default_value if a.has_default_value() else None, a.kwarg_only) for a in schema.arguments]
    for function in (preconditioned_attention, explain):
        parameters = list(inspect.signature(function).parameters.values())[: len(stock)]
        ours = [(p.name, None if p.default is p.empty else p.default, p.kind is p.KEYWORD_ONLY) for p in parameters]
        assert ours == stock


def test_float64_with_a_float32_mask():
    """Stock CPU attention misreads the mask there."""
    q, k, v = (torch.randn(1, 2, n, 8, dtype=torch.float64) for n in (5, 40, 40))
    mask = torch.randn(5, 40)
    torch.testing.assert_close(
        preconditioned_attention(q, k, v, mask), preconditioned_attention(q, k, v, mask.double()), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("scale", [-0.5, 0.0])
def test_causal_with_a_scale_that_is_not_positive(scale):
    q, k, v = torch.randn(3, 1, 2, 40, 8)
    y = preconditioned_attention(q, k, v, is_causal=True, scale=scale)
    oracle = reference.preconditioned_attention(q.double(), k.double(), v.double(), is_causal=True, scale=scale)
    torch.testing.assert_close(y, oracle.float())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@case_list
@every_impl
@pytest.mark.parametrize("gradient", ["stopped", "through"])
def test_on_a_gpu(case, impl, gradient):
    tensors, mask = case.tensors()
    gqa = case.kv_heads is not None
    tensors, mask = [t.cuda() for t in tensors], None if mask is None else mask.cuda()
    options = {"scale": case.scale, "enable_gqa": gqa, "gradient": gradient}
    try:
        ours = run(preconditioned_attention, tensors, mask, 0.0, case.causal, impl=impl, **options)
    except ValueError as error:
        if "cannot run here" not in str(error):
            raise
        pytest.skip(str(error))
    function = plain if gradient == "stopped" else plain_through
    plains = run(function, tensors, mask, case.causal, case.scale, gqa)
    oracle = run(function, [t.double() for t in tensors], double(mask), case.causal, case.scale, gqa)
    for what, a, b, c in zip(("output", "dq", "dk", "dv"), ours, plains, oracle):
        assert_as_good_as_plain(a, b, c, 2 if what == "output" else 3, f"{case.name}, {what}")


def plain_through(q, k, v, mask, causal, scale, gqa):
    return F.normalize(stock(q, k, v, mask, causal, scale, gqa), dim=-1, eps=1e-6)


# Properties, above eps


@every_impl
@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 12), st.integers(2, 12), st.integers(0, 10**6), st.booleans()
)
def test_properties(impl, b, h, n, d, seed, causal):
    attend = functools.partial(preconditioned_attention, impl=impl)
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, b, h, n, d, generator=generator, dtype=torch.float64)
    y = attend(q, k, v, is_causal=causal)
    torch.testing.assert_close(y.norm(dim=-1), torch.ones(b, h, n, dtype=torch.float64))
    torch.testing.assert_close(attend(q, k, 7.5 * v, is_causal=causal), y)
    order = torch.randperm(h, generator=generator)
    permuted = attend(q[:, order], k[:, order], v[:, order], is_causal=causal)
    torch.testing.assert_close(permuted, y[:, order])
    half = n // 2
    if not causal:  # rows do not know of each other: queries in chunks give the same numbers
        parts = [slice(half), slice(half, None)] if half else [slice(None)]
        chunks = [attend(q[..., i, :], k, v) for i in parts]
        torch.testing.assert_close(torch.cat(chunks, -2), y)
        # nor do packed sequences, each of which sees itself
        apart = torch.arange(n) < half
        packed = attend(q, k, v, apart[:, None] == apart[None])
        for i in parts:
            torch.testing.assert_close(packed[..., i, :], attend(*(t[..., i, :] for t in (q, k, v))))
    else:  # a later token never changes an earlier row
        k2, v2 = k.clone(), v.clone()
        k2[..., half:, :], v2[..., half:, :] = 0.3, -2.0
        later = attend(q, k2, v2, is_causal=True)
        torch.testing.assert_close(later[..., :half, :], y[..., :half, :])


# Wrong input


Q = torch.randn(2, 4, 5, 8)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "words"),
    [
        (([1.0], Q, Q), {}, TypeError, "query must be a torch.Tensor, got list"),
        ((Q.int(), Q, Q), {}, TypeError, "query has dtype torch.int32"),
        ((Q, Q.double(), Q), {}, TypeError, "key has dtype torch.float64, query torch.float32"),
        ((Q, Q.to("meta"), Q), {}, ValueError, "key is on meta"),
        ((Q[0, 0, 0], Q, Q), {}, ValueError, "at least 2 dimensions"),
        ((Q, Q[..., :4], Q), {}, ValueError, "same head width"),
        ((Q, Q, Q[:, :, :3]), {}, ValueError, "same number of tokens"),
        ((Q, Q[:, :2], Q[:, :2]), {}, ValueError, "equal or broadcastable"),
        ((Q, Q[:, :3], Q[:, :3]), {"enable_gqa": True}, ValueError, "divide query's"),
        ((Q[0, 0], Q[0, 0], Q[0, 0]), {"enable_gqa": True}, ValueError, "needs a head dimension"),
        ((Q, Q, Q, torch.zeros(5, 4)), {}, ValueError, "does not broadcast"),
        ((Q, Q, Q, torch.zeros(5)), {}, ValueError, "does not broadcast"),
        ((Q, Q, Q, torch.zeros(5, 5, dtype=torch.int)), {}, TypeError, "attn_mask has dtype torch.int32"),
        ((Q, Q, Q, [1]), {}, TypeError, "attn_mask must be a torch.Tensor"),
        ((Q, Q, Q, None, 1.5), {}, ValueError, "probability"),
        ((Q, Q, Q, None, None), {}, TypeError, "dropout_p must be a number, got NoneType"),
        ((Q, Q, Q), {"rows": "inputs"}, ValueError, r"rows='inputs' is unknown; valid are \('output', 'weights'\)"),
        ((Q, Q, Q), {"gradient": "no"}, ValueError, "gradient='no' is unknown"),
        ((Q, Q, Q), {"eps": 0.0}, ValueError, "eps must be positive"),
        ((Q, Q, Q), {"eps": float("nan")}, ValueError, "eps must be positive"),
        ((Q, Q, Q), {"eps": "small"}, TypeError, "eps must be a number"),
        ((Q, Q, Q), {"impl": "flash"}, ValueError, "impl='flash' is unknown; valid are"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(args, kwargs, error, words):
    for function in (preconditioned_attention, explain):
        with pytest.raises(error, match=words):
            function(*args, **kwargs)


def test_explain_names_the_implementation():
    assert explain(Q, Q, Q).impl in IMPLEMENTATIONS
    assert "B·H·N·M" in str(explain(Q, Q, Q, rows="weights"))


def test_the_kernels_are_refused_where_they_cannot_run(monkeypatch):
    with pytest.raises(ValueError, match="the tensors are on a CPU"):
        preconditioned_attention(Q, Q, Q, impl="fused")
    assert "CPU" in explain(Q, Q, Q).refused["fused"]
    monkeypatch.setattr(machine, "has_triton", lambda: False)
    with FakeTensorMode():
        on_cuda = torch.empty(1, 2, 5, 8, device="cuda")
        assert explain(on_cuda, on_cuda, on_cuda).refused["fused"] == "Triton is not installed"


@pytest.mark.parametrize("rows", ["output", "weights"])
def test_a_mask_of_keys_that_broadcast(rows):
    k, v = torch.randn(2, 2, 2, 5, 8)
    mask = torch.rand(2, 1, 5, 5) > 0.3
    found = preconditioned_attention(Q[:1], k, v, mask, enable_gqa=True, rows=rows)
    whole = preconditioned_attention(Q[:1].expand(2, -1, -1, -1), k, v, mask, enable_gqa=True, rows=rows)
    torch.testing.assert_close(found, whole)


def test_empty_inputs_like_stock():
    for q, k in ((Q[:0], Q[:0]), (Q[:, :, :0], Q), (Q, Q[:, :, :0])):
        y = preconditioned_attention(q, k, k)
        assert y.shape == F.scaled_dot_product_attention(q, k, k).shape
        assert (y == 0).all()
