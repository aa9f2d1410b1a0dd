"""Curves for a screen: mean and extremes over seeds, thinned so that no extreme is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import ArrayLike

from conditioned_attention.experiments.report.columns import Numbers

POINTS = 300  # of a curve on a screen

Curve = tuple[ArrayLike, ArrayLike]  # x and y


@dataclass(frozen=True)
class Band:
    """A line in a band: what is drawn of several curves."""

    x: Numbers
    mean: Numbers
    low: Numbers
    high: Numbers


def thin(x: ArrayLike, y: ArrayLike, points: int = POINTS) -> tuple[Numbers, Numbers]:
    """At most ``points`` points: of every stretch of the curve its lowest and its highest, and both ends.

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
    """At most ``points`` points: each is the mean of a stretch, from its lowest low to its highest high."""
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


def band_over_seeds(curves: Sequence[Curve]) -> Band:
    """Mean, lowest and highest of several curves (x, y) at the places that all have.

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
    return Band(places, np.mean(values, 0), np.min(values, 0), np.max(values, 0))
