"""Fixed splits: the same for every run, variant and seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

EVALUATION = 5  # one in so many is for evaluation where a data set comes without such a set
EVALUATION_SPLITS = ("val", "validation", "test")  # names that say what a split is for
TUNING = 10  # one in so many training items scores a run that chooses settings, so that the evaluation set stays unseen


def hold_out(labels: Sequence[int], one_in: int) -> tuple[list[int], list[int]]:
    """Indices (of the rest, of the part held out): every ``one_in``-th item, of each class alike.

    Items are shuffled, always in the same way, put in order of their class, and then counted off: exact shares even
    where a class has fewer items than ``one_in``.  The only item of a class stays.  Both lists come shuffled.

    Raises:
        ValueError: too few items to hold out any.
    """
    if len(labels) < one_in:
        raise ValueError(f"{len(labels)} items are too few to hold out one in {one_in}")
    shuffled = np.random.RandomState(0).permutation(len(labels))  # its numbers are fixed for all versions of numpy
    classes = np.asarray(labels)
    by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]
    held = np.zeros(len(labels), dtype=bool)
    held[by_class[one_in // 2 :: one_in]] = True
    held &= np.bincount(classes)[classes] > 1
    return shuffled[~held[shuffled]].tolist(), shuffled[held[shuffled]].tolist()


def choose_eval_split(splits: Sequence[str], wanted: str | None, where: str) -> list[str]:
    """The split to evaluate on, in a list, which is empty if there is none; raises ValueError if it is not clear."""
    if wanted is not None:
        if wanted not in splits:
            raise ValueError(f"eval_split={wanted!r} is not in {where}; valid are {', '.join(splits) or 'none'}")
        return [wanted]
    found = [split for split in splits if split in EVALUATION_SPLITS]
    if len(found) > 1:
        raise ValueError(f"{where} has {' and '.join(found)}; choose one with eval_split")
    return found
