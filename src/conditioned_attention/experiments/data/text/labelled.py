"""Texts, or pairs of them, with a label each; and how what cannot be read of them is counted and named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from conditioned_attention.experiments.data.scan import check_bound, check_unreadable, tell_unreadable
from conditioned_attention.experiments.data.split import TUNING, hold_out


@dataclass
class LabelledTexts:
    """Texts, or pairs of them, that are added one by one.

    Attributes:
        firsts: the texts, or the first ones of pairs.
        seconds: the second ones of pairs; nothing where there are none.
        labels: numbers of classes from 0 on, or what is to be regressed.
        documents: what each text is a part of; nothing where they are not known to be parts.
    """

    firsts: list[str] = field(default_factory=list)
    seconds: list[str] = field(default_factory=list)
    labels: list[float] = field(default_factory=list)
    documents: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    def add(self, texts: Sequence[str], label: float, document: str | None = None) -> None:
        """One text, or a pair."""
        self.firsts.append(texts[0])
        self.seconds += texts[1:]
        self.labels.append(label)
        self.documents += [] if document is None else [document]

    def part(self, indices: Sequence[int]) -> LabelledTexts:
        """These of them, in this order."""
        return LabelledTexts(
            [self.firsts[i] for i in indices],
            [self.seconds[i] for i in indices] if self.seconds else [],
            [self.labels[i] for i in indices],
            [self.documents[i] for i in indices] if self.documents else [],
        )

    def drawn(self, count: int) -> LabelledTexts:
        """So many of them, drawn always in the same way."""
        return self.part(np.random.RandomState(0).permutation(len(self))[:count].tolist())


class TextSets(NamedTuple):
    """What is trained and scored on.

    Attributes:
        train: the training set.
        held: evaluation sets by name; what counts is the score on the first.
        classes: names of the labels; nothing where numbers are regressed.
        notes: what a report should say.
    """

    train: LabelledTexts
    held: Mapping[str, LabelledTexts]
    classes: tuple[str, ...]
    notes: list[str]

    def for_tuning(self) -> TextSets:
        """A tenth of the training set, of each class alike, in place of the evaluation sets; of whole documents."""
        classes = [int(label) for label in self.train.labels] if self.classes else [0] * len(self.train)
        rest, held = hold_out(classes, TUNING, self.train.documents or None)
        return self._replace(train=self.train.part(rest), held={next(iter(self.held)): self.train.part(held)})


def count_broken(name: str, broken: Mapping[str, str], good: int, bound: int, notes: list[str]) -> None:
    """Warns of what is left out of a set, and notes each of it.

    Args:
        name: of the set.
        broken: what is wrong, by the place where it stands, such as ``"line 3"``.
        good: how many could be read.
        bound: more than so many broken ones are an error.
        notes: gets a line for each.

    Raises:
        ValueError: too many are broken, or all.
    """
    check_bound(bound)
    named = {f"{name}, {place}": reason for place, reason in broken.items()}
    check_unreadable(named, good + len(named), bound, name)
    notes += tell_unreadable(named, good + len(named))
