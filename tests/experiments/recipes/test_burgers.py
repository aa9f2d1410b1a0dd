"""Viscous Burgers: functions of the right covariance, a solver that is exact enough, files that survive, learning."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from conditioned_attention import precondition
from conditioned_attention.experiments.data import burgers
from conditioned_attention.experiments.data.burgers import (
    GRID,
    VISCOSITY,
    FieldPairs,
    burgers_pairs,
    initial_functions,
    solve,
)
from conditioned_attention.experiments.models.field_encoder import FieldEncoder
from conditioned_attention.experiments.planning.estimate import estimate
from conditioned_attention.experiments.recipes.burgers import Burgers
from conditioned_attention.experiments.recipes.registry import settings_of
from conditioned_attention.experiments.tasks.fields import FieldToField
from conditioned_attention.experiments.training.loop import train
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.variants.catalogue import VARIANTS, find_variant
from conditioned_attention.measure.probing.projections import projection_records
from tests.experiments.tiny import OFTEN, SELDOM
from tests.test_cli import call

SMALL = Burgers(
    points=16,
    samples=64,
    eval_samples=16,
    model=FieldEncoder(hidden_size=32, layers=2, heads=2),
    training=Training(epochs=12, batch_size=16, lr=4e-3, weight_decay=0.0, evaluate_every=4, monitor_every=0),
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("functions")


@pytest.fixture
def small(cache):
    return dataclasses.replace(SMALL, cache_dir=cache)


def rows_of(folder, recipe, variant="baseline", launch=SELDOM):
    return train(recipe.task(), recipe.training, VARIANTS[variant], 0, folder, launch)


def without_time(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


# Functions and their solutions


def test_initial_functions_have_the_covariance_of_the_operator():
    """625 (−Δ + 25)⁻² on the circle of length 1, by its eigenvalues; the bound is six standard errors."""
    count = 2000
    coefficients = np.fft.rfft(initial_functions(range(count)), norm="forward")
    for mode in range(6):
        expected = 625 / (4 * np.pi**2 * mode**2 + 25) ** 2
        found = np.mean(np.abs(coefficients[:, mode]) ** 2)
        assert found == pytest.approx(expected, rel=6 * np.sqrt(2 / count)), mode
    assert np.abs(coefficients.mean(0)).max() < 0.1


def test_a_function_is_set_by_its_number_and_the_same_on_every_grid():
    functions = initial_functions(range(5))
    assert np.array_equal(initial_functions([3])[0], functions[3])
    assert np.allclose(initial_functions(range(5), 2 * GRID)[:, ::2], functions, atol=1e-14)
    assert np.unique(functions[:, 0]).size == 5


@pytest.mark.slow
def test_the_solution_does_not_depend_on_step_or_grid():
    functions = initial_functions(range(8))
    solved = solve(functions)
    assert np.abs(solve(functions, step=5e-4) - solved).max() < 1e-8
    finer = solve(initial_functions(range(8), 2 * GRID))[:, ::2]
    assert np.abs(finer - solved).max() < 1e-10
    assert np.abs(solved - functions).max() > 0.1


def test_it_solves_burgers():
    """Cole and Hopf: u = −2ν φ_x / φ, where φ solves the heat equation exactly, a steep wave at first."""
    x = np.arange(GRID) / GRID
    decay = np.exp(-VISCOSITY * 4 * np.pi**2 * np.array([0.0, 0.3]))[:, None]
    phi = 2 + 1.9 * decay * np.cos(2 * np.pi * x)
    waves = 2 * VISCOSITY * 2 * np.pi * 1.9 * decay * np.sin(2 * np.pi * x) / phi
    assert np.abs(solve(waves[:1], 0.3, 1e-3) - waves[1:]).max() < 1e-8
    assert np.abs(waves[0]).max() > 3


def test_the_order_of_the_method_is_four():
    functions = 3 * initial_functions(range(4))
    exact = solve(functions, 0.1, 1e-4)
    errors = [np.abs(solve(functions, 0.1, step) - exact).max() for step in (1 / 100, 1 / 200)]
    assert 10 < errors[0] / errors[1] < 24


def test_the_mean_is_kept():
    functions = initial_functions(range(200))
    assert np.allclose(solve(functions, 0.05).mean(1), functions.mean(1), atol=1e-12), "more than one part is solved"


# Files


def test_it_is_computed_once(tmp_path, monkeypatch):
    first = burgers_pairs(0, 3, 64, tmp_path)
    assert first.before.shape == first.after.shape == (3, 64)
    assert np.allclose(first.before, initial_functions(range(3))[:, ::8], atol=1e-6)
    solved = solve(initial_functions(range(3)))
    assert np.allclose(first.after, solved[:, ::8], atol=1e-6)
    (file,) = tmp_path.iterdir()
    monkeypatch.setattr(burgers, "solve", None)
    again = burgers_pairs(0, 3, 32, tmp_path)
    assert torch.equal(again.after, first.after[:, ::2]), "another grid of the same functions"
    monkeypatch.setattr(burgers, "solve", lambda functions: solved)  # in a second less than it takes
    whole = file.read_bytes()
    for damaged in (whole[:100], whole[:-8], b"", b"<html>"):
        file.write_bytes(damaged)
        assert torch.equal(burgers_pairs(0, 3, 64, tmp_path).after, first.after)
        assert file.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [file]
    burgers_pairs(1, 3, 64, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_it_is_kept_where_caches_are(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    burgers_pairs(0, 1, 8)
    assert list((tmp_path / "conditioned-attention").glob("burgers-*.npz"))


def test_the_evaluation_set_is_apart_and_not_touched_by_tuning(small):
    task, tuning = small.task(), small.task(tuning=True)
    sets = [{tuple(row) for row in data.before.tolist()} for data in (task.train_data(), task.eval_data())]
    assert [len(found) for found in sets] == [64, 16]
    assert not sets[0] & sets[1]
    parts = [{tuple(row) for row in data.before.tolist()} for data in (tuning.train_data(), tuning.eval_data())]
    assert parts[0] | parts[1] == sets[0]
    assert len(parts[1]) == 6
    assert not parts[0] & parts[1]


# Model, loss and score


def test_the_model_knows_place_and_grid():
    torch.manual_seed(0)
    model = FieldEncoder().build().eval()
    same = torch.ones(1, 16)
    out = model(same)
    assert out.shape == (1, 16)
    assert out.std() > 1e-3, "x tells equal values apart"
    assert model(torch.ones(2, 64)).shape == (2, 64)


def test_blocks_start_with_different_weights_of_the_width():
    layers = FieldEncoder(hidden_size=192, layers=2).build().encoder.layers
    one, two = (layer.self_attn.in_proj_weight for layer in layers)
    assert float(one.detach().std()) == pytest.approx(0.04, rel=0.02)
    assert not torch.equal(one, two)
    scaled = FieldEncoder(layers=8, residual_scale="depth").build().encoder.layers[0]
    assert float(scaled.linear2.weight.detach().std()) == pytest.approx(0.02 * 12**0.5 / 4, rel=0.05)
    assert float(scaled.self_attn.out_proj.weight.detach().std()) == pytest.approx(0.02 * 12**0.5 / 4, rel=0.05)


def test_the_papers_start():
    model = FieldEncoder(hidden_size=96, projections="diagonal").build()
    for layer in model.encoder.layers:
        for matrix in layer.self_attn.in_proj_weight.detach().split(96):
            noise = matrix - 0.01 * torch.eye(96)
            bound = 0.01 * (6 / (96 + 96)) ** 0.5
            assert bound * 0.99 < noise.abs().max() <= bound * 1.0001
        assert not layer.self_attn.in_proj_bias.any()
    with pytest.raises(ValueError, match=r"qk_scale and vo_scale must be 1, got 0\.5 and 1\.0"):
        FieldEncoder(projections="diagonal", qk_scale=0.5)


def test_a_number_sets_the_diagonal_of_a_start():
    torch.manual_seed(0)
    plain = FieldEncoder().build()
    torch.manual_seed(0)
    changed = FieldEncoder().build()
    find_variant("identity_init=0.01").apply(changed)
    for before, after in zip(plain.encoder.layers, changed.encoder.layers):
        for one, two in zip(*(x.self_attn.in_proj_weight.detach().split(64) for x in (before, after))):
            assert torch.allclose(two, one + 0.01 * torch.eye(64), atol=1e-7)


class Mean(nn.Module):
    def forward(self, values):
        return values.mean(1, keepdim=True).expand_as(values)


def test_the_error_is_relative_and_a_mean_over_functions():
    before, after = torch.tensor([[1.0, 3.0], [0.0, 20.0]]), torch.tensor([[2.0, 1.0], [10.0, 10.0]])
    task = FieldToField((FieldPairs(before, after), FieldPairs(before, after)), FieldEncoder())
    batch = task.eval_data().__getitems__([0, 1])
    assert float(task.loss(Mean(), batch)) == pytest.approx(0.5 * 1 / 5**0.5)
    evaluator = task.evaluator()
    for rows in ([0], [1], [1]):
        evaluator.update(Mean(), task.eval_data().__getitems__(rows), lambda found: found)
    assert evaluator.compute() == {"score": pytest.approx(5**-0.5 / 3), "median_error": 0.0}


def test_what_the_mean_scores_on_the_default_evaluation_set():
    """As the documentation says."""
    task = FieldToField((burgers_pairs(2**20, 100, 64),) * 2, FieldEncoder())
    evaluator = task.evaluator()
    evaluator.update(Mean(), task.eval_data().__getitems__(range(100)), lambda found: found)
    found = evaluator.compute()
    assert (round(found["score"], 3), round(found["median_error"], 3)) == (0.033, 0.013)


@pytest.mark.filterwarnings("ignore:strength=10 adds about:UserWarning")
def test_all_variants_know_it(small):
    task = small.task()
    for name, variant in VARIANTS.items():
        model = task.build_model()
        variant.apply(model, task.probe())
        assert torch.isfinite(model(task.probe())).all(), name
    assert len(projection_records(task.build_model())) == 2 * 3
    assert len(precondition(task.build_model()).converted) == 2


# Runs


@pytest.mark.slow
def test_it_learns(small, tmp_path):
    rows = list(rows_of(tmp_path, dataclasses.replace(small, samples=256)))
    assert rows[-1]["step"] == 192
    assert rows[-1]["score"] < 0.5 * rows[0]["score"]
    assert rows[-1]["median_error"] < 0.15


def test_an_interrupted_run_ends_as_the_unbroken_one(small, tmp_path):
    short = dataclasses.replace(small, training=dataclasses.replace(small.training, epochs=2, evaluate_every=1))
    expected = list(rows_of(tmp_path / "whole", short, "preconditioned"))
    rows = rows_of(tmp_path / "broken", short, "preconditioned", OFTEN)
    next(rows)
    del rows
    assert without_time(rows_of(tmp_path / "broken", short, "preconditioned")) == without_time(expected)


def test_where_functions_are_kept_is_no_setting(small):
    assert settings_of(small) == settings_of(SMALL)
    assert settings_of(small)["recipe"] == "burgers"
    assert "cache_dir" not in settings_of(small)


@pytest.mark.slow
def test_from_the_command_line(cache, tmp_path, capsys):
    sizes = ["--points", "16", "--samples", "32", "--eval-samples", "8", "--cache-dir", str(cache)]
    model = ["--hidden-size", "16", "--layers", "1", "--heads", "1", "--projections", "diagonal"]
    once = ["--batch-size", "16", "--epochs", "1", "--folder", str(tmp_path)]
    assert call("train", "burgers", *sizes, *model, *once) == 0
    assert "median_error" in capsys.readouterr().out
    assert call("compare", "burgers", *sizes, *model, "--dry-run") == 0


@pytest.mark.slow
def test_its_cost_is_estimated(small):
    (row,) = estimate(small.task(), small.training, ["baseline"], measure=False)
    assert row.steps == 48


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"points": 100}, "points must be a divisor of 512 and at least 2, got 100"),
        ({"points": 1024}, "points must be a divisor of 512 and at least 2, got 1024"),
        ({"points": 1}, "points must be a divisor of 512 and at least 2, got 1"),
        ({"samples": 0}, "first must be at least 0 and count at least 1, got 0 and 0"),
        ({"eval_samples": -1}, "count at least 1, got 1048576 and -1"),
    ],
)
def test_wrong_settings(changes, words, small):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(small, **changes).task()


def test_wrong_models_and_fields():
    with pytest.raises(ValueError, match="heads=3 must divide hidden_size=64"):
        FieldEncoder(heads=3)
    with pytest.raises(ValueError, match="layers, heads and mlp_ratio must be at least 1"):
        FieldEncoder(layers=0)
    with pytest.raises(ValueError, match=r"must both be \(S, n\), got"):
        FieldPairs(torch.ones(2, 3), torch.ones(2, 4))
