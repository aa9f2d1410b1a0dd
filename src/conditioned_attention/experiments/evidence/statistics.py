"""Computes the numbers of a table from the curves of paired runs.  Pure functions; nothing is read or written."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from conditioned_attention.choices import Choices
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.evidence.power import detectable, pairs_to_show

History = Sequence[Mapping[str, Any]]
Clock = Literal["epoch", "step"]


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over ``n`` seeds; with one seed the deviation is nan."""

    mean: float
    sd: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if not values:
            return cls(math.nan, math.nan, 0)
        mean = statistics.fmean(values)
        spread = len(values) > 1 and math.isfinite(mean)  # Python's stdev fails where a number is not finite
        return cls(mean, statistics.stdev(values) if spread else math.nan, len(values))


@dataclass(frozen=True)
class Interval:
    """Mean of paired differences with its two-sided 95 % t interval, whose ends are nan for a single pair.

    ``p_value`` is that of the paired t test; nan with fewer than two pairs, or if all differences are the same.
    """

    mean: float
    low: float
    high: float
    n: int
    p_value: float = math.nan

    @property
    def contains_zero(self) -> bool:
        """Whether the interval contains zero; True also with too few pairs for one, since that shows nothing either."""
        return not (self.low > 0 or self.high < 0)

    @property
    def detectable(self) -> float:
        """The true difference that this many pairs with this spread show with probability 0.8; nan without an interval.

        See `conditioned_attention.experiments.evidence.power`.
        """
        from scipy import stats

        if self.n < 2:
            return math.nan
        return detectable((self.high - self.low) / 2, float(stats.t.ppf(0.975, self.n - 1)), self.n - 1)

    @property
    def pairs_to_show(self) -> float:
        """How many pairs with this spread would show a true difference as large as the measured one.

        They show it with probability 0.8.  The number is inf beyond 1,000, and nan without an interval.
        """
        from scipy import stats

        if self.n < 2:
            return math.nan
        error = (self.high - self.low) / 2 / float(stats.t.ppf(0.975, self.n - 1))
        return pairs_to_show(self.mean, error * math.sqrt(self.n))


@dataclass(frozen=True)
class Reached(Choices):
    """When the mean curve of runs reached a score.

    Attributes:
        epoch: the first evaluation at which the mean over the runs was that good; None if it never was.
        n: the number of runs in the mean; 0 if there is no mean curve.
        step: the same in optimizer steps; None if the mean never was that good, or steps were not counted.
        by: which of the two is shown.
    """

    epoch: float | None
    n: int
    step: int | None = None
    by: Clock = "epoch"

    @property
    def time(self) -> float | None:
        """The number that is shown."""
        return self.step if self.by == "step" else self.epoch

    def __str__(self) -> str:
        if self.n == 0:
            return "-"
        if self.time is None:
            return "never"
        return f"step {self.time:,}" if self.by == "step" else f"epoch {self.time:.3g}"


@dataclass(frozen=True)
class Summary:
    """One variant in a table: scores over seeds, and the difference from the baseline over the pairs of seeds.

    Attributes:
        variant: its name.
        final, best: last and best score of each run, over seeds.  The best is chosen on the data it is measured on.
        difference: difference of the final scores, variant minus baseline, same seeds; None for the baseline.
        reached: when the mean over seeds reached the final value of the baseline's mean, over the pairs of seeds
            (figure 2 of arXiv 2603.27153); both on the evaluation set, even if final scores are of a test set.
        log10_kappa: median over seeds of the last median log₁₀ κ over heads; inf at the numerical floor, nan if it
            was not measured.
        floor_share: mean over seeds of the share of heads at the numerical floor; nan if not measured.
        largest_scale: the largest factor by which C, or what replaces it, multiplied a row at the end, over all seeds.
        log10_kappa_weights: median over seeds of the last median log₁₀ κ of W_Q, W_K and W_V with their corrections.
        value_growth: ‖W_V‖ at the end divided by ‖W_V‖ at the start, mean over seeds.
    """

    variant: str
    final: Spread
    best: Spread
    difference: Interval | None
    reached: Reached
    log10_kappa: float
    floor_share: float
    largest_scale: float = math.nan
    log10_kappa_weights: float = math.nan
    value_growth: float = math.nan

    @property
    def measured(self) -> bool:
        """Whether condition numbers were measured."""
        return not math.isnan(self.floor_share)


