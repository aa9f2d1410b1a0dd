"""Multi-query associative recall by a small GPT: the recipe ``recall``."""

from __future__ import annotations

from dataclasses import dataclass, field

from conditioned_attention.experiments.data.recall import RecallSequences
from conditioned_attention.experiments.models.gpt import GPT
from conditioned_attention.experiments.tasks.recall import Recall
from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.experiments.training.settings import Training

_TRAINING, _EVALUATION, _TUNING = range(3)  # streams of sequences


@dataclass(frozen=True)
class RecallRecipe:
    """Multi-query associative recall (Arora et al. 2023, arXiv 2312.04927): pairs of tokens, then queries.

    Attention has to find each key, and the token after it: chance is 1 / pairs once a model answers with some value of
    the sequence.  Nothing needs to be downloaded; the sequences are made while a run trains.

    Attributes:
        vocabulary: number of tokens, half of them keys and half values.
        pairs: number of pairs of a key and its value in a sequence.
        length: number of tokens in a sequence: at least four per pair, and no more than the model's context.
        samples: number of different sequences to train on, which are one epoch.
        eval_samples: number of other sequences to evaluate on.
        model: the network; the default has 0.11 million parameters and heads of width 32.
        training: how it is trained.
    """

    vocabulary: int = 128
    pairs: int = 8
    length: int = 64
    samples: int = 48_000
    eval_samples: int = 512
    model: GPT = field(default_factory=lambda: GPT(context=64, hidden_size=64, layers=2, heads=2))
    training: Training = field(
        default_factory=lambda: Training(
            epochs=1, batch_size=32, lr=2e-3, warmup=0.4, evaluate_every=0.05, monitor_every=0.5
        )
    )

    def task(self, *, tuning: bool = False) -> Task:
        """With ``tuning`` it is scored on sequences of a third kind, as many as for evaluation."""
        if self.length > self.model.context:
            raise ValueError(f"length={self.length} is more than the model sees, context={self.model.context}")
        sizes = self.vocabulary, self.pairs, self.length
        held = _TUNING if tuning else _EVALUATION
        data = RecallSequences(self.samples, *sizes, _TRAINING), RecallSequences(self.eval_samples, *sizes, held)
        return Recall(data, self.model)
