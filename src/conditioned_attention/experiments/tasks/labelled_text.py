"""Fine-tuning on labelled texts: classes by cross entropy, numbers by squared error, with a score by task."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conditioned_attention.experiments.data.fingerprint import checksum, classes_in_words
from conditioned_attention.experiments.data.text.encoded import EncodedTexts
from conditioned_attention.experiments.data.text.labelled import TextSets
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.tasks.task import Evaluator, Task

Score = Literal["accuracy", "f1", "matthews", "pearson"]

METRICS = {
    "accuracy": Metric("accuracy (%)"),
    "f1": Metric("F1 (%)"),
    "matthews": Metric("Matthews correlation × 100"),
    "pearson": Metric("Pearson correlation × 100"),
}


def score_of(score: Score, predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Computes a score times 100, as in GLUE's tables, and the number that is usually given with it.

    Args:
        score: ``"f1"`` is the F1 of class 1 and comes with ``accuracy``; ``"pearson"`` comes with ``spearman``.
        predicted: (S,), classes or numbers.
        labels: (S,).

    Returns:
        ``{"score": …}`` and others; if values are all the same, Pearson's correlation is nan, and Matthews' is 0.

    >>> score_of("f1", np.array([1, 1, 0, 0]), np.array([1, 0, 0, 1]))
    {'score': 50.0, 'accuracy': 50.0}
    """
    from scipy import stats
    from sklearn import metrics

    if score == "pearson":
        if len(labels) < 2 or np.ptp(predicted) == 0 or np.ptp(labels) == 0:
            return {"score": math.nan, "spearman": math.nan}
        found = {"score": stats.pearsonr(predicted, labels)[0], "spearman": stats.spearmanr(predicted, labels)[0]}
    else:
        right = metrics.accuracy_score(labels, predicted)
        values = {
            "accuracy": lambda: right,
            "f1": lambda: metrics.f1_score(labels, predicted, zero_division=0.0),
            "matthews": lambda: metrics.matthews_corrcoef(labels, predicted),
        }
        found = {"score": values[score](), **({} if score == "accuracy" else {"accuracy": right})}
    return {name: 100 * float(value) for name, value in found.items()}


class TextModel(Protocol):
    """Settings of a pretrained model."""

    def build(self, labels: int) -> nn.Module:
        """The model with a fresh head for so many logits; it takes what `EncodedTexts` gives and outputs ``logits``."""

    def identity(self) -> dict[str, Any]:
        """Which pretrained model it is, as plain data."""


class LabelledText(Task):
    """Classes or numbers of texts and pairs of texts, trained by cross entropy or squared error.

    Each evaluation also has the score on every evaluation set but the first, under the name of the set
    (``mismatched``).

    Args:
        sets: the texts to train and to score on.
        model: what is trained.
        tokenizer: a tokenizer of transformers; it is saved in the folder of a finished run.
        length: tokens of a text, or of a pair.
        score: what runs are compared by.
    """

    def __init__(self, sets: TextSets, model: TextModel, tokenizer: Any, length: int, score: Score) -> None:
        self._model, self._tokenizer, self._score, self.metric = model, tokenizer, score, METRICS[score]
        self.regression, self.classes = not sets.classes, sets.classes
        how = {"regression": self.regression}
        self._train = EncodedTexts({"train": sets.train}, tokenizer, length, **how)
        self._held = EncodedTexts(sets.held, tokenizer, length, **how)
        self.about = classes_in_words(self.classes) if self.classes else "numbers that are regressed"
        self.notes = [*sets.notes, *_cut("to train", self._train), *_cut("to evaluate", self._held)]

    def build_model(self) -> nn.Module:
        return self._model.build(len(self.classes) or 1)

    def train_data(self) -> EncodedTexts:
        return self._train

    def eval_data(self) -> EncodedTexts:
        return self._held

    def fingerprint(self) -> dict[str, Any]:
        """The fingerprint, which includes the classes and the identity of the pretrained model."""
        return {"class names": checksum(self.classes), **self._model.identity(), **super().fingerprint()}

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return self.loss_of(logits_of(model, batch), batch["labels"])

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits (B, classes) or (B, 1) for labels (B,), in float32."""
        logits = logits.float()
        return F.mse_loss(logits[:, 0], labels) if self.regression else F.cross_entropy(logits, labels)

    def evaluator(self) -> Evaluator:
        return _Scores(self, self._score, self._held.names)

    def probe(self) -> dict[str, Tensor]:
        # The longest texts, since padding adds no rank: heads of short texts would be singular for that reason alone.
        longest = np.argsort(-self._held.lengths, kind="stable")[:8]
        return _inputs(self._held.__getitems__(longest.tolist()))

    def calibration(self) -> dict[str, Tensor]:
        return _inputs(self._train.__getitems__(range(min(8, len(self._train)))))

    def finish(self, model: nn.Module) -> dict[str, str]:
        """Gives ``tokenizer.json``, without which the model could not be used."""
        return {"tokenizer.json": self._tokenizer.backend_tokenizer.to_str()}


def logits_of(model: nn.Module, batch: Any) -> Tensor:
    """The logits (B, classes) of a model for a batch."""
    logits: Tensor = model(**_inputs(batch)).logits
    return logits


def _inputs(batch: Any) -> dict[str, Tensor]:
    return {name: values for name, values in batch.items() if name not in ("labels", "set")}


def _cut(use: str, data: EncodedTexts) -> list[str]:
    return [f"{use}: {data.cut} texts fill all of the {data.length} tokens, and may be cut"] * bool(data.cut)


class _Scores:
    """The score on each evaluation set, and the mean loss of the first."""

    def __init__(self, task: LabelledText, score: Score, names: list[str]) -> None:
        self.task, self.score, self.names = task, score, names
        self.logits: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.sets: list[Tensor] = []

    def update(self, model: nn.Module, batch: Any, gather: Callable[[Any], Any]) -> None:
        found = gather((logits_of(model, batch).float(), batch["labels"], batch["set"]))
        for kept, values in zip((self.logits, self.labels, self.sets), found):
            kept.append(values.cpu())

    def compute(self) -> dict[str, float]:
        logits, labels, sets = (torch.cat(parts) for parts in (self.logits, self.labels, self.sets))
        predicted = logits[:, 0] if self.task.regression else logits.argmax(-1)
        found: dict[str, float] = {}
        for number, name in enumerate(self.names):
            chosen = sets == number
            if not chosen.any():
                continue
            scores = score_of(self.score, predicted[chosen].numpy(), labels[chosen].numpy())
            if number:
                found[name] = scores["score"]
            else:
                found |= scores | {"eval_loss": float(self.task.loss_of(logits[chosen], labels[chosen]))}
        return found
