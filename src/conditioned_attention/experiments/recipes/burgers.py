"""Viscous Burgers by a softmax encoder: the recipe ``burgers``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from conditioned_attention.experiments.data.burgers import burgers_pairs
from conditioned_attention.experiments.data.split import TUNING, hold_out
from conditioned_attention.experiments.models.field_encoder import FieldEncoder
from conditioned_attention.experiments.tasks.fields import FieldToField
from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.storage.settings import place

_FIRST_FOR_EVALUATION = 2**20  # the number of a function; those for training begin at 0


@dataclass(frozen=True)
class Burgers:
    """Viscous Burgers' equation on the circle: from u(·, 0) to u(·, 1) with softmax, as in Cao 2021 (arXiv 2105.14995).

    The functions are drawn and solved here, once, in a few seconds.  At t = 1 little but the mean is left: predicting
    the mean of u(·, 0) at every point, which needs no learning, scores 0.033 on the hundred functions of the default
    evaluation set (median 0.013; lower is better), so a model that scores above that has learnt nothing but the mean.

    Attributes:
        points: number of grid points, each a token; a divisor of 512.
        samples: number of functions to train on.
        eval_samples: number of functions to evaluate on.
        cache_dir: where the functions are kept; default ~/.cache/conditioned-attention.
        model: the network; the default has 0.07 million parameters, 64 tokens and heads of width 16.
        training: how it is trained.
    """

    points: int = 64
    samples: int = 1024
    eval_samples: int = 100
    cache_dir: Path | None = place(None)
    model: FieldEncoder = field(default_factory=lambda: FieldEncoder(layers=2))
    training: Training = field(
        default_factory=lambda: Training(
            epochs=100, batch_size=8, lr=1e-3, weight_decay=0.0, warmup=0.2, evaluate_every=5, monitor_every=25
        )
    )

    def task(self, *, tuning: bool = False) -> Task:
        train = burgers_pairs(0, self.samples, self.points, self.cache_dir)
        if not tuning:
            held = burgers_pairs(_FIRST_FOR_EVALUATION, self.eval_samples, self.points, self.cache_dir)
            return FieldToField((train, held), self.model)
        rest, kept = hold_out([0] * len(train), TUNING)
        return FieldToField((train.subset(rest), train.subset(kept)), self.model)
