"""The theorems of arXiv 2603.27153 on random matrices, and its FLOPs beside operations that are counted."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from conditioned_attention import log_complexity, reference
from conditioned_attention.measure.numbers.bounds import (
    application_flops,
    attention_flops,
    complexity_change,
    complexity_slack,
    log_attention_bound,
    never_raises_complexity,
    preconditioner_flops,
)
from conditioned_attention.preconditioner import RowNorm

sizes, seeds = st.integers(1, 10), st.integers(0, 10**6)
COUNTEREXAMPLE = torch.tensor([[1.0, 0.0], [0.0, 0.5**0.5], [0.0, 0.5**0.5]], dtype=torch.float64)


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Theorems 4.2 and 4.3


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, seeds)
def test_theorem_4_2(n, d, seed):
    matrices = randn(seed, 3, n, d)
    slack = complexity_slack(matrices)
    expected = reference.complexity(matrices).log() - reference.condition_number(matrices).log()
    torch.testing.assert_close(slack, expected, rtol=1e-6, atol=1e-6)
    assert (slack >= -1e-9).all()


def test_theorem_4_2_cannot_be_better_than_this():
    """With two singular values μ = κ + 1/κ."""
    for ratio, most in ((3.0, 0.2), (1e2, 2e-4), (1e3, 2e-6)):
        assert 0 <= complexity_slack(torch.diag(torch.tensor([ratio, 1.0], dtype=torch.float64))) < most


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, sizes, st.floats(0.0, 5.0), seeds)
def test_theorem_4_3_and_lemma_a_1(n, m, d, sharpness, seed):
    query, key, value = randn(seed, 2, n, d), randn(seed + 1, 2, m, d), randn(seed + 2, 2, m, d)
    weights = reference.attention_weights(query, key, scale=sharpness)
    assert (torch.linalg.matrix_norm(weights) <= math.sqrt(n) * (1 + 1e-12)).all(), "Lemma A.1"
    head = weights @ value
    bound, log_mu = log_attention_bound(head, value), log_complexity(head)
    assert not (bound < log_mu - 1e-9).any()
    k, s = min(n, d), torch.linalg.svdvals(head)
    by_hand = math.log(2) - s.log().sum(-1) + k * (math.sqrt(n / k) * torch.linalg.matrix_norm(value)).log()
    torch.testing.assert_close(bound, torch.where(log_mu.isfinite(), by_hand, math.inf), rtol=1e-6, atol=1e-6)


def test_the_bounds_are_finite_where_mu_overflows():
    value, head = randn(0, 197, 64), randn(1, 197, 64)
    assert not reference.complexity(1e-9 * head).isfinite()
    torch.testing.assert_close(complexity_slack(1e-9 * head), complexity_slack(head))
    assert math.log(torch.finfo(torch.float64).max) < log_attention_bound(1e-9 * head, value) < math.inf


def test_lemma_a_1_is_met_by_weights_that_see_one_key_and_not_by_dropout():
    weights = torch.eye(5, dtype=torch.float64)
    assert torch.linalg.matrix_norm(weights).item() == pytest.approx(math.sqrt(5))
    assert torch.linalg.matrix_norm(torch.dropout(weights, 0.0, True) / 0.9).item() > math.sqrt(5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.0, 1e3), min_size=1, max_size=12).filter(lambda numbers: sum(numbers) > 1e-3))
def test_lemma_a_2_is_true_though_nothing_uses_it(numbers):
    """The k smallest of n numbers with the mean 1 sum to no more than k."""
    ordered = torch.tensor(numbers, dtype=torch.float64).sort().values
    sums = (ordered / ordered.mean()).cumsum(0)
    assert (sums <= torch.arange(1.0, len(numbers) + 1, dtype=torch.float64) + 1e-9).all()


# Theorem 4.4


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(0, 10), seeds)
def test_theorem_4_4_for_no_more_rows_than_columns(n, more, seed):
    """By exactly what the norms of the rows say."""
    matrices = randn(seed, 2, n, n + more) * torch.logspace(-2, 2, n, dtype=torch.float64).unsqueeze(-1)
    assert never_raises_complexity(n, n + more)
    change, norms = complexity_change(matrices), matrices.norm(dim=-1)
    expected = norms.log().sum(-1) - n / 2 * norms.square().mean(-1).log()
    torch.testing.assert_close(change, expected, rtol=1e-6, atol=1e-6)
    assert (change <= 1e-9).all()


@settings(max_examples=30, deadline=None)
@given(sizes, sizes, seeds)
def test_theorem_4_4_fails_for_more_rows_than_columns_at_every_shape(d, more, seed):
    """Row d of an orthogonal matrix shared out over 1 + more rows: μ = 2 before, and more after."""
    orthogonal, _ = torch.linalg.qr(randn(seed, d, d))
    shared = orthogonal[-1:].expand(1 + more, d) / math.sqrt(1 + more)
    matrix = torch.cat([orthogonal[:-1], shared])
    assert not never_raises_complexity(d + more, d)
    assert log_complexity(matrix).exp().item() == pytest.approx(2)
    assert (complexity_change(matrix) > 1e-6).item() is (d > 1), "of one column there is but one μ"


def test_the_counterexample():
    assert complexity_change(COUNTEREXAMPLE).exp().item() == pytest.approx(1.5 / 2**0.5)
    assert complexity_change(2 * COUNTEREXAMPLE).item() == pytest.approx(complexity_change(COUNTEREXAMPLE).item())


# Section 4.3


class Counted(TorchDispatchMode):
    """How many multiplications, additions, square roots and divisions; an operation that is not known raises."""

    # views, copies, comparisons and choices
    FREE = (
        "view", "_unsafe_view", "expand", "unsqueeze", "transpose", "detach", "clone", "eq", "where", "clamp",
        "ones_like", "threshold", "all", "masked_fill",
    )  # fmt: skip

    def __init__(self):
        super().__init__()
        self.counts = dict.fromkeys(("multiply", "add", "root", "divide", "product", "softmax"), 0)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.note(func.overloadpacket.__name__, args, result)
        return result

    def note(self, name, args, result):
        if name == "mul" and not (isinstance(args[1], (int, float)) and args[1] == 1):  # 1 / x is x.reciprocal() * 1
            self.counts["multiply"] += result.numel()
        elif name == "sum":
            self.counts["add"] += args[0].numel() - result.numel()
        elif name == "linalg_vector_norm":
            self.counts["multiply"] += args[0].numel()
            self.counts["add"] += args[0].numel() - result.numel()
            self.counts["root"] += result.numel()
        elif name in ("sqrt", "reciprocal", "div"):
            self.counts["root" if name == "sqrt" else "divide"] += result.numel()
        elif name == "bmm":
            self.counts["product"] += 2 * result.numel() * args[0].shape[-1]
        elif name == "_softmax":
            self.counts["softmax"] += result.numel()
        elif name not in ("mul", *self.FREE):
            raise AssertionError(f"{name} is not known to the count")


def counted(work):
    with Counted() as mode:
        work()
    return mode.counts


@pytest.mark.parametrize(("n", "d", "heads"), [(17, 64, 8), (197, 192, 3), (5, 6, 1)])
def test_flops_of_the_paper_are_those_counted(n, d, heads):
    head = randn(0, heads, n, d // heads)
    of_c = counted(lambda: reference.preconditioner(head))
    width = d // heads
    assert of_c == {"multiply": n * d, "add": heads * n * (width - 1), "root": heads * n, "divide": heads * n,
                    "product": 0, "softmax": 0}  # fmt: skip
    assert sum(of_c.values()) == preconditioner_flops(n, d, heads) == heads * n * (2 * width + 1)
    assert preconditioner_flops(n, width) == n * (2 * width + 1), "equation (19), of one head"


@pytest.mark.parametrize(("n", "d", "heads"), [(17, 64, 8), (197, 192, 3)])
def test_attention_and_multiplying_by_c_are_those_counted(n, d, heads):
    q, k, v = randn(0, 3, heads, n, d // heads)
    whole = counted(lambda: reference.preconditioned_attention(q, k, v))
    scaling = heads * n * n  # of the logits
    assert whole["product"] == attention_flops(n, d)
    assert whole["multiply"] == n * d + application_flops(n, d) + scaling
    with FlopCounterMode(display=False) as theirs:
        reference.preconditioned_attention(q, k, v)
    assert theirs.get_total_flops() == attention_flops(n, d), "PyTorch's counter knows of matrix products only"


def test_the_library_divides_by_the_norm_and_saves_the_reciprocal():
    n, d, heads = 17, 64, 8
    head = randn(0, heads, n, d // heads)
    ours = counted(lambda: RowNorm()(head))
    assert ours["divide"] == application_flops(n, d)
    assert sum(ours.values()) == preconditioner_flops(n, d, heads) - heads * n + application_flops(n, d)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: complexity_slack([[1.0]]), TypeError, "got list"),
        (lambda: complexity_change(torch.ones(3)), ValueError, r"got shape \(3,\)"),
        (lambda: complexity_change(torch.eye(2), eps=0.0), ValueError, "eps must be positive"),
        (
            lambda: log_attention_bound(torch.eye(2), [[1.0]]),
            TypeError,
            "value must be a floating-point tensor, got list",
        ),
        (lambda: log_attention_bound(torch.eye(2), torch.ones(5, 3)), ValueError, r"value must be \(..., m, 2\)"),
        (lambda: never_raises_complexity(0, 3), ValueError, "at least 1, got 0 and 3"),
        (lambda: preconditioner_flops(5, 6, 4), ValueError, "heads divide d, got 5, 6 and 4"),
        (lambda: attention_flops(0, 6), ValueError, "got 0, 6 and 1"),
        (lambda: application_flops(3, -6), ValueError, "got 3, -6 and 1"),
    ],
)
def test_wrong_input(call, error, words):
    with pytest.raises(error, match=words):
        call()
