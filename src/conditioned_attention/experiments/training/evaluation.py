"""Scores a model while it trains, and keeps the weights that scored best."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.experiments.training.chance import seeded


def evaluate(
    task: Task, model: nn.Module, batches: Iterable[Any], gather: Callable[[Any], Any], *key: object
) -> dict[str, float]:
    """Returns the scores of a model on batches.

    Random numbers in it are seeded by ``key``, and the generators are restored afterwards, so that evaluations do not
    change the training, however many there are.
    """
    model.eval()
    with torch.no_grad(), torch.random.fork_rng(), seeded("evaluation", *key):
        evaluator = task.evaluator()
        for batch in batches:
            evaluator.update(model, batch, gather)
        scores = evaluator.compute()
    if "score" not in scores:
        raise ValueError(
            f"the evaluator of {type(task).__name__} gives no 'score', only {', '.join(scores) or 'nothing'}"
        )
    return scores


@dataclass
class Best:
    """The best evaluation so far: its score, its step and a state_dict on the CPU; None before the first."""

    score: float | None = None
    step: int = 0
    weights: dict[str, Tensor] | None = None

    def offer(self, score: float, step: int, model: nn.Module, metric: Metric) -> None:
        """Keeps a model's weights if its score is better than all earlier ones; of equal scores the first stays.

        A score that is not a number is never the best.
        """
        sign = 1 if metric.higher_is_better else -1
        if not math.isnan(score) and (self.score is None or sign * score > sign * self.score):
            weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
            self.score, self.step, self.weights = score, step, weights