def paired_interval(differences: Sequence[float]) -> Interval:
    """The 95 % interval of the mean of paired differences, and its p-value, by the t test.

    >>> paired_interval([1.0, 2.0, 3.0])
    Interval(mean=2.0, low=-0.484137..., high=4.484137..., n=3, p_value=0.074179...)
    """
    from scipy import stats

    n = len(differences)
    mean = statistics.fmean(differences) if n else math.nan
    if n < 2:
        return Interval(mean, math.nan, math.nan, n)
    # The spread is only rounding: an accuracy in single precision is off by 1e-5 of a point, and with few test samples
    # three seeds can differ by the same number of samples.  The t test would call such a difference certain.
    if max(differences) - min(differences) <= 1e-4 * abs(mean):
        return Interval(mean, mean, mean, n)
    test = stats.ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(0.95)
    return Interval(mean, float(low), float(high), n, float(test.pvalue))


def epochs(history: History) -> list[float]:
    """The epoch of every row, which may be a fraction; rows without one are counted from 1."""
    found = [finite_or_nan(row.get("epoch")) for row in history]
    return [i + 1 if math.isnan(epoch) else row["epoch"] for i, (row, epoch) in enumerate(zip(history, found))]


def clock(runs: Mapping[str, Mapping[int, History]]) -> Clock:
    """What a comparison tells time in: epochs, or optimizer steps if no run comes to the end of its data.

    A language model sees a small part of its text, and who trains one counts steps.

    >>> clock({"baseline": {0: [{"epoch": 0.01, "step": 100, "score": 5.2}]}})
    'step'
    """
    rows = [row for by_seed in runs.values() for history in by_seed.values() for row in history]
    counted = bool(rows) and all(row.get("step") is not None for row in rows)
    return "step" if counted and all((row.get("epoch") or 0) < 1 for row in rows) else "epoch"


def times(history: History, by: Clock) -> list[float]:
    """When every row of a history was measured, in epochs or in steps."""
    return [row["step"] for row in history] if by == "step" else epochs(history)


def finite_or_nan(value: float | None) -> float:
    """The number for computations: nan if it is not finite, or if it is None, which stands for that in files."""
    return math.nan if value is None or not math.isfinite(value) else float(value)


def scores(history: History) -> list[float]:
    """The score of every row; a score that was not finite is nan."""
    return [finite_or_nan(row["score"]) for row in history]


def final_score(history: History) -> float:
    """The score by which a run is compared: that of the weights it ended with, on its test set if it has one."""
    last = history[-1]
    return finite_or_nan(last.get("test_score", last.get("selected_score", last["score"])))


def last_score(history: History) -> float:
    """The score of the last evaluation, which can be compared with curves even if the final score is of other data."""
    return scores(history)[-1]


def mean_curve(histories: Sequence[History]) -> dict[float, float]:
    """The mean score of several runs by epoch, at the epochs that all of them have; nan where one was not finite."""
    curves = [dict(zip(epochs(history), scores(history))) for history in histories]
    shared = [epoch for epoch in curves[0] if all(epoch in curve for curve in curves)] if curves else []
    return {epoch: statistics.fmean(curve[epoch] for curve in curves) for epoch in shared}


def reached(histories: Sequence[History], goal: float, metric: Metric, by: Clock = "epoch") -> Reached:
    """When the mean over runs was first as good as ``goal``, to be shown in epochs or in steps.

    The mean is used and not each run: a noisy curve passes a score before the curve without its noise does, the earlier
    the more it scatters, while the goal stays the score with which the baseline ended.  Averaging n runs divides the
    noise by √n, which shortens this head start but does not remove it.
    """
    curve = mean_curve(histories)
    gains = {epoch: score - goal if metric.higher_is_better else goal - score for epoch, score in curve.items()}
    first = next((float(epoch) for epoch, gain in gains.items() if gain >= 0), None)
    row = histories[0][epochs(histories[0]).index(first)] if first is not None else {}
    return Reached(first, len(histories) if curve else 0, row.get("step"), by)


def summarise(runs: Mapping[str, Mapping[int, History]], metric: Metric) -> list[Summary]:
    """One `Summary` per variant; the first variant is the baseline.

    Args:
        runs: for every variant the history of each seed: rows with ``"score"``, and ``"epoch"`` and what
            `ConditionMonitor` and `projection_records` measured, if known.
        metric: says whether higher scores are better.
    """
    names = list(runs)
    baseline, by = runs[names[0]], clock(runs)
    return [_summary(name, runs[name], None if name == names[0] else baseline, baseline, metric, by) for name in names]


