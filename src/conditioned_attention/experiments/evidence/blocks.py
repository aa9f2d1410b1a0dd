"""Tests all variants against the baseline at once, with seeds as blocks and a spread from all runs, not one per pair.

A paired t test of five seeds estimates its spread with four degrees of freedom.  If all variants scatter alike, the
residuals of k variants on n seeds have (k − 1)(n − 1), and far smaller differences can be significant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.evidence.power import detectable, measured_spreads

LEVEL = 0.05
_FEWEST = 3  # variants, including the baseline, that give a spread of more than one pair

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class BlockedTest:
    """Dunnett's test of many variants against one baseline in randomised blocks.

    Attributes:
        baseline: its name.
        differences: mean of each variant's scores minus the baseline's.
        p_values: the p-value of each difference, corrected for the number of differences.
        half_width: half the width of the simultaneous 95 % interval, the same for all differences.
        critical: the critical value: the half width in standard errors of a difference.
        seeds: the number of blocks.
        df: degrees of freedom of the residuals, (k − 1)(n − 1).
        unequal: p-value of Bartlett's check that all scatter alike.
        left_out: why each other variant was left out of the test.
    """

    baseline: str
    differences: dict[str, float]
    p_values: dict[str, float]
    half_width: float
    critical: float
    seeds: int
    df: int
    unequal: float
    left_out: dict[str, str]

    @property
    def trusted(self) -> bool:
        """Whether Bartlett's check passes; otherwise one spread for all is wrong, and only the paired t tests count."""
        return self.unequal >= LEVEL

    @property
    def detectable(self) -> float:
        """The true difference that this test shows with probability 0.8."""
        return detectable(self.half_width, self.critical, self.df)

    def sentences(self, metric: Metric, digits: int) -> list[str]:
        """The result of the test in sentences, or that it cannot be trusted, if Bartlett's check fails.

        Args:
            metric: says whether higher scores are better.
            digits: decimals of a score.
        """
        if not self.trusted:
            return [
                f"The scores of the variants do not scatter alike (Bartlett's check on {self.seeds} seeds, "
                f"p = {self.unequal:.2g}), so a common spread cannot be assumed and only the paired t tests apply."
            ]
        found: dict[str, list[str]] = {"better": [], "worse": []}
        for name, p in self.p_values.items():
            if p < LEVEL:
                d, chance = self.differences[name], "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
                word = "better" if (d > 0) == metric.higher_is_better else "worse"
                found[word].append(f"{name} ({d:+.{digits}f}, {chance})")
        lists = "; ".join(f"{word}: {', '.join(names)}" for word, names in found.items() if names)
        count, n = sum(map(len, found.values())), len(self.p_values)
        shown = f"{count} of {n} variants differ significantly from {self.baseline}; {lists}"
        none = f"none of {n} variants differs significantly from {self.baseline}"
        told = [
            f"All at once, with the {self.seeds} seeds as blocks (Dunnett's test, {self.df} degrees of freedom), "
            f"{shown if count else none}. It could have seen a difference of {self.detectable:.{digits}f} or more "
            "(with probability 80 %)."
        ]
        if self.left_out:
            reasons = "; ".join(f"{name} {why}" for name, why in self.left_out.items())
            told.append(f"Left out of that test, so that their paired t tests stand alone: {reasons}.")
        return told

    def to_json(self) -> dict[str, Any]:
        """Plain data, including the properties that follow from it."""
        return {**asdict(self), "trusted": self.trusted, "detectable": self.detectable}


def blocked_test(scores: Mapping[str, Mapping[int, float]]) -> BlockedTest | None:
    """Tests every variant against the first, with seeds as blocks; None without two seeds, two variants and a spread.

    The model is y_ij = seed i + variant j + residual, a randomised block design, with the test of Dunnett (*JASA* 50,
    1955).  The residuals' mean square s² has (k − 1)(n − 1) degrees of freedom, and a difference of two means has the
    standard error s √(2 / n).  Variants that lack one of the baseline's seeds, or have a score that is not finite, are
    left out.  As long as Bartlett's check finds that the residuals do not scatter alike, the variant without which they
    are most alike is left out too: one that fails, such as λ = 10, would blur all others.  Spreads are independent of
    means, so this favours no outcome.  If the odd one is the baseline, or if the last three do not scatter alike, the
    test is not `trusted`.

    Args:
        scores: the scores of every variant (the baseline first), by seed.

    >>> noise = [0.3, -0.2, 0.1, -0.4, 0.2]
    >>> scores = {f"v{i}": {s: 90 + s + i * (1 + noise[(s + i) % 5]) for s in range(5)} for i in range(4)}
    >>> test = blocked_test(scores)
    >>> test.df, {name: f"{d:+.2f}" for name, d in test.differences.items()}
    (12, {'v1': '+1.00', 'v2': '+2.00', 'v3': '+3.00'})
    """
    first = next(iter(scores))
    seeds = [seed for seed, score in scores[first].items() if math.isfinite(score)]
    names = [name for name, of in scores.items() if all(math.isfinite(of.get(seed, math.nan)) for seed in seeds)]
    left_out = dict.fromkeys((name for name in scores if name not in names), "lacks a seed or a finite score")
    y = np.array([[scores[name][seed] for name in names] for seed in seeds])
    if min(y.shape, default=0) < 2 or not _residuals(y).any():
        return None
    odd = _odd_ones(y)
    left_out |= {names[i]: "scatters unlike the others" for i in odd}
    kept = [i for i in range(len(names)) if i not in odd]
    return _dunnett([names[i] for i in kept], y[:, kept], left_out)


