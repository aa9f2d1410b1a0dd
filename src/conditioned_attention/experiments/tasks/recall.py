"""Associative recall, scored by the share of queries that are answered correctly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from conditioned_attention.experiments.data.recall import IGNORED, RecallSequences
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.tasks.task import Evaluator, Task


class TokenModel(Protocol):
    """Settings of a network that predicts a token at every position."""

    def build(self, vocabulary: int) -> nn.Module:
        """The model with fresh weights; it maps ids (B, n) to logits (B, n, vocabulary)."""


class Recall(Task):
    """Associative recall by cross entropy of the value at every query and nowhere else, scored by accuracy there."""

    metric = Metric("accuracy (%)")
    causal = True

    def __init__(self, data: tuple[RecallSequences, RecallSequences], model: TokenModel) -> None:
        self._train, self._eval = data
        self._model = model
        self.tokens_per_sample = self._train.length

    def build_model(self) -> nn.Module:
        return self._model.build(self._train.vocabulary)

    def train_data(self) -> RecallSequences:
        return self._train

    def eval_data(self) -> RecallSequences:
        return self._eval

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        tokens, targets = batch
        return F.cross_entropy(_logits(model, tokens), targets, ignore_index=IGNORED)

    def evaluator(self) -> Evaluator:
        return _Answers()

    def probe(self) -> dict[str, Tensor]:
        return _first_inputs(self._eval)

    def calibration(self) -> dict[str, Tensor]:
        return _first_inputs(self._train)


def _first_inputs(data: RecallSequences) -> dict[str, Tensor]:
    return {"input_ids": data.__getitems__(range(min(8, len(data))))[0]}


class _Answers:
    """Share of queries whose value has the largest logit, in per cent, and the mean loss."""

    def __init__(self) -> None:
        from torchmetrics import MeanMetric

        self.hits, self.losses = (MeanMetric(sync_on_compute=False) for _ in range(2))

    def update(self, model: nn.Module, batch: Any, gather: Callable[[Any], Any]) -> None:
        tokens, targets = batch
        logits, asked = _logits(model, tokens), targets != IGNORED
        queries = asked.sum(1)  # the same number in every sequence
        hits = (logits.argmax(1) == targets).sum(1) / queries
        losses = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none").sum(1) / queries
        hits, losses = gather((hits, losses))
        self.hits.update(hits.cpu())
        self.losses.update(losses.cpu())

    def compute(self) -> dict[str, float]:
        return {"score": 100 * float(self.hits.compute()), "eval_loss": float(self.losses.compute())}


def _logits(model: nn.Module, tokens: Tensor) -> Tensor:
    """Logits (B, V, n), in the layout that the loss expects."""
    logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits.float().transpose(1, 2)
