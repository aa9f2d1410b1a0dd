"""Finds ill-conditioned heads, and says in words what C or λ would change."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

from conditioned_attention.measure.monitoring.records import HeadRecord

_MATTERS = 0.1  # smallest difference of log10 κ that is counted


def worst_heads(records: Sequence[HeadRecord], count: int) -> list[HeadRecord]:
    """The heads with the largest κ before C; those at the numerical floor come first, the lowest rank first."""
    known = [record for record in records if not math.isnan(record.kappa_before)]
    return sorted(known, key=lambda r: (-r.kappa_before, r.effective_rank_before))[:count]


def change_in_words(what: str, before: Sequence[HeadRecord], after: Callable[[HeadRecord], float]) -> str:
    """Says in one sentence what ``what`` does to κ, from the heads ``before`` and the κ of each ``after`` it.

    >>> from conditioned_attention.measure.monitoring.records import HeadRecord
    >>> heads = [HeadRecord(0, 0, "attn", i, False, 100.0, 10.0, 3.0, 2.0, 0.0, 0.0, 1.5) for i in range(4)]
    >>> change_in_words("C", heads, lambda head: head.kappa_after)
    'C: log10 κ falls by more than 0.1 in 4 of 4 heads and rises by as much in 0; its median 2.00 → 1.00'
    """
    known = [record for record in before if not math.isnan(record.kappa_before)]
    if not known:
        return f"{what}: no head has a κ"
    pairs = [(math.log10(record.kappa_before), math.log10(after(record))) for record in known]
    lower = sum(b < a - _MATTERS for a, b in pairs)
    higher = sum(b > a + _MATTERS for a, b in pairs)
    middle = [median(values) for values in zip(*pairs)]
    words = " → ".join("floor" if math.isinf(value) else f"{value:.2f}" for value in middle)
    falls = f"{what}: log10 κ falls by more than {_MATTERS} in {lower} of {len(known)} heads"
    return f"{falls} and rises by as much in {higher}; its median {words}"
