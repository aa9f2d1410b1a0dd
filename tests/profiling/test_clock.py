"""Turns and ratios, on clocks that are made up."""

import itertools
from collections import Counter

import pytest

from conditioned_attention.profiling.clock import interleave, paired_ratio, turn_order


@pytest.mark.parametrize("n", [2, 4, 6, 8])
def test_everyone_stands_everywhere_and_follows_everyone(n):
    orders = [turn_order(turn, n) for turn in range(n)]
    assert all(sorted(order) == list(range(n)) for order in orders)
    assert all(len(set(place)) == n for place in zip(*orders))
    follows = Counter(pair for order in orders for pair in itertools.pairwise(order))
    assert set(follows.values()) == {1}
    assert len(follows) == n * (n - 1)


def test_a_machine_that_slows_down_slows_everyone():
    """Each call takes longer than the one before; the ratios stay near what they are."""
    clock = itertools.count(100)
    samples = [lambda: float(next(clock)), lambda: 2.0 * next(clock)]
    times = interleave(samples, rounds=20, warmup=2)
    assert [len(t) for t in times] == [20, 20]
    assert times[0][0] >= 104  # the warm-up does not count
    ratio = paired_ratio(times[1], times[0])
    assert ratio.median == pytest.approx(2, rel=0.01)
    assert ratio.p20 <= ratio.median <= ratio.p80
