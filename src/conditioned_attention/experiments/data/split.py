"""Fixed splits of data sets, the same for every run, variant and seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

EVALUATION = 5  # one item in so many is held out if a data set comes without an evaluation set
TRAINING_SETS = ("train", "training")  # names of parts of a data set that say what they are for, in upper or lower case
EVALUATION_SETS = ("val", "valid", "validation", "dev", "eval", "evaluation", "test", "testing")
TUNING = 10  # one training item in so many scores runs that tune settings, so that the evaluation set stays unseen
_SHOWN = 10  # names in a message


def hold_out(labels: Sequence[int], one_in: int, groups: Sequence[Any] | None = None) -> tuple[list[int], list[int]]:
    """Holds out every ``one_in``-th item, of each class alike; returns indices (of the rest, of the part held out).

    Items are shuffled, always in the same way, sorted by class, and then counted off, which gives exact shares even
    where a class has fewer items than ``one_in``.  If a class has only one item, it is not held out.  Both lists are
    shuffled.

    Args:
        labels: the class of each item.
        one_in: one item in so many is held out.
        groups: what each item belongs to, such as the document of a sentence.  Then whole groups are held out, and each
            has the class of its first item.  None if every item is a group of its own.

    Raises:
        ValueError: too few items, or groups, to hold out any.
    """
    apart = range(len(labels)) if groups is None else groups
    _, first, group = np.unique(np.asarray(apart), return_index=True, return_inverse=True)
    if len(first) < one_in:
        what = "items" if groups is None else "groups"
        raise ValueError(f"{len(first)} {what} are too few to hold out one in {one_in}")
    shuffled, items = (_shuffled(count) for count in (len(first), len(labels)))
    classes = np.asarray(labels)[first]
    by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]
    held = np.zeros(len(first), dtype=bool)
    held[by_class[one_in // 2 :: one_in]] = True
    held &= np.bincount(classes)[classes] > 1
    chosen = held[group[items]]
    return items[~chosen].tolist(), items[chosen].tolist()


def _shuffled(count: int) -> np.ndarray:
    return np.random.RandomState(0).permutation(count)  # its numbers are fixed for all versions of numpy


class Sets(NamedTuple):
    """Which part of a data set is for training, and which for evaluation.

    Attributes:
        train: the training set; None if no part has the name of a set.
        evaluation: the evaluation set; None if there is none.
        left_out: the other parts.
    """

    train: str | None
    evaluation: str | None
    left_out: list[str]


def choose_sets(names: Iterable[str], eval_split: str | None, where: str) -> Sets:
    """Finds the training and the evaluation set among folders, files or splits, by their names in upper or lower case.

    Args:
        names: of the parts.
        eval_split: the part to evaluate on, needed if there are several or its name is unusual; None finds it.
        where: what they are parts of, for messages.

    Raises:
        ValueError: the sets are ambiguous, or there is an evaluation set but no training set.

    >>> choose_sets(["Training", "Testing"], None, "flowers")
    Sets(train='Training', evaluation='Testing', left_out=[])
    """
    names = list(names)
    training = [name for name in names if name.casefold() in TRAINING_SETS]
    held = [name for name in names if name.casefold() in EVALUATION_SETS]
    others = [name for name in names if name not in training + held]
    if not training and (held or eval_split is not None):
        asked = "" if eval_split is None else f"; eval_split={eval_split!r} needs a training set beside it"
        raise ValueError(
            f"{where} has no training set, named {' or '.join(TRAINING_SETS)}, only {listed(names)}{asked}"
        )
    if len(training) > 1:
        raise ValueError(f"{where} has several training sets, {' and '.join(training)}; there can be only one")
    if not training:
        return Sets(None, None, [])
    if eval_split is not None:
        chosen = [name for name in held + others if name == eval_split]
        chosen = chosen or [name for name in held + others if name.casefold() == eval_split.casefold()]
        if len(chosen) != 1:
            raise ValueError(f"eval_split={eval_split!r} is not in {where}; valid are {listed(held + others)}")
        return Sets(training[0], chosen[0], [name for name in held + others if name != chosen[0]])
    if len(held) > 1:
        raise ValueError(f"{where} has {' and '.join(held)}; choose one with eval_split")
    if others:
        raise ValueError(
            f"{where} has {listed(training + held)}, but also {listed(others)}, whose names do not say what they are "
            f"for (an evaluation set is named {', '.join(EVALUATION_SETS)}); choose the evaluation set with "
            "eval_split, or move away what is not a set"
        )
    return Sets(training[0], held[0] if held else None, [])


def names_a_set(name: str) -> bool:
    """Whether a folder, file or split of this name is a training or an evaluation set."""
    return name.casefold() in TRAINING_SETS or names_an_evaluation_set(name)


def names_an_evaluation_set(name: str) -> bool:
    """Whether a folder, file or split of this name is an evaluation set."""
    return name.casefold() in EVALUATION_SETS


def listed(names: Sequence[str], between: str = ", ") -> str:
    """Names for a message, at most ten of them, joined by ``between``."""
    more = f"{between}… ({len(names)} in all)" if len(names) > _SHOWN else ""
    return f"{between.join(names[:_SHOWN]) or 'nothing'}{more}"
