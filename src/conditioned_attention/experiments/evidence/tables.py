"""The tables of a comparison as text: for a terminal, a file, or the cells of a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.evidence.power import MOST
from conditioned_attention.experiments.evidence.statistics import Spread, Summary, decimals, holm_of
from conditioned_attention.experiments.evidence.tuning import Tuning

if TYPE_CHECKING:
    from conditioned_attention.experiments.evidence.blocks import BlockedTest

SCORES = {
    "final": "mean ± standard deviation over seeds of the last score (on the test set, if there is one).",
    "best": "the same of the best score, chosen on the data that it is measured on, so it flatters.",
    "difference [95 %]": "of the final scores, same seeds in pairs, with its 95 % t interval.",
    "reaches baseline": "the first evaluation at which the mean over seeds was as good as the baseline's at its last.",
    "time ×": "of a training step, relative to the baseline, measured afterwards in one process, variants in "
    "turn; in brackets the 20th and 80th percentile of the rounds.",
    "memory ×": "its peak, relative to the baseline.",
}
TESTS = {
    "p (paired t)": "of the paired t test.",
    "p (Holm)": "the same, corrected by Holm for all of its column.",
    "p (blocked)": "of Dunnett's test of all variants at once with seeds as blocks and one spread for all, corrected "
    "for all too, where Bartlett's check lets them have one.",
    "could have seen": "the true difference that as many seeds show with probability 80 %, given their spread, by the "
    "paired t test; an interval that contains zero says nothing of less.",
    "could have seen (blocked)": "the same by the blocked test.",
    "seeds to show it": "how many seeds would show a true difference as large as the one measured, with the same "
    "probability and spread, by the paired t test; of few seeds both are rough.",
}
CONDITIONING = {
    "log10 κ(heads)": "median over heads of log10 of the condition number of head outputs, median over seeds.",
    "floor": "share of heads beyond the limit of the precision that they were measured in, whose κ cannot be "
    "distinguished from infinity.",
    "largest C": "the largest factor on a row (of the baseline: what C would be), of all seeds.",
    "log10 κ(W)": "median over W_Q, W_K and W_V, with corrections, median over seeds.",
    "‖W_V‖ ×": "over that at the start, mean over seeds.",
}


def explained(words: Mapping[str, str], header: Sequence[str]) -> list[tuple[str, str]]:
    """Explanations of the columns in a header; "could have seen (paired)" is explained as "could have seen"."""
    return [(name, text) for name, text in words.items() if any(cell.startswith(name) for cell in header)]


def outcomes_explained(header: Sequence[str]) -> str:
    """A sentence that explains those columns of `outcome_table` that are in a header."""
    names = " ".join(header)
    found = {
        "over the run": "the mean over all evaluations of a run shows which variant learned faster",
        "evaluation loss": "the evaluation loss at the end shows which one is more confident",
        "AP": "AP is average precision",
        "p (blocked)": "p (blocked) is as above, for each number by itself",
    }
    words = [text for part, text in found.items() if part in names]
    begin = "The same runs by other numbers, which still differ where final scores are close to their limit"
    return f"{begin}: {'; '.join(words)}."


def table(summaries: Sequence[Summary], cost: Mapping[str, Any] | None = None) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of scores, as text; with time and memory where the cost was measured."""
    header = ["variant", "seeds", "final", "best", "difference [95 %]", "reaches baseline"]
    header += ["time ×", "memory ×"] if cost else []
    return header, [_row(summary, cost) for summary in summaries]