def _summary(
    name: str,
    by_seed: Mapping[int, History],
    other: Mapping[int, History] | None,
    baseline: Mapping[int, History],
    metric: Metric,
    by: Clock,
) -> Summary:
    best = max if metric.higher_is_better else min
    final = {seed: final_score(history) for seed, history in by_seed.items()}
    goal = {seed: final_score(history) for seed, history in baseline.items()}
    ends = {seed: last_score(history) for seed, history in baseline.items()}
    pairs = [seed for seed in final if seed in goal]
    measured = [
        [row for row in history if row.get("floor_share") is not None][-1]
        for history in by_seed.values()
        if any(row.get("floor_share") is not None for row in history)
    ]
    differences = [final[seed] - goal[seed] for seed in pairs]
    finite = [[score for score in scores(history) if not math.isnan(score)] for history in by_seed.values()]

    def last(key: str, over_seeds: Callable[[list[float]], float]) -> float:
        values = [math.inf if row[key] is None else float(row[key]) for row in measured if key in row]
        return over_seeds(values) if values else math.nan

    return Summary(
        variant=name,
        final=Spread.of(list(final.values())),
        best=Spread.of([best(values) for values in finite if values]),
        difference=None if other is None else paired_interval(differences),
        reached=reached([by_seed[seed] for seed in pairs], Spread.of([ends[seed] for seed in pairs]).mean, metric, by),
        log10_kappa=last("log10_kappa", statistics.median),
        floor_share=last("floor_share", statistics.fmean),
        largest_scale=last("largest_scale", max),
        log10_kappa_weights=last("log10_kappa_weights", statistics.median),
        value_growth=last("value_growth", statistics.fmean),
    )


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction for multiple comparisons: p-values that can all be compared with the same level.

    >>> {name: round(p, 3) for name, p in holm({"a": 0.01, "b": 0.04, "c": 0.03}).items()}
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    adjusted: dict[str, float] = {}
    largest = 0.0
    for i, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - i) * p))
        adjusted[name] = largest
    return adjusted


def holm_of(rows: Sequence[Summary]) -> dict[str, float]:
    """The p-values of the paired t tests after Holm's correction, by variant, the smallest first."""
    p_values = {row.variant: row.difference.p_value for row in rows if row.difference is not None}
    return holm({name: p for name, p in p_values.items() if not math.isnan(p)})


def many_compared(rows: Sequence[Summary]) -> str:
    """Says which differences are left after correction for the number of comparisons; empty for fewer than two."""
    adjusted = holm_of(rows)
    if len(adjusted) < 2:
        return ""
    left = [f"{name} (p = {p:.2g})" for name, p in adjusted.items() if p < 0.05]
    return (
        f"{len(adjusted)} variants were compared with {rows[0].variant}: the probability that at least one interval "
        f"excludes zero by chance is up to {1 - 0.95 ** len(adjusted):.0%}. After Holm's correction "
        + (f"these still differ significantly: {', '.join(left)}." if left else "none of them differs significantly.")
    )


def decimals(size: float) -> int:
    """How many decimals a number of this size is printed with: four significant digits, two decimals at least."""
    return 2 if size == 0 or not math.isfinite(size) else min(8, max(2, 3 - math.floor(math.log10(abs(size)))))


def outcome(difference: Interval | None, metric: Metric) -> str:
    """Says whether a variant is better or worse than the baseline, as far as the interval shows it.

    ``"better"`` or ``"worse"`` if the interval excludes zero, ``"not shown"`` if it does not, ``""`` if there is
    nothing to compare.
    """
    if difference is None or difference.n == 0:
        return ""
    if difference.contains_zero or difference.low == difference.high:
        return "not shown"
    return "better" if (difference.mean > 0) == metric.higher_is_better else "worse"


def verdict(summary: Summary, baseline: str, metric: Metric) -> str:
    """One sentence on a variant, which claims no more than the interval supports."""
    difference, digits = summary.difference, decimals(summary.final.mean)

    def number(value: float) -> str:
        return f"{value:+.{digits}f}"

    if difference is None or difference.n == 0:
        return f"{summary.variant}: no finished pair of runs to compare."
    if math.isnan(difference.mean):
        return f"{summary.variant}: a final score of it or of {baseline} is not finite, so no difference was shown."
    if difference.n == 1:
        return (
            f"{summary.variant}: {number(difference.mean)} against {baseline} on one seed. "
            "One pair says nothing about the spread, so no difference was shown."
        )
    if difference.low == difference.high:
        if difference.mean == 0:
            return f"{summary.variant}: the same score as {baseline} on each of {difference.n} seeds."
        return (
            f"{summary.variant}: {number(difference.mean)} against {baseline} on each of {difference.n} seeds. "
            "Differences that are all the same have no measurable spread, so no difference was shown."
        )
    interval = f"{number(difference.low)} to {number(difference.high)}"
    if difference.contains_zero:
        return (
            f"{summary.variant}: no difference to {baseline} was seen; these {difference.n} seeds could have seen a "
            f"difference of {number(difference.detectable)[1:]} or more (with probability 80 %). The 95 % interval of "
            f"the paired difference in {metric.name}, {interval}, contains zero."
        )
    return (
        f"{summary.variant}: {outcome(difference, metric)} than {baseline} by {number(abs(difference.mean))[1:]} "
        f"in {metric.name} (95 % interval {interval}, {difference.n} seeds), at these settings and no others."
    )
