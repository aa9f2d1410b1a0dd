"""Condition numbers and the complexity measure, and what the paper's theorem says and does not say about them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conditioned_attention import condition_number, log_complexity, precondition_rows, reference


def test_values_that_can_be_computed_by_hand():
    matrix = torch.diag(torch.tensor([8.0, 4.0, 2.0]))
    assert condition_number(matrix).item() == 4
    mu = 2 / 64 * math.sqrt((64 + 16 + 4) / 3) ** 3
    assert log_complexity(matrix).item() == pytest.approx(math.log(mu), rel=1e-12)
    assert condition_number(torch.ones(1, 5)).item() == pytest.approx(1)
    assert log_complexity(torch.eye(300, 40)).item() == pytest.approx(math.log(2))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6))
def test_batches_agree_with_the_equations(batch, n, d, seed):
    matrices = torch.randn(batch, 2, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(condition_number(matrices), reference.condition_number(matrices))
    torch.testing.assert_close(log_complexity(matrices), reference.complexity(matrices).log())
    assert (condition_number(matrices).log() <= log_complexity(matrices) + 1e-9).all(), "Theorem 4.2"


def test_large_and_small_numbers_do_not_overflow():
    matrix = torch.randn(64, 64, dtype=torch.float64)
    for factor in (1e-300, 1e150):
        torch.testing.assert_close(log_complexity(factor * matrix), log_complexity(matrix))


def test_the_floor_is_that_of_the_dtype_it_came_in():
    u, _ = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64))
    matrix = u @ torch.diag(torch.logspace(0, -5, 20, dtype=torch.float64))
    assert condition_number(matrix).item() == pytest.approx(1e5)
    assert condition_number(matrix.float()).item() == pytest.approx(1e5, rel=0.05)  # floor 1 / (20 · eps) = 4e5
    assert condition_number(matrix.bfloat16()).item() == math.inf
    assert condition_number((matrix * 1e-2 + matrix[:, :1] * 1e2).float()).item() == math.inf
    assert log_complexity(matrix.half()).item() == math.inf


def test_rank_deficient_zero_and_not_finite():
    rank_one = torch.outer(torch.randn(6), torch.randn(4))
    zero, broken = torch.zeros(6, 4), torch.full((6, 4), math.nan)
    for function in (condition_number, log_complexity):
        values = function(torch.stack([rank_one, zero, broken, torch.randn(6, 4)]))
        assert values[:2].isposinf().all()
        assert values[2].isnan()
        assert values[3].isfinite(), "a bad matrix may not spoil its neighbours"


@pytest.mark.parametrize(
    ("matrix", "error", "words"),
    [
        ([[1.0]], TypeError, "got list"),
        (torch.eye(2, dtype=torch.int), TypeError, "got torch.int32"),
        (torch.ones(3), ValueError, r"got shape \(3,\)"),
        (torch.ones(2, 0, 3), ValueError, "at least 1"),
    ],
)
def test_wrong_input(matrix, error, words):
    for function in (condition_number, log_complexity):
        with pytest.raises(error, match=words):
            function(matrix)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 10), st.integers(0, 10), st.integers(0, 10**6))
def test_theorem_4_4_holds_for_no_more_rows_than_columns(n, more, seed):
    generator = torch.Generator().manual_seed(seed)
    head = torch.randn(n, n + more, generator=generator, dtype=torch.float64)
    head *= torch.rand(n, 1, generator=generator, dtype=torch.float64) * 10 + 1e-3
    assert log_complexity(precondition_rows(head)) <= log_complexity(head) + 1e-9


def test_theorem_4_4_fails_for_more_rows_than_columns():
    """Two orthogonal directions, one of them in two rows: perfectly conditioned until its rows are made equal."""
    head = torch.tensor([[1.0, 0.0], [0.0, 0.5**0.5], [0.0, 0.5**0.5]], dtype=torch.float64)
    after = precondition_rows(head)
    assert condition_number(head).item() == pytest.approx(1)
    assert condition_number(after).item() == pytest.approx(2**0.5)
    assert log_complexity(head).exp().item() == pytest.approx(2)
    assert log_complexity(after).exp().item() == pytest.approx(2.1213, abs=1e-4)
