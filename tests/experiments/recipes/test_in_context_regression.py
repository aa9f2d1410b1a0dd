"""In-context regression: functions of the right law, the best estimator, a model of the past alone that learns."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, Ridge
from torch import nn

from conditioned_attention import precondition
from conditioned_attention.experiments.data.linear_functions import LinearFunctions, ridge_prediction
from conditioned_attention.experiments.models.gpt import GPT
from conditioned_attention.experiments.models.in_context import InContextRegressor
from conditioned_attention.experiments.planning.estimate import estimate
from conditioned_attention.experiments.recipes.in_context_regression import InContextRegressionRecipe
from conditioned_attention.experiments.tasks.in_context_regression import InContextRegression
from conditioned_attention.experiments.training.loop import train
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from conditioned_attention.measure.probing.projections import projection_records
from tests.experiments.tiny import OFTEN, SELDOM
from tests.test_cli import call

SMALL = InContextRegressionRecipe(
    dimension=1,
    points=6,
    samples=12_800,
    eval_samples=256,
    model=GPT(context=12, hidden_size=32, layers=2, heads=2),
    training=Training(
        epochs=1, batch_size=64, lr=4e-3, weight_decay=0.0, warmup=0.2, evaluate_every=0.5, monitor_every=0
    ),
)


def rows_of(folder, recipe, variant="baseline", launch=SELDOM):
    return train(recipe.task(), recipe.training, VARIANTS[variant], 0, folder, launch)


def without_time(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


# Functions and the best estimator


def test_points_lie_on_linear_functions_but_for_the_noise():
    exact, noisy = (LinearFunctions(samples=400, dimension=3, points=9, noise=noise) for noise in (0.0, 0.5))
    (x, y), (same, off) = (data.__getitems__(range(400)) for data in (exact, noisy))
    assert x.shape == (400, 9, 3)
    assert y.dtype == torch.float32
    weights = torch.stack(
        [torch.as_tensor(LinearRegression(fit_intercept=False).fit(a, b).coef_) for a, b in zip(x, y)]
    )
    assert (torch.einsum("bkd,bd->bk", x, weights.float()) - y).abs().max() < 1e-4
    for drawn in (x, weights):
        assert drawn.mean().abs() < 0.1
        assert float(drawn.std()) == pytest.approx(1, abs=0.1)
    assert torch.equal(same, x)
    assert float((off - y).std()) == pytest.approx(0.5, abs=0.03)


def test_a_sequence_is_set_by_its_number_and_stream():
    sizes = {"dimension": 2, "points": 5, "noise": 0.1}
    one, two = LinearFunctions(50, **sizes), LinearFunctions(50, **sizes, stream=1)
    x, y = one.__getitems__([7, 3])
    np.random.seed(5)  # noqa: NPY002 - the loop sets it for every item
    again = LinearFunctions(10**12, **sizes)[3]
    assert torch.equal(again[0], x[1])
    assert torch.equal(again[1], y[1])
    assert not torch.equal(x[0], x[1])
    assert not torch.equal(two[3][0], again[0])
    with pytest.raises(IndexError, match="there are 50 sequences, and none with the index 50"):
        one[50]


@pytest.mark.parametrize("noise", [0.0, 0.7])
@pytest.mark.parametrize("points", [4, 12])
def test_the_best_estimator_is_scikit_learns(points, noise):
    x, y = LinearFunctions(20, 6, points, noise).__getitems__(range(20))
    found = ridge_prediction(x, y, noise)
    for i in range(20):
        model = Ridge(noise**2, fit_intercept=False) if noise else LinearRegression(fit_intercept=False)
        expected = model.fit(x[i, :-1].double(), y[i, :-1].double()).predict(x[i, -1:].double())
        assert float(found[i]) == pytest.approx(float(expected[0]), abs=1e-5)


def test_tuning_has_sequences_of_its_own():
    usual, tuning = SMALL.task(), SMALL.task(tuning=True)
    assert len({usual.train_data().stream, usual.eval_data().stream, tuning.eval_data().stream}) == 3
    assert tuning.train_data() == usual.train_data()


# Model, loss and score


def test_the_model_sees_the_past_alone():
    torch.manual_seed(0)
    model = InContextRegressor(GPT(context=16, hidden_size=32, layers=2, heads=2), 3).eval()
    x, y = LinearFunctions(4, 3, 8).__getitems__(range(4))
    out = model(x, y)
    assert out.shape == (4, 8)
    changed = y.clone()
    changed[:, 5] += 1
    moved = (model(x, changed) - out).abs().amax(0)
    assert moved[:6].max() == 0, "of the y that is asked for it knows nothing"
    assert moved[6:].min() > 0
    changed = x.clone()
    changed[:, 5] += 1
    moved = (model(changed, y) - out).abs().amax(0)
    assert moved[:5].max() == 0
    assert moved[5:].min() > 0


class Last(nn.Module):
    """Expects the y before."""

    def forward(self, x, y):
        return torch.cat([torch.zeros_like(y[:, :1]), y[:, :-1]], dim=1)


def test_every_point_is_learnt_and_the_last_one_scored():
    data = LinearFunctions(64, 2, 5, 0.3)
    task = InContextRegression((data, data), lambda: Last())
    x, y = data.__getitems__(range(64))
    differences = y - torch.cat([torch.zeros(64, 1), y[:, :-1]], dim=1)
    assert float(task.loss(Last(), (x, y))) == pytest.approx(float(differences.square().mean()), rel=1e-5)
    evaluator = task.evaluator()
    for rows in (range(40), range(40, 64)):
        evaluator.update(Last(), data.__getitems__(rows), lambda found: found)
    found = evaluator.compute()
    assert found["score"] == pytest.approx(float((y[:, -1] - y[:, -2]).square().mean()) / 2, rel=1e-5)
    best = ridge_prediction(x, y, 0.3) - y[:, -1]
    assert found["ridge"] == pytest.approx(float(best.square().mean()) / 2, rel=1e-5)
    assert found["ridge"] < found["score"]


@pytest.mark.filterwarnings("ignore:strength=10 adds about:UserWarning")
def test_all_variants_know_it():
    task = SMALL.task()
    for name, variant in VARIANTS.items():
        if variant.mixes_rows:
            continue
        model = task.build_model()
        variant.apply(model, task.probe())
        assert torch.isfinite(model(**task.probe())).all(), name
    assert len(projection_records(task.build_model())) == 2 * 3
    assert len(precondition(task.build_model()).converted) == 2


def test_it_starts_as_the_gpt_does():
    gpt = GPT(context=64, hidden_size=192, layers=1)
    model = InContextRegressor(gpt, 50)
    for weight in (model.read_in.weight, model.body.h[0].attn.c_attn.weight):
        assert float(weight.detach().std()) == pytest.approx(0.04, rel=0.03)
    assert not any(name.startswith("body.wte") for name, _ in model.named_parameters())


# Runs


@pytest.mark.slow
def test_it_learns(tmp_path):
    """Whoever says 0 scores 1."""
    rows = list(rows_of(tmp_path, SMALL))
    assert rows[-1]["step"] == 200
    assert rows[-1]["seen"] == 12_800 * 12
    assert rows[-1]["score"] < 0.3
    assert rows[-1]["ridge"] < 1e-6


@pytest.mark.slow
def test_an_interrupted_run_ends_as_the_unbroken_one(tmp_path):
    short = dataclasses.replace(SMALL, samples=1280)
    expected = list(rows_of(tmp_path / "whole", short, "preconditioned"))
    rows = rows_of(tmp_path / "broken", short, "preconditioned", OFTEN)
    next(rows)
    del rows
    assert without_time(rows_of(tmp_path / "broken", short, "preconditioned")) == without_time(expected)


@pytest.mark.slow
def test_from_the_command_line(tmp_path, capsys):
    sizes = ["--dimension", "2", "--points", "4", "--noise", "0.1", "--samples", "64", "--eval-samples", "16"]
    model = ["--context", "8", "--hidden-size", "16", "--layers", "1", "--heads", "1", "--batch-size", "32"]
    assert call("train", "in_context_regression", *sizes, *model, "--folder", str(tmp_path)) == 0
    assert "step 2  seen 512" in capsys.readouterr().out
    assert call("compare", "in_context_regression", *sizes, *model, "--dry-run") == 0


@pytest.mark.slow
def test_its_cost_is_estimated():
    (row,) = estimate(SMALL.task(), SMALL.training, ["baseline"], measure=False)
    assert (row.steps, row.tokens) == (200, 12_800 * 12)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"points": 7}, "points=7 are 14 tokens, more than the model sees, context=12"),
        ({"points": 1}, "points at least 2, got 12800, 1 and 1"),
        ({"dimension": 0}, "samples and dimension must be at least 1 .* got 12800, 0 and 6"),
        ({"samples": 0}, "samples and dimension must be at least 1 .* got 0, 1 and 6"),
        ({"noise": -0.1}, "noise must be finite and not negative, got -0.1"),
        ({"noise": float("nan")}, "noise must be finite and not negative, got nan"),
    ],
)
def test_wrong_settings(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(SMALL, **changes).task()