def _dunnett(names: Sequence[str], y: Numbers, left_out: dict[str, str]) -> BlockedTest:
    n, k = y.shape
    df, residuals = (n - 1) * (k - 1), _residuals(y)
    error = float(np.sqrt((residuals**2).sum() / df) * np.sqrt(2 / n))
    differences = dict(zip(names[1:], (y.mean(0)[1:] - y[:, 0].mean()).tolist()))
    critical = critical_value(k - 1, df)
    return BlockedTest(
        baseline=names[0],
        differences=differences,
        p_values={name: _beyond(abs(d) / error, k - 1, df) for name, d in differences.items()},
        half_width=critical * error,
        critical=critical,
        seeds=n,
        df=df,
        unequal=_unequal(y),
        left_out=left_out,
    )


def _residuals(y: Numbers) -> Numbers:
    """What neither seed (row) nor variant (column) explains; rounding errors are set to zero."""
    found = y - y.mean(0) - y.mean(1, keepdims=True) + y.mean()
    return np.where(np.abs(found) <= 1e-9 * np.abs(y).max(), 0.0, found)


def _unequal(y: Numbers) -> float:
    """The p-value of Bartlett's check on residuals; those of few variants correlate, so it rejects too seldom."""
    from scipy import stats

    spreads = _residuals(y)
    if not spreads.any(axis=0).all():
        return 0.0  # one that does not scatter at all
    return float(stats.bartlett(*spreads.T).pvalue)


def _odd_ones(y: Numbers) -> list[int]:
    """Columns to leave out so that Bartlett's check passes, chosen one at a time; never the first."""
    kept = list(range(y.shape[1]))
    while len(kept) > _FEWEST and _unequal(y[:, kept]) < LEVEL:
        odd = max(kept, key=lambda i: _unequal(y[:, [j for j in kept if j != i]]))
        if odd == 0:
            break
        kept.remove(odd)
    return [i for i in range(y.shape[1]) if i not in kept]


@cache
def critical_value(variants: int, df: int) -> float:
    """Dunnett's two-sided critical value at 5 %, for one baseline and this many variants with equally many runs.

    >>> round(critical_value(2, 10), 2)  # Dunnett, Biometrics 20, 1964
    2.57
    """
    from scipy import optimize, stats

    alone = stats.t.ppf(1 - LEVEL / 2, df)
    all_alone = stats.t.ppf(1 - LEVEL / 2 / variants, df)  # Bonferroni's, which is never lower
    return float(optimize.brentq(lambda d: _beyond(d, variants, df) - LEVEL, alone - 1e-3, all_alone + 1e-3))


@cache
def _beyond(size: float, variants: int, df: int) -> float:
    """The probability that chance alone brings any of the differences beyond ``size`` standard errors.

    With equal numbers of runs, differences from one baseline have correlation 1/2: they share its mean z.  Given z and
    the measured spread s they are independent, so that with k variants

        P(none beyond) = E_s E_z [Φ(z + √2 size s) − Φ(z − √2 size s)]^k,

    which is what Dunnett tabulated.  ``scipy.stats.dunnett`` does not support blocks, which have fewer degrees of
    freedom; ``scipy.stats.multivariate_t`` with that correlation gives the same to three digits, from random points.
    """
    from scipy import special

    (z, of_z), (s, of_s) = _means(), measured_spreads(df)
    reach = math.sqrt(2) * size * s[:, None]
    none = of_s @ (special.ndtr(z + reach) - special.ndtr(z - reach)) ** variants @ of_z
    return min(1.0, max(0.0, 1.0 - float(none)))


@cache
def _means() -> tuple[Numbers, Numbers]:
    """Points and weights for the expectation over a standard normal mean."""
    points, weights = np.polynomial.hermite_e.hermegauss(60)
    return points, weights / weights.sum()
