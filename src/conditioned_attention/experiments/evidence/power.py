"""The differences that a comparison could have seen; without them "no difference was seen" says nothing."""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import cache
from typing import Any

POWER = 0.8  # the probability with which a difference is called seen; Cohen's convention
MOST = 1000  # the largest number of pairs that is tried


def detectable(half_width: float, critical: float, df: float) -> float:
    """The true difference that a two-sided test finds with probability 0.8, given the spread of the runs.

    The statistic of a difference δ with standard error e has the noncentral t distribution with noncentrality δ / e;
    a difference is found if the statistic is beyond the critical value c: P(|T| > c) = 0.8 gives δ / e.  The spread is
    the measured one, so the result is just as rough: with three seeds it is easily half or twice the true one.

    Args:
        half_width: half the width of the confidence interval, c · e, in the unit of the score.
        critical: c, in standard errors.
        df: degrees of freedom of the standard error.

    Returns:
        δ in the unit of the score; nan where the interval has no width.

    >>> from scipy import stats
    >>> c = float(stats.t.ppf(0.975, 33))  # 34 pairs, standard deviation 1
    >>> round(detectable(c / 34**0.5, c, 33), 3)
    0.495
    """
    if not (half_width > 0 and math.isfinite(half_width)):
        return math.nan
    return half_width * _noncentrality(critical, df) / critical


def pairs_to_show(difference: float, sd: float) -> float:
    """How many pairs the paired t test needs to find a true difference with probability 0.8.

    Args:
        difference: the true one, in the unit of the score.
        sd: standard deviation of the differences of pairs, in the same unit.

    Returns:
        A whole number, at least 2; inf if it is beyond 1,000; nan if the deviation is zero or not finite.

    >>> pairs_to_show(0.5, 1.0), pairs_to_show(0.01, 1.0)
    (34, inf)
    """
    from scipy import stats

    if not (sd > 0 and math.isfinite(sd) and math.isfinite(difference)):
        return math.nan

    def shows(n: int) -> bool:
        critical = float(stats.t.ppf(0.975, n - 1))
        return detectable(critical * sd / math.sqrt(n), critical, n - 1) <= abs(difference)

    counts = range(2, MOST + 1)
    place = bisect_left(counts, True, key=shows)
    return counts[place] if place < len(counts) else math.inf


@cache
def measured_spreads(df: float) -> tuple[Any, Any]:
    """Points and weights for the expectation over a measured standard error, in units of the true one.

    There are so many of them that the integral is accurate to 12 digits even for one degree of freedom.
    """
    import numpy as np
    from scipy import stats

    measured = stats.chi(df, scale=1 / math.sqrt(df))
    low, high = measured.ppf(1e-13), measured.isf(1e-13)
    points, weights = np.polynomial.legendre.leggauss(400)
    s = low + (high - low) * (points + 1) / 2
    return s, weights * measured.pdf(s) * (high - low) / 2


@cache
def _noncentrality(critical: float, df: float) -> float:
    """δ / e, by an expectation over the measured spread, because scipy's ``nct`` is nan in far tails."""
    from scipy import optimize, special

    s, weights = measured_spreads(df)

    def excess(ncp: float) -> float:
        return float(weights @ (special.ndtr(ncp - critical * s) + special.ndtr(-ncp - critical * s))) - POWER

    return float(optimize.brentq(excess, 0.0, 4 * critical + 4))
