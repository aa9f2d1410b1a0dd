"""In-context regression, scored by the error of the last point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from conditioned_attention.experiments.data.linear_functions import LinearFunctions, ridge_prediction
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.tasks.task import Evaluator, Task


class InContextRegression(Task):
    """In-context regression by the mean squared error at every x, scored by that at the last x over the dimension.

    A model that always predicts 0 scores 1.  Evaluations also have ``ridge``, the score of the best estimator on the
    same sequences, which no model beats on average.

    Args:
        data: training and evaluation set.
        build: makes a model with fresh weights, which maps x (B, k, d) and y (B, k) to predictions of y (B, k).
    """

    metric = Metric("squared error / dimension", higher_is_better=False)
    causal = True

    def __init__(self, data: tuple[LinearFunctions, LinearFunctions], build: Callable[[], nn.Module]) -> None:
        self._train, self._eval = data
        self._build = build
        self.tokens_per_sample = 2 * self._train.points

    def build_model(self) -> nn.Module:
        return self._build()

    def train_data(self) -> LinearFunctions:
        return self._train

    def eval_data(self) -> LinearFunctions:
        return self._eval

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        differences: Tensor = _expected(model, batch) - batch[1]
        return differences.square().mean()

    def evaluator(self) -> Evaluator:
        return _LastPoint(self._eval.dimension, self._eval.noise)

    def probe(self) -> dict[str, Tensor]:
        return _first_inputs(self._eval)

    def calibration(self) -> dict[str, Tensor]:
        return _first_inputs(self._train)


def _first_inputs(data: LinearFunctions) -> dict[str, Tensor]:
    x, y = data.__getitems__(range(min(8, len(data))))
    return {"x": x, "y": y}


class _LastPoint:
    """Squared error of the last point over the dimension: of the model, and of the best estimator."""

    def __init__(self, dimension: int, noise: float) -> None:
        self.dimension, self.noise = dimension, noise
        self.errors: dict[str, list[Tensor]] = {"score": [], "ridge": []}

    def update(self, model: nn.Module, batch: Any, gather: Callable[[Any], Any]) -> None:
        x, y, expected = (t.cpu() for t in gather((*batch, _expected(model, batch))))
        for name, last in (("score", expected[:, -1]), ("ridge", ridge_prediction(x, y, self.noise))):
            self.errors[name].append((last - y[:, -1]).double().square() / self.dimension)

    def compute(self) -> dict[str, float]:
        return {name: float(torch.cat(errors).mean()) for name, errors in self.errors.items()}


def _expected(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    expected: Tensor = model(x, y).float()
    return expected
