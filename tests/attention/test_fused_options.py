"""What the Triton kernels do beyond plain attention: dropout, windows, C of the weights, few queries."""

import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from conditioned_attention import preconditioned_attention
from conditioned_attention.attention.fused import launch as fused_launch
from tests.attention import by_hand
from tests.attention.kernels import (  # noqa: F401
    DEVICE,
    assert_good,
    fused_,
    interpreted,
    needs_kernels,
    poison_more_memory,
)
from tests.attention.test_operator import run

pytestmark = needs_kernels

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32


def draw(*shapes, dtype=SINGLE):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]


def assert_right(tensors, seed=None, name="", mask=None, **options):
    """Output and gradients against `by_hand`; ``kept`` is what dropout of ``seed`` does."""
    kept = options.pop("kept", None)
    of_mask = [] if mask is None or mask.dtype == torch.bool else [mask]
    fixed = None if of_mask else mask
    ours_options = {name: value for name, value in options.items() if name != "causal"}
    if seed is not None:
        torch.manual_seed(seed)
        ours_options["dropout_p"] = P
    gqa = tensors[0].shape[1] != tensors[1].shape[1]
    causal = options.get("causal", False)

    def ours(q, k, v, mask=fixed):
        return fused_(q, k, v, mask, is_causal=causal, enable_gqa=gqa, **ours_options)

    def hand(q, k, v, mask=fixed):
        return by_hand.attention(q, k, v, mask, kept=kept, **options)

    leaves = [*tensors, *of_mask]
    oracle = run(hand, [t.double() for t in leaves])
    assert_good(run(ours, leaves), run(hand, leaves), oracle, name)


P = 0.3


def survivors(b, h, n, m, seed, dropout_p=P):
    """What dropout multiplies the weights by: alike weights on unit vectors show it."""
    q, k = torch.zeros(b, h, n, 16, device=DEVICE), torch.zeros(b, h, m, 16, device=DEVICE)
    v = torch.eye(m, device=DEVICE).expand(b, h, m, m)
    torch.manual_seed(seed)
    return (fused_(q, k, v, dropout_p=dropout_p) != 0).float() / (1 - dropout_p)


@pytest.mark.one_in(5)
@pytest.mark.parametrize(
    ("rows", "gradient", "dtype"),
    [
        ("output", "stopped", SINGLE),
        ("output", "through", BRAIN),
        ("weights", "stopped", HALF),
        ("weights", "through", SINGLE),
        ("weights", "through", BRAIN),
    ],
)
def test_dropout_is_the_same_forward_and_backward(rows, gradient, dtype):
    """In grouped queries, under a mask and causal, over several blocks."""
    b, h, g, n, m = 2, 2, 1, 37, 70
    tensors = draw((b, h, n, 16), (b, g, m, 16), (b, g, m, 12), dtype=dtype)
    mask = (torch.rand(b, 1, n, m, generator=torch.Generator().manual_seed(1)) > 0.2).to(DEVICE)
    mask[..., 0] = True
    kept = survivors(b, h, n, m, 7)
    assert_right(tensors, 7, f"{rows}, {gradient}", mask, rows=rows, gradient=gradient, causal=True, kept=kept)


@pytest.mark.slow_on_a_cpu
def test_dropout_of_a_learned_mask():
    tensors = draw((2, 2, 20, 16), (2, 2, 40, 16), (2, 2, 40, 16))
    (mask,) = draw((1, 2, 20, 40))
    assert_right(tensors, 3, "learned mask", mask, kept=survivors(2, 2, 20, 40, 3))


def test_dropout_drops_as_many_as_asked_and_anew_each_time():
    kept = survivors(2, 3, 50, 64, 0) > 0
    rate = 1 - kept.double().mean().item()
    assert abs(rate - P) < 4 * math.sqrt(P * (1 - P) / kept.numel())
    assert torch.equal(kept, survivors(2, 3, 50, 64, 0) > 0)
    others = [kept.flip(0), kept.roll(1, 1), kept.roll(1, 2), kept.roll(1, 3), survivors(2, 3, 50, 64, 1) > 0]
    for other in others:  # no part is another's copy
        agree = (kept == other).double().mean().item()
        assert abs(agree - (P**2 + (1 - P) ** 2)) < 0.03


