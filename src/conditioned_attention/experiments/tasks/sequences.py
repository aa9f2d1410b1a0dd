"""Classification of sequences of token ids, scored by accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from conditioned_attention.experiments.data.lra.sequences import TokenPairs, TokenSequences
from conditioned_attention.experiments.tasks.classification import Classification

Data = TokenSequences | TokenPairs

_PROBED_OF = 500


class SequenceModel(Protocol):
    """Settings of a network that classifies sequences."""

    def build(self, vocabulary: int, classes: int, *, pairs: bool = False) -> nn.Module:
        """The model with fresh weights; it maps ids (B, N), with ``pairs`` two of them, to logits (B, classes)."""


class SequenceClassification(Classification):
    """Classification of sequences; if there is a test set, it scores the weights that a run ends with.

    Args:
        data: training and evaluation set, and a test set or None.
        model: what is trained.
        vocabulary: number of ids.
        classes: how many, or their names.
        notes: what a report should say about the data.
    """

    def __init__(
        self,
        data: tuple[Data, Data, Data | None],
        model: SequenceModel,
        vocabulary: int,
        classes: int | Sequence[str] = 10,
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__(data[:2], classes, notes)
        self._test, self._model, self._vocabulary = data[2], model, vocabulary
        self.tokens_per_sample = data[0].padded

    def build_model(self) -> nn.Module:
        return self._model.build(self._vocabulary, len(self.classes))

    def test_data(self) -> Any:
        return self._test

    def probe(self) -> Any:
        """The longest of the first evaluation samples, since padding alone may make a head singular.

        A landmark is a mean over a stretch of the sequence, and all landmarks of padding only are the same: if there
        are fewer others than a head is wide, F Z B v lacks the rank that a finite condition number needs.
        """
        lengths = self._eval.lengths[:_PROBED_OF]  # type: ignore[attr-defined]
        longest = np.argsort(-lengths.astype(np.int64), kind="stable")[:8]
        return self.collate(self._eval.__getitems__(sorted(longest.tolist())))[0]  # type: ignore[attr-defined]


class PairClassification(SequenceClassification):
    """Classification of pairs of sequences, both of which the model sees; see `SequenceClassification`."""

    def __init__(
        self,
        data: tuple[TokenPairs, TokenPairs, TokenPairs | None],
        model: SequenceModel,
        vocabulary: int,
        classes: int | Sequence[str] = 2,
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__(data, model, vocabulary, classes, notes)
        self.tokens_per_sample = 2 * data[0].padded

    def build_model(self) -> nn.Module:
        return self._model.build(self._vocabulary, len(self.classes), pairs=True)

    def logits(self, model: nn.Module, inputs: Tensor) -> Tensor:
        logits: Tensor = model(*inputs.unbind(1))
        return logits

    def probe(self) -> Any:
        return super().probe().unbind(1)

    def calibration(self) -> Any:
        return super().calibration().unbind(1)
