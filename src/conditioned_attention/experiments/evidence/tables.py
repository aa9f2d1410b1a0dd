"""The tables of a comparison as text: for a terminal, a file, or the cells of a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.evidence.statistics import Spread, Summary, decimals, holm_of
from conditioned_attention.experiments.evidence.tuning import Tuning

SCORES = (
    "final and best: mean ± standard deviation over seeds of the last and of the best score (the best is chosen on the "
    "data it is measured on, so it flatters)."
)
DIFFERENCES = (
    "difference: of the final scores, same seeds in pairs, with its 95 % t interval. reaches baseline: the first "
    "evaluation at which the mean over seeds was as good as the baseline's mean final score. time and memory: of a "
    "training step, relative to the baseline, measured afterwards in one process, variants taking turns; in brackets "
    "the 20th and 80th percentile of the rounds."
)
TESTS = (
    "p: of the paired t test, alone and by Holm's correction for all of its column. could have seen: the true "
    "difference that as many seeds show with probability 80 %, given their spread; an interval that contains zero says "
    "nothing of smaller ones."
)
CONDITIONING = (
    "At the end of training. κ(heads): median over heads of log10 of the condition number of head outputs, median over "
    "seeds; floor: share of heads whose κ is not told from infinity in float32. largest C: the largest factor on a row "
    "(of the baseline: what C would be). κ(W): median over W_Q, W_K and W_V, corrections included. ‖W_V‖ ×: over that "
    "at the start, mean over seeds."
)


def table(summaries: Sequence[Summary], cost: Mapping[str, Any] | None = None) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of scores, as text; with time and memory where the cost was measured."""
    header = ["variant", "seeds", "final", "best", "difference [95 %]", "reaches baseline"]
    header += ["time ×", "memory ×"] if cost else []
    return header, [_row(summary, cost) for summary in summaries]


def difference_table(summaries: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of how sure each difference is, and how large one had to be to be seen, as text.

    No rows if there is no interval.
    """
    corrected = holm_of(summaries)
    rows = []
    for summary in summaries:
        if summary.difference is not None and summary.difference.n > 1:
            seen = _number(summary.difference.detectable, f".{decimals(summary.final.mean)}f")
            p_values = [summary.difference.p_value, corrected.get(summary.variant, math.nan)]
            rows.append([summary.variant, *map(_probability, p_values), seen])
    return ["variant", "p (paired t)", "p (Holm)", "could have seen"], rows


def _probability(p: float) -> str:
    return "<0.001" if p < 0.001 else _number(p, ".2g")


def conditioning_table(summaries: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what was measured of heads and projections, as text; no rows if nothing was."""
    header = ["variant", "log10 κ(heads)", "floor", "largest C", "log10 κ(W)", "‖W_V‖ ×"]
    rows = [
        [
            summary.variant,
            _number(summary.log10_kappa, ".2f"),
            _number(summary.floor_share, ".0%"),
            _number(summary.largest_scale, ".3g"),
            _number(summary.log10_kappa_weights, ".2f"),
            _number(summary.value_growth, ".2f"),
        ]
        for summary in summaries
        if summary.measured
    ]
    return header, rows


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _row(summary: Summary, cost: Mapping[str, Any] | None) -> list[str]:
    digits = decimals(summary.final.mean)
    difference = "" if summary.difference is None else f"{summary.difference.mean:+.{digits}f}"
    if summary.difference is not None and summary.difference.n > 1:
        difference += f" [{summary.difference.low:+.{digits}f}, {summary.difference.high:+.{digits}f}]"
    row = [summary.variant, str(summary.final.n), _spread(summary.final), _spread(summary.best)]
    row += [difference, str(summary.reached)]
    if cost:
        costs = cost["variants"].get(summary.variant)
        row += [_time(costs), f"{costs['memory_ratio']:.3f}"] if costs else ["-", "-"]
    return row


def _spread(spread: Spread) -> str:
    if spread.n == 0:
        return "-"
    digits = decimals(spread.mean)
    return f"{spread.mean:.{digits}f}" if spread.n == 1 else f"{spread.mean:.{digits}f} ± {spread.sd:.{digits}f}"


def _time(costs: Mapping[str, Any]) -> str:
    return f"{costs['time_ratio']:.2f} ({costs['time_p20']:.2f}–{costs['time_p80']:.2f})"


def text_table(summaries: Sequence[Summary], metric: Metric, cost: Mapping[str, Any] | None = None) -> str:
    """The tables for a terminal or a file, columns aligned by spaces."""
    tables = [table(summaries, cost), difference_table(summaries), conditioning_table(summaries)]
    return "\n\n".join([f"score: {metric.name}", *(_aligned(*found) for found in tables if found[1])])


def _aligned(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in [header, *rows]]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def tuning_table(tuning: Tuning) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what was tried for each variant, as text."""
    header = ["variant", "learning rate", "runs", f"validation {tuning.metric.name}", "chosen"]
    rows = []
    for variant, trials in tuning.trials.items():
        for lr, trial in trials.items():
            score = _spread(Spread.of(list(trial.scores.values())))
            if trial.failures:
                score = f"{len(trial.failures)} failed: {next(iter(trial.failures.values()))}"
            runs = len(trial.scores) + len(trial.failures)
            rows.append([variant, f"{lr:g}", str(runs), score, "chosen" if lr == tuning.chosen(variant) else ""])
    return header, rows
