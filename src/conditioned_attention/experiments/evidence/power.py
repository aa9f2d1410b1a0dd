"""What a comparison could have seen: without it "no difference was seen" says nothing."""

from __future__ import annotations

import math
from functools import cache

POWER = 0.8  # the probability with which a difference is called seen; Cohen's convention


def detectable(half_width: float, critical: float, df: float) -> float:
    """The true difference that a two-sided test finds with probability 0.8, given the spread that the runs had.

    The statistic of a difference δ with standard error e has the noncentral t distribution with noncentrality δ / e;
    a difference is found where it is beyond the critical value c: P(|T| > c) = 0.8 gives δ / e.  The spread is the one
    measured, and so the answer is as rough as that is: of three seeds it is easily half or twice the true one.

    Args:
        half_width: of the confidence interval, c · e, in the unit of the score.
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


@cache
def _noncentrality(critical: float, df: float) -> float:
    """δ / e.  The expectation over the measured spread, because scipy's ``nct`` is nan in far tails."""
    from scipy import optimize, special, stats

    measured = stats.chi(df, scale=1 / math.sqrt(df))  # of a standard error over the true one

    def excess(ncp: float) -> float:
        found = measured.expect(lambda s: special.ndtr(ncp - critical * s) + special.ndtr(-ncp - critical * s))
        return float(found) - POWER

    return float(optimize.brentq(excess, 0.0, 4 * critical + 4))
