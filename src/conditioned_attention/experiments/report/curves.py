"""Curves for a screen: mean and extremes over seeds, thinned so that no extreme is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from conditioned_attention.experiments.report.columns import Numbers

POINTS = 300  # of a curve on a screen

Curve = tuple[ArrayLike, ArrayLike]  # x and y
Curves = Mapping[str, Mapping[int, Curve]]  # of every variant and seed


@dataclass(frozen=True)
class Band:
    """A line in a band, by which several curves are drawn."""

    x: Numbers
    mean: Numbers
    low: Numbers
    high: Numbers


def thin(x: ArrayLike, y: ArrayLike, points: int = POINTS) -> tuple[Numbers, Numbers]:
    """Thins a curve to at most ``points`` points: the lowest and the highest of every stretch, and both ends.

    >>> x, y = thin(range(1000), [0.0] * 500 + [7.0] + [0.0] * 499, points=10)
    >>> len(x) <= 10, float(y.max()), int(x[y.argmax()]), int(x[-1])
    (True, 7.0, 500, 999)
    """
    xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(xs) <= points:
        return xs, ys
    kept = {0, len(xs) - 1}
    for stretch in np.array_split(np.arange(len(xs)), points // 2 - 1):
        finite = stretch[np.isfinite(ys[stretch])]
        if len(finite):
            kept |= {int(finite[ys[finite].argmin()]), int(finite[ys[finite].argmax()])}
    places = sorted(kept)
    return xs[places], ys[places]


def thin_band(band: Band, points: int = POINTS) -> Band:
    """Thins a band to at most ``points`` points, each with the mean, lowest low and highest high of a stretch."""
    n = len(band.x)
    if n <= points:
        return band
    starts = np.linspace(0, n, points, endpoint=False).astype(int)
    count = np.diff([*starts, n])
    return Band(
        np.add.reduceat(band.x, starts) / count,
        np.add.reduceat(band.mean, starts) / count,
        np.minimum.reduceat(band.low, starts),
        np.maximum.reduceat(band.high, starts),
    )


def band_over_seeds(curves: Sequence[Curve], middle: Callable[..., Any] = np.mean) -> Band:
    """The mean, lowest and highest of several curves (x, y), at the x values that all of them have.

    ``middle`` can replace the mean: `numpy.median`, or `numpy.max` for a line along the top of the band.

    >>> band_over_seeds([([1, 2], [2.0, 3.0]), ([1], [4.0])])
    Band(x=array([1.]), mean=array([3.]), low=array([2.]), high=array([4.]))
    """
    if not curves:
        return Band(*(np.empty(0) for _ in range(4)))
    places = np.unique(reduce(np.intersect1d, [np.asarray(x, np.float64) for x, _ in curves]))
    values = []
    for x, y in curves:
        xs, first = np.unique(x, return_index=True)
        values.append(np.asarray(y, np.float64)[first][np.searchsorted(xs, places)])
    return Band(places, middle(values, axis=0), np.min(values, 0), np.max(values, 0))


def last_third(curves: Curves) -> Curves:
    """Cuts curves to the last third of all x if a curve has settled there; empty if every curve still moves.

    A curve has settled if its range there is less than a quarter of its whole range.

    >>> y = [0.0, 6.0, 9.0, 9.1, 9.2, 9.3, 9.4]
    >>> last_third({"baseline": {0: (range(7), y)}})["baseline"][0][1]
    array([9.2, 9.3, 9.4])
    """
    ends = [(np.min(x), np.max(x)) for by_seed in curves.values() for x, _ in by_seed.values()]
    if not ends:
        return {}
    begin, end = min(low for low, _ in ends), max(high for _, high in ends)
    cut: dict[str, dict[int, Curve]] = {}
    settled = False
    for variant, by_seed in curves.items():
        for seed, (x, y) in by_seed.items():
            xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
            kept = xs >= begin + (end - begin) * 2 / 3
            cut.setdefault(variant, {})[seed] = (xs[kept], ys[kept])
            settled |= kept.sum() > 2 and bool(4 * np.ptp(ys[kept]) < np.ptp(ys))
    return cut if settled else {}
