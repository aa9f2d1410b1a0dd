"""Regression from one function on a grid to another, scored by the relative error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.tasks.classification import first_inputs
from conditioned_attention.experiments.tasks.task import Evaluator, Task


class FieldModel(Protocol):
    """Settings of a network that maps functions to functions."""

    def build(self) -> nn.Module:
        """The model with fresh weights; it maps functions (B, n) to functions (B, n)."""


class FieldToField(Task):
    """Maps functions to functions; loss and score are the mean of ‖found − true‖ / ‖true‖, in L² on the grid.

    Args:
        data: training and evaluation set; a batch is input and target functions, (B, n) each.
        model: what is trained.
    """

    metric = Metric("relative L2 error", higher_is_better=False)

    def __init__(self, data: tuple[Dataset[Any], Dataset[Any]], model: FieldModel) -> None:
        self._train, self._eval = data
        self._model = model

    def build_model(self) -> nn.Module:
        return self._model.build()

    def train_data(self) -> Dataset[Any]:
        return self._train

    def eval_data(self) -> Dataset[Any]:
        return self._eval

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return _errors(model, batch).mean()

    def evaluator(self) -> Evaluator:
        return _RelativeError()

    def probe(self) -> Tensor:
        return first_inputs(self._eval)

    def calibration(self) -> Tensor:
        return first_inputs(self._train)


class _RelativeError:
    """Mean and median over the functions; the few functions that are nearly 0 on average dominate the mean."""

    def __init__(self) -> None:
        self.errors: list[Tensor] = []

    def update(self, model: nn.Module, batch: Any, gather: Callable[[Any], Any]) -> None:
        self.errors.append(gather(_errors(model, batch)).cpu())

    def compute(self) -> dict[str, float]:
        errors = torch.cat(self.errors).double()
        return {"score": float(errors.mean()), "median_error": float(errors.median())}


def _errors(model: nn.Module, batch: Any) -> Tensor:
    """The relative error of each function (B,)."""
    before, after = batch
    found: Tensor = model(before).float()
    errors: Tensor = (found - after).norm(dim=1) / after.norm(dim=1)
    return errors
