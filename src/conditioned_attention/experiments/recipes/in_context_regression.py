"""In-context linear regression by a small GPT on numbers: the recipe ``in_context_regression``."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from conditioned_attention.experiments.data.linear_functions import LinearFunctions
from conditioned_attention.experiments.models.gpt import GPT
from conditioned_attention.experiments.models.in_context import InContextRegressor
from conditioned_attention.experiments.tasks.in_context_regression import InContextRegression
from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.experiments.training.settings import Training

_TRAINING, _EVALUATION, _TUNING = range(3)  # streams of sequences


@dataclass(frozen=True)
class InContextRegressionRecipe:
    """In-context linear regression (Garg et al. 2022, arXiv 2208.01066): each sequence has a function of its own.

    Nothing needs to be downloaded; the sequences are made while a run trains.  A model that always predicts 0 scores 1;
    least squares, which every evaluation reports as ``ridge``, scores 0 without noise once there are as many points as
    dimensions.

    Attributes:
        dimension: dimension of x.
        points: points in a sequence, two tokens each; the model's context must hold them.
        noise: standard deviation of the noise that is added to y.
        samples: number of different sequences to train on, which are one epoch.
        eval_samples: number of other sequences to evaluate on.
        model: the network; the default has 0.2 million parameters and heads of width 32.
        training: how it is trained.
    """

    dimension: int = 5
    points: int = 32
    noise: float = 0.0
    samples: int = 64_000
    eval_samples: int = 1024
    model: GPT = field(default_factory=lambda: GPT(context=64, hidden_size=64, layers=4, heads=2))
    training: Training = field(
        default_factory=lambda: Training(
            epochs=1, batch_size=32, lr=1e-3, weight_decay=0.0, warmup=0.2, evaluate_every=0.1, monitor_every=0.5
        )
    )

    def task(self, *, tuning: bool = False) -> Task:
        """With ``tuning`` it is scored on sequences of a third kind, as many as for evaluation."""
        if 2 * self.points > self.model.context:
            raise ValueError(
                f"points={self.points} are {2 * self.points} tokens, more than the model sees, "
                f"context={self.model.context}"
            )
        sizes = self.dimension, self.points, self.noise
        held = _TUNING if tuning else _EVALUATION
        data = LinearFunctions(self.samples, *sizes, _TRAINING), LinearFunctions(self.eval_samples, *sizes, held)
        return InContextRegression(data, partial(InContextRegressor, self.model, self.dimension))
