"""Condition numbers and the complexity measure, and what the paper's theorem says and does not say about them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conditioned_attention import condition_number, log_complexity, precondition_rows, reference
from conditioned_attention._precision import exact
from conditioned_attention.measure.numbers.lanczos import lanczos
from conditioned_attention.measure.numbers.randomised import estimate_condition
from conditioned_attention.measure.numbers.spectra import spectrum


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


def with_singular_values(values, n, seed=0):
    """An n × k matrix in float64 with exactly these singular values."""
    generator = torch.Generator().manual_seed(seed)
    k = len(values)
    u, _ = torch.linalg.qr(torch.randn(n, k, generator=generator, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(k, k, generator=generator, dtype=torch.float64))
    return u @ torch.diag(torch.as_tensor(values, dtype=torch.float64)) @ v.mT


def test_ranks_that_can_be_computed_by_hand():
    found = spectrum(with_singular_values([4.0, 2.0, 2.0], 9))
    assert found.stable_rank.item() == pytest.approx(24 / 16)
    assert found.effective_rank.item() == pytest.approx(math.exp(0.5 * math.log(2) + 2 * 0.25 * math.log(4)))
    assert found.sigma_max.item() == pytest.approx(4)
    assert found.sigma_min.item() == pytest.approx(2)
    assert found.resolution == pytest.approx(1 / (9 * 2.0**-52))
    same = spectrum(torch.eye(7, 5))
    assert same.stable_rank.item() == pytest.approx(5)
    assert same.effective_rank.item() == pytest.approx(5)
    one = spectrum(torch.ones(8, 5))
    assert one.stable_rank.item() == pytest.approx(1)
    assert one.effective_rank.item() == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
def test_lanczos_finds_all_values_in_as_many_steps_and_bounds_in_fewer(shape):
    """Also those that the eigenvalues of AᵀA would lose: 1e-10 squared is below the rounding of 1."""
    matrix = with_singular_values(torch.logspace(0, -10, 20, dtype=torch.float64), 30)
    matrix = matrix if shape == (30, 20) else matrix.mT
    start = torch.randn(shape[0], generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    exact = torch.linalg.svdvals(matrix)
    found = {steps: lanczos(lambda v: matrix @ v, lambda u: matrix.mT @ u, start, steps) for steps in (1, 8, 20)}
    torch.testing.assert_close(found[20], exact, rtol=1e-4, atol=0)
    assert exact[-1] < found[8][-1] < found[1][-1] == found[1][0] < found[8][0] <= exact[0] * (1 + 1e-12)


def test_lanczos_ends_where_nothing_is_left_and_refuses_what_is_not_finite():
    matrix = torch.diag(torch.tensor([5.0, 5.0, 5.0, 0.0], dtype=torch.float64))
    for start, values in ((torch.ones(4), [5.0]), (torch.eye(4)[3], [0.0])):
        found = lanczos(lambda v: matrix @ v, lambda u: matrix @ u, start.double(), 4)
        assert found.tolist() == pytest.approx(values)
    with pytest.raises(ArithmeticError, match="not finite"):
        lanczos(lambda v: v * math.inf, lambda u: u, torch.ones(4, dtype=torch.float64), 2)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("decades", [0.5, 3, 7])
@pytest.mark.parametrize("shape", [(300, 120), (120, 300), (150, 150)])
def test_estimates_of_large_matrices_lie_in_their_intervals(decades, shape):
    values = torch.logspace(0, -decades, min(shape), dtype=torch.float64)
    matrix = with_singular_values(values, max(shape))
    matrix = matrix if shape[0] >= shape[1] else matrix.mT
    for seed in range(3):
        found, exact = estimate_condition(matrix, seed=seed), spectrum(matrix)
        assert found.kappa <= exact.kappa.item() * (1 + 1e-9) <= found.kappa_high * (1 + 1e-9)
        assert found.sigma_max == pytest.approx(1, rel=0.01)
        assert found.sigma_min == pytest.approx(10**-decades, rel=0.01)
        assert found.log_mu == pytest.approx(exact.log_mu.item(), rel=1e-9)
        assert found.stable_rank == pytest.approx(exact.stable_rank.item(), rel=0.02)


def test_a_looser_estimate_takes_fewer_steps():
    matrix = with_singular_values(torch.linspace(1, 9, 200), 220)
    tight, loose = estimate_condition(matrix), estimate_condition(matrix, tolerance=0.3, failure=0.1)
    assert loose.steps < 15 < 50 < tight.steps
    assert loose.kappa <= 9 <= loose.kappa_high


def test_estimates_know_the_floor():
    matrix = with_singular_values(torch.logspace(0, -7, 60), 80)
    assert estimate_condition(matrix.float()).kappa == math.inf
    assert estimate_condition(torch.ones(50, 40)).kappa == math.inf
    assert estimate_condition(torch.zeros(50, 40)).kappa == math.inf
    assert estimate_condition(torch.eye(60) * 3).kappa == pytest.approx(1)
    beyond = torch.diag(torch.tensor([1.0, 1e-320], dtype=torch.float64))  # its inverse is no number in float64
    assert estimate_condition(beyond).sigma_min == 0.0


@pytest.mark.parametrize(
    ("matrix", "options", "error", "words"),
    [
        ([[1.0]], {}, TypeError, "got list"),
        (torch.ones(2, 3, 4), {}, ValueError, r"matrix must be \(n, d\)"),
        (torch.full((3, 3), math.nan), {}, ValueError, "not finite"),
        (torch.eye(3), {"tolerance": 1.5}, ValueError, "tolerance must be between 0 and 1"),
        (torch.eye(3), {"failure": 0.0}, ValueError, "failure must be between 0 and 1"),
    ],
)
def test_wrong_input_of_estimates(matrix, options, error, words):
    with pytest.raises(error, match=words):
        estimate_condition(matrix, **options)


class OfAnotherDevice:
    """Stands for a tensor on Apple's GPU, which has no float64."""

    device = torch.device("mps")

    def cpu(self):
        return torch.ones(2)


def test_float64_of_numbers_on_a_device_that_has_none():
    assert exact(OfAnotherDevice()).dtype == exact(torch.ones(2)).dtype == torch.float64
    assert exact(torch.ones(2, device="meta")).device.type == "meta"