def difference_table(
    summaries: Sequence[Summary], blocked: BlockedTest | None = None
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of p-values of the differences, and of the differences that could have been seen, as text.

    There are no rows if there is no interval; the blocked test adds columns if it is given.
    """
    corrected = holm_of(summaries)
    rows = []
    for summary in summaries:
        name, difference = summary.variant, summary.difference
        if difference is not None and difference.n > 1:
            p_values, seen = [difference.p_value, corrected.get(name, math.nan)], [difference.detectable]
            if blocked is not None:
                part = blocked.trusted and name in blocked.p_values
                p_values.append(blocked.p_values[name] if part else math.nan)
                seen.append(blocked.detectable if part else math.nan)
            sizes = [_number(size, f".{decimals(summary.final.mean)}f") for size in seen]
            rows.append([name, *map(_probability, p_values), *sizes, _seeds(difference.pairs_to_show)])
    header = ["variant", "p (paired t)", "p (Holm)", "could have seen", "seeds to show it"]
    if blocked is not None:
        header = [*header[:3], "p (blocked)", "could have seen (paired)", "could have seen (blocked)", header[-1]]
    return header, rows


def _seeds(number: float) -> str:
    return f"over {MOST:,}" if math.isinf(number) else _number(number, ".0f")


def _probability(p: float) -> str:
    return "<0.001" if p < 0.001 else _number(p, ".2g")


def conditioning_table(summaries: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what was measured of heads and projections, as text; no rows if nothing was measured."""
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


def without_empty_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """A table without the columns that hold no value in any row.

    >>> without_empty_columns(["variant", "floor", "largest C"], [["baseline", "0%", "-"], ["other", "-", "-"]])
    (['variant', 'floor'], [['baseline', '0%'], ['other', '-']])
    """
    known = [i for i in range(len(header)) if any(row[i] != "-" for row in rows)]
    return [header[i] for i in known], [[row[i] for i in known] for row in rows]


def outcome_table(
    outcomes: Sequence[tuple[Metric, Sequence[Summary], BlockedTest | None]],
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the same runs compared by other numbers, side by side, as text; no rows if there are none.

    Args:
        outcomes: for each number its metric, its rows, and its blocked test if there is one.
    """
    header, columns = ["variant"], [[row.variant for row in outcomes[0][1]] if outcomes else []]
    for metric, rows, blocked in outcomes:
        header += [metric.name, "difference [95 %]"]
        columns += [[_spread(row.final) for row in rows], [_difference(row) for row in rows]]
        if blocked is not None:
            p_values = blocked.p_values if blocked.trusted else {}
            header.append("p (blocked)")
            told = [_probability(p_values.get(row.variant, math.nan)) for row in rows]
            columns.append(["", *told[1:]])
    return header, [list(row) for row in zip(*columns)]


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _row(summary: Summary, cost: Mapping[str, Any] | None) -> list[str]:
    row = [summary.variant, str(summary.final.n), _spread(summary.final), _spread(summary.best)]
    row += [_difference(summary), str(summary.reached)]
    if cost:
        costs = cost["variants"].get(summary.variant)
        row += [_time(costs), f"{costs['memory_ratio']:.3f}"] if costs else ["-", "-"]
    return row


def _difference(summary: Summary) -> str:
    difference, digits = summary.difference, decimals(summary.final.mean)
    if difference is None:
        return ""
    interval = f" [{difference.low:+.{digits}f}, {difference.high:+.{digits}f}]" if difference.n > 1 else ""
    return f"{difference.mean:+.{digits}f}{interval}"


def _spread(spread: Spread) -> str:
    if spread.n == 0:
        return "-"
    digits = decimals(spread.mean)
    return f"{spread.mean:.{digits}f}" if spread.n == 1 else f"{spread.mean:.{digits}f} ± {spread.sd:.{digits}f}"


def _time(costs: Mapping[str, Any]) -> str:
    return f"{costs['time_ratio']:.2f} ({costs['time_p20']:.2f}–{costs['time_p80']:.2f})"


def text_table(
    summaries: Sequence[Summary],
    metric: Metric,
    cost: Mapping[str, Any] | None = None,
    blocked: BlockedTest | None = None,
) -> str:
    """The tables for a terminal or a file, columns aligned by spaces."""
    tables = [table(summaries, cost), difference_table(summaries, blocked), conditioning_table(summaries)]
    return "\n\n".join([f"score: {metric.name}", *(aligned(*found) for found in tables if found[1])])


def aligned(header: list[str], rows: list[list[str]]) -> str:
    """A table with columns aligned by spaces."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in [header, *rows]]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def tuning_table(tuning: Tuning) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the learning rates that were tried for each variant, as text."""
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
