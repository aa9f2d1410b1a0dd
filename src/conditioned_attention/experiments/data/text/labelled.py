"""Labelled texts or pairs of texts, and how those that cannot be read are counted and named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from conditioned_attention.experiments.data.scan import check_bound, check_unreadable, tell_unreadable
from conditioned_attention.experiments.data.split import TUNING, hold_out


@dataclass
class LabelledTexts:
    """Labelled texts, or pairs of texts, that are added one by one.

    Attributes:
        firsts: the texts, or the first texts of pairs.
        seconds: the second texts of pairs; empty if there are no pairs.
        labels: numbers of classes from 0 on, or the numbers to predict in a regression.
        documents: what each text is a part of; empty if this is not known.
    """

    firsts: list[str] = field(default_factory=list)
    seconds: list[str] = field(default_factory=list)
    labels: list[float] = field(default_factory=list)
    documents: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    def add(self, texts: Sequence[str], label: float, document: str | None = None) -> None:
        """Adds one text, or one pair."""
        self.firsts.append(texts[0])
        self.seconds += texts[1:]
        self.labels.append(label)
        self.documents += [] if document is None else [document]

    def part(self, indices: Sequence[int]) -> LabelledTexts:
        """The texts with these indices, in this order."""
        return LabelledTexts(
            [self.firsts[i] for i in indices],
            [self.seconds[i] for i in indices] if self.seconds else [],
            [self.labels[i] for i in indices],
            [self.documents[i] for i in indices] if self.documents else [],
        )

    def drawn(self, count: int) -> LabelledTexts:
        """``count`` texts, drawn at random but always in the same way."""
        return self.part(np.random.RandomState(0).permutation(len(self))[:count].tolist())


class TextSets(NamedTuple):
    """The sets of texts that a model is trained and scored on.

    Attributes:
        train: the training set.
        held: evaluation sets by name; the score on the first one counts.
        classes: names of the labels; empty for a regression.
        notes: what a report should say.
    """

    train: LabelledTexts
    held: Mapping[str, LabelledTexts]
    classes: tuple[str, ...]
    notes: list[str]

    def for_tuning(self) -> TextSets:
        """Replaces the evaluation sets by a tenth of the training set, of each class alike and in whole documents."""
        classes = [int(label) for label in self.train.labels] if self.classes else [0] * len(self.train)
        rest, held = hold_out(classes, TUNING, self.train.documents or None)
        return self._replace(train=self.train.part(rest), held={next(iter(self.held)): self.train.part(held)})


def count_broken(name: str, broken: Mapping[str, str], good: int, bound: int, notes: list[str]) -> None:
    """Warns of the broken texts that are left out of a set, and notes each of them.

    Args:
        name: of the set.
        broken: what is wrong, by the place of the text, such as ``"line 3"``.
        good: how many texts could be read.
        bound: more broken texts than this are an error.
        notes: gets a line for each.

    Raises:
        ValueError: too many are broken, or all.
    """
    check_bound(bound)
    named = {f"{name}, {place}": reason for place, reason in broken.items()}
    check_unreadable(named, good + len(named), bound, name)
    notes += tell_unreadable(named, good + len(named))