def test_dropout_draws_from_pytorchs_generator():
    q, k, v = draw(*[(1, 2, 9, 16)] * 3)
    first, second = fused_(q, k, v, dropout_p=P), fused_(q, k, v, dropout_p=P)
    assert not torch.equal(first, second)
    assert (fused_(q, k, v, dropout_p=1.0) == 0).all()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_draws_the_same_dropout_again(use_reentrant):
    tensors = draw(*[(1, 2, 9, 16)] * 3)
    results = []
    for again in (False, True):
        torch.manual_seed(0)
        attention = lambda *t: fused_(*t, dropout_p=P)  # noqa: E731
        leaves = [t.clone().requires_grad_() for t in tensors]
        y = checkpoint(attention, *leaves, use_reentrant=use_reentrant) if again else attention(*leaves)
        y.square().sum().backward(torch.tensor(2.0, device=DEVICE))
        results.append([y, *(leaf.grad for leaf in leaves)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


WINDOWS = [(70, 70, 20, True), (40, 100, 33, False), (100, 40, 10, False)]
MORE_WINDOWS = [(70, 70, 20, False), (100, 40, 10, True)]


@pytest.mark.parametrize(
    ("n", "m", "window", "causal"),
    [*WINDOWS, *(pytest.param(*case, marks=pytest.mark.slow_on_a_cpu) for case in MORE_WINDOWS)],
)
def test_window(n, m, window, causal):
    """Where there are fewer keys than queries, the last queries see none."""
    tensors = draw((1, 2, n, 16), (1, 1, m, 16), (1, 1, m, 16))
    assert_right(tensors, window=window, causal=causal, name=(n, m, window, causal))


@pytest.mark.parametrize("window", [2**31 - 1, 2**63 - 1])
@pytest.mark.parametrize("causal", [False, True])
def test_a_window_of_any_size(window, causal):
    """The kernels add positions to it."""
    tensors = draw((1, 1, 20, 16), (1, 1, 35, 16), (1, 1, 35, 16))
    every = run(lambda *t: fused_(*t, is_causal=causal), tensors)
    for a, b in zip(run(lambda *t: fused_(*t, is_causal=causal, window=window), tensors), every, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow_on_a_cpu
def test_window_under_a_learned_mask_with_dropout():
    tensors = draw((1, 2, 50, 16), (1, 2, 50, 16), (1, 2, 50, 16))
    (mask,) = draw((1, 1, 50, 50))
    assert_right(tensors, 5, "all at once", mask, window=9, causal=True, kept=survivors(1, 2, 50, 50, 5))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("gradient", ["stopped", "through"])
@pytest.mark.parametrize("dtype", [SINGLE, BRAIN, HALF])
def test_rows_of_the_weights(dtype, gradient):
    tensors = draw((1, 4, 37, 16), (1, 2, 50, 16), (1, 2, 50, 12), dtype=dtype)
    assert_right(tensors, rows="weights", gradient=gradient, name=gradient)


def test_rows_of_the_weights_below_eps():
    """There C is a constant, also through the norm."""
    q, k, v = draw((1, 2, 20, 16), (1, 2, 20, 16), (1, 2, 20, 16))
    options = {"rows": "weights", "gradient": "through", "eps": 0.9}
    ours = run(lambda *t: fused_(*t, **options), (q, k, v))
    composed = run(lambda *t: preconditioned_attention(*t, **options, impl="composed"), (q, k, v))
    for a, b in zip(ours, composed, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_rows_of_the_weights_of_nothing():
    tensors = draw((1, 1, 5, 16), (1, 1, 9, 16), (1, 1, 9, 16))
    mask = torch.ones(5, 9, dtype=torch.bool, device=DEVICE)
    mask[2] = False
    assert_right(tensors, mask=mask, rows="weights", gradient="through")


KEYS = 150  # parts of 64, 64 and 22 of them, instead of the hundreds that pay on a GPU


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(fused_launch, "_PART_KEYS", 64)


def padding(b):
    """The last keys of the last sequence are hidden: some of the second part and all of the third."""
    seen = torch.ones(b, 1, 1, KEYS, dtype=torch.bool, device=DEVICE)
    seen[-1, ..., 75:] = False
    return seen


FEW = {
    "one query": {"n": 1},
    "three queries, bfloat16": {"n": 3, "dtype": BRAIN},
    "float16, odd widths": {"n": 2, "dtype": HALF, "widths": (20, 33)},
    "padding": {"n": 2, "mask": padding(2)},
    "a bias of the heads": {"n": 2, "b": 1, "mask": draw((1, 4, 1, KEYS))[0]},
    # two queries: of one, all of dk hangs on one row's rounding, and by hand it was as good as exact with AVX-512
    "rows of the weights, through": {"n": 2, "b": 1, "rows": "weights", "gradient": "through"},
}
FEW_SLOW = {"one query", "three queries, bfloat16", "float16, odd widths"}


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow_on_a_cpu if name in FEW_SLOW else ()) for name in FEW]
)
def test_few_queries_take_the_keys_in_parts(name, monkeypatch):
    case = dict(FEW[name])
    b, n, dtype = case.pop("b", 2), case.pop("n"), case.pop("dtype", SINGLE)
    d, e = case.pop("widths", (16, 16))
    parts = []
    attend_in_parts = fused_launch._attend_in_parts
    monkeypatch.setattr(fused_launch, "_attend_in_parts", lambda *args: parts.append(args[2]) or attend_in_parts(*args))
    tensors = draw((b, 4, n, d), (b, 2, KEYS, d), (b, 2, KEYS, e), dtype=dtype)
    assert_right(tensors, name=name, **case)
    assert parts == [3]


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("width", "rows"), [(16, 64), (128, 32)])
def test_heads_that_share_keys_are_rows_of_one_block(width, rows, monkeypatch):
    """As far as the table goes, so that the keys are read once; 40 rows."""
    seen = []
    compiled_for = fused_launch._compiled_for

    def note(inputs, options, blocks, per_head=False):
        seen.extend([blocks.queries] if per_head else [])
        return compiled_for(inputs, options, blocks, per_head)

    monkeypatch.setattr(fused_launch, "_compiled_for", note)
    tensors = draw((1, 40, 1, width), (1, 1, 300, width), (1, 1, 300, 16))
    torch.testing.assert_close(fused_(*tensors, enable_gqa=True), by_hand.attention(*tensors))
    assert seen == [rows]


