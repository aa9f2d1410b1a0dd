"""The sentences at the top of a page, which claim no more than the numbers support."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from conditioned_attention.experiments.evidence.comparison import Comparison
from conditioned_attention.experiments.evidence.power import MOST
from conditioned_attention.experiments.evidence.statistics import (
    Spread,
    Summary,
    clock,
    decimals,
    epochs,
    final_score,
    outcome,
    scores,
    times,
)
from conditioned_attention.experiments.report.columns import Heads, common_steps
from conditioned_attention.experiments.report.subjects import Subject
from conditioned_attention.experiments.variants.catalogue import descriptions

LARGE_SCALE = 1e4  # of C, whose limit is 1 / eps = 1e6: a row with such a factor had all but vanished
MANY_AT_FLOOR = 0.25  # share of heads


def short_answer(comparison: Comparison) -> str:
    """Says how many variants were better, worse, or not shown to differ; empty if at most one was compared."""
    rows = comparison.summary()
    found = [outcome(row.difference, comparison.metric) for row in rows[1:]]
    found = [word for word in found if word]
    if len(found) < 2:
        return ""
    better, worse = found.count("better"), found.count("worse")
    seen = _could_have_seen([row for row in rows[1:] if outcome(row.difference, comparison.metric) == "not shown"])
    if not better and not worse:
        return f"No difference to {rows[0].variant} was shown for any of {len(found)} variants{seen}."
    return (
        f"{len(found)} variants compared with {rows[0].variant}, each by its own 95 % interval: {better or 'none'} "
        f"better, {worse or 'none'} worse, {len(found) - better - worse or 'none'} without a difference shown{seen}."
    )


def _could_have_seen(rows: Sequence[Summary]) -> str:
    """Says how large a difference could have been seen, for variants that showed none."""
    sizes = [row.difference.detectable for row in rows if row.difference and not math.isnan(row.difference.detectable)]
    if not sizes:
        return ""
    digits = decimals(rows[0].final.mean)
    smallest, largest = f"{min(sizes):.{digits}f}", f"{max(sizes):.{digits}f}"
    widest = "" if smallest == largest else f", of {largest} where seeds scatter most"
    return f" (one of {smallest} or more could have been seen{widest})"


def seeds_to_show(comparison: Comparison) -> str:
    """Says how many seeds would show the measured differences that were not significant; empty if that is unknown."""
    rows = comparison.summary()[1:]
    left = [row for row in rows if row.difference and outcome(row.difference, comparison.metric) == "not shown"]
    needed = {row.variant: row.difference.pairs_to_show for row in left if row.difference}
    told = [
        f"{f'over {MOST:,}' if math.isinf(n) else f'{n:.0f}'} for {variant}"
        for variant, n in needed.items()
        if not math.isnan(n)
    ]
    if not told:
        return ""
    return f"Seeds that would show a difference as large as the one measured, with probability 80 %: {', '.join(told)}."


def description(subject: Subject, heads: Mapping[str, Sequence[Heads]] | None = None) -> list[str]:
    """Describes the runs of a single variant, for a page on which nothing is compared.

    Args:
        subject: a single run, or a comparison of one variant.
        heads: its condition numbers, if they were read from logs; otherwise those in the evaluations are used.
    """
    comparison = subject.comparison
    sentences = []
    for summary in comparison.summary():
        by_seed = comparison.runs[summary.variant]
        if by_seed:
            sentences.append(_trained(subject, summary))
            sentences.append(_scored(comparison, summary, bool(subject.unfinished)))
            sentences += conditioning(list(by_seed.values()), (heads or {}).get(summary.variant, ()))
        else:
            sentences.append(f"{summary.variant}: no evaluation yet.")
    return [*sentences, "There is only one variant and no comparison, so this does not show whether it helps."]


def _trained(subject: Subject, summary: Summary) -> str:
    by_seed = subject.comparison.runs[summary.variant]
    about = descriptions([summary.variant]).get(summary.variant)
    seeds = f"seed{'s' * (len(by_seed) > 1)} {', '.join(map(str, by_seed))}"
    last = max((history[-1] for history in by_seed.values()), key=lambda row: row.get("step") or 0)
    size = [f"{max(epochs(history)[-1] for history in by_seed.values()):g} epochs"]
    size += [f"{last['step']:,} optimizer steps"] if last.get("step") else []
    settings = subject.comparison.settings
    recipe = f" on {settings['recipe']}" if isinstance(settings, dict) and settings.get("recipe") else ""
    return f"{summary.variant}{f' ({about})' if about else ''}, {seeds}: trained for {', '.join(size)}{recipe}."


def _scored(comparison: Comparison, summary: Summary, under_way: bool) -> str:
    by_seed, name, by = comparison.runs[summary.variant], comparison.metric.name, clock(comparison.runs)
    last = "at the latest evaluation" if under_way else "at the end"
    if len(by_seed) > 1:
        return f"{name[:1].upper()}{name[1:]}: {_spread(summary.final)} {last}, {_spread(summary.best)} at best."
    (history,) = by_seed.values()
    found = [(score, time) for score, time in zip(scores(history), times(history, by)) if not math.isnan(score)]
    if not found:
        return f"{name[:1].upper()}{name[1:]}: no evaluation gave a finite number."
    best, time = (max if comparison.metric.higher_is_better else min)(found, key=lambda pair: pair[0])
    final, digits = final_score(history), decimals(best)
    return f"{name[:1].upper()}{name[1:]}: {final:.{digits}f} {last}, {best:.{digits}f} at best ({by} {time:g})."


def _spread(spread: Spread) -> str:
    digits = decimals(spread.mean)
    return f"{spread.mean:.{digits}f} ± {spread.sd:.{digits}f} (mean ± standard deviation, {spread.n} seeds)"


def conditioning(histories: Sequence[Sequence[Any]], heads: Sequence[Heads]) -> list[str]:
    """A sentence on κ at the first and the last measurement, and on the share of heads at the numerical floor."""
    if heads:  # measured before the first step too
        logs = [[np.log10(h.used[place][~np.isnan(h.used[place])]) for h in heads] for place in (0, -1)]
        first, last = (statistics.median(float(np.median(log)) for log in seeds) for seeds in logs)
        share = statistics.fmean(float(np.isinf(log).mean()) for log in logs[1])
        places = [f"step {heads[0].steps[place]:,.0f}" for place in (0, -1)]
    else:
        measured = [[row for row in history if row.get("floor_share") is not None] for history in histories]
        measured = [rows for rows in measured if rows]
        if not measured:
            return []
        first, last = (statistics.median(_log10_kappa(rows[place]) for rows in measured) for place in (0, -1))
        share = statistics.fmean(rows[-1]["floor_share"] for rows in measured)
        places = [f"epoch {measured[0][place].get('epoch', '?')}" for place in (0, -1)]
    change = [f"{_kappa(value)} at {place}" for value, place in zip((first, last), places)]
    words = ", ".join(change if places[0] != places[1] else change[1:])
    return [f"Median κ of the heads: {words}; then {share:.0%} of the heads were at the numerical floor."]


def _log10_kappa(row: Mapping[str, Any]) -> float:
    found = row.get("log10_kappa")
    return math.inf if found is None else float(found)


def _kappa(log10: float) -> str:
    return "beyond the numerical floor" if math.isinf(log10) else f"{float(f'{10**log10:.3g}'):,.10g}"


def not_drawn(heads: Mapping[str, Sequence[Heads]]) -> list[str]:
    """A sentence that names the variants whose condition numbers are in no chart, if there are any."""
    apart = [variant for variant, runs in heads.items() if not len(common_steps(runs)[0])]
    words = "No κ curve for these, as there is no step at which the heads of all runs were measured: {}."
    return [words.format(", ".join(apart))] if apart else []


def alarms(comparison: Comparison) -> list[str]:
    """Reasons not to take the other numbers at face value, one sentence each."""
    lost, fell, floor, grown = [], [], [], []
    for row in comparison.summary():
        histories = list(comparison.runs[row.variant].values())
        if n := sum(any(math.isnan(score) for score in scores(history)) for history in histories):
            lost.append(f"{row.variant} ({n} of {len(histories)})")
        if n := sum(_fell(scores(history), comparison.metric.higher_is_better) for history in histories):
            fell.append(f"{row.variant} ({n} of {len(histories)})")
        if row.floor_share >= MANY_AT_FLOOR:
            floor.append(f"{row.variant} {row.floor_share:.0%}")
        if row.largest_scale >= LARGE_SCALE:
            grown.append(f"{row.variant} {row.largest_scale:.2g}")
    sentences = (
        ("Runs with scores that are not finite: {}.", lost),
        ("Runs that ended worse than at their first evaluation: {}.", fell),
        ("Heads that ended at the numerical floor, where κ is as good as infinite and means say little: {}.", floor),
        ("C grew so large that rows had all but vanished: {}.", grown),
    )
    return [sentence.format(", ".join(names)) for sentence, names in sentences if names]


def _fell(values: Sequence[float], higher_is_better: bool) -> bool:
    change = values[-1] - values[0]
    return len(values) > 1 and (change < 0 if higher_is_better else change > 0)