@pytest.mark.slow_on_a_cpu
@pytest.mark.usefixtures("small_parts")
def test_parts_and_whole_are_the_same_attention(monkeypatch):
    """With dropout, where each weight must meet the same fate, and a query that sees nothing."""
    q, k, v = draw((1, 4, 3, 16), (1, 1, KEYS, 16), (1, 1, KEYS, 16))
    mask = padding(1).repeat(1, 1, 3, 1)
    mask[:, :, 1] = False
    results = []
    for few in (64, 0):
        monkeypatch.setattr(fused_launch, "_FEW_ROWS", few)
        torch.manual_seed(0)
        results.append(run(lambda *t: fused_(*t, mask, dropout_p=P, enable_gqa=True), (q, k, v)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_the_same_options_in_every_implementation():
    """A window means the same whoever computes it, with a mask and the flag."""
    q, k, v = draw((1, 2, 30, 16), (1, 2, 30, 16), (1, 2, 30, 16))
    mask = (torch.rand(30, 30, generator=torch.Generator().manual_seed(0)) > 0.3).to(DEVICE)
    options = {"attn_mask": mask, "is_causal": True, "window": 7}
    expected = by_hand.attention(q, k, v, mask, causal=True, window=7)
    for impl in ("fused", "composed", "lean") if DEVICE == "cpu" else ("fused", "composed"):
        torch.testing.assert_close(preconditioned_attention(q, k, v, **options, impl=impl), expected)


@pytest.mark.parametrize("scale", [-0.5, 0.0])
def test_scales_that_are_not_positive(scale):
    tensors = draw((1, 2, 20, 16), (1, 2, 40, 16), (1, 2, 40, 16))
    assert_right(tensors, scale=scale, causal=True)
