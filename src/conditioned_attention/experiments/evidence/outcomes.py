"""Other numbers by which runs can be compared if final scores are too close to a limit to distinguish runs.

Near 100 % the last few samples decide.  The mean over the run still shows which variant learned faster, and the loss
which is more confident.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.evidence.statistics import History, Summary, finite_or_nan, scores

SATURATED = 5.0  # per cent: a final score closer than this to the limit of a percentage is saturated

Runs = Mapping[str, Mapping[int, History]]


def saturated(rows: list[Summary], metric: Metric) -> bool:
    """Whether the mean final score of any variant is less than 5 points away from the best possible percentage."""
    return metric.limit is not None and any(abs(metric.limit - row.final.mean) < SATURATED for row in rows)


def mean_score(history: History) -> float:
    """The mean over all evaluations of a run; nan if one is not finite, or if there is only one.

    The evaluations are the same for every variant.
    """
    return statistics.fmean(scores(history)) if len(history) > 1 else math.nan


def final_number(name: str) -> Callable[[History], float]:
    """A function that gives a named number of a run's final weights, on its test set if it has one; nan if unknown."""

    def number(history: History) -> float:
        last = history[-1]
        step = last.get("selected_step")
        row = last if step is None else next((row for row in history if row.get("step") == step), {})
        return finite_or_nan(last.get(f"test_{name}", row.get(name)))

    return number


# the other average precisions of detection, by their names in rows; its score is that of boxes over all overlaps
PRECISIONS = {
    "box_ap50": "box AP50 (%)",
    "box_ap75": "box AP75 (%)",
    "mask_ap": "mask AP (%)",
    "mask_ap50": "mask AP50 (%)",
    "mask_ap75": "mask AP75 (%)",
}


def other_outcomes(runs: Runs, metric: Metric) -> list[tuple[Metric, dict[str, dict[int, list[dict[str, Any]]]]]]:
    """The same runs with other scores, as histories of one row each; only outcomes that some run has.

    Returns:
        ``mean … over the run``, with the direction of ``metric``, ``evaluation loss at the end``, and `PRECISIONS`.
    """
    values: dict[Metric, Callable[[History], float]] = {
        Metric(f"mean {metric.name} over the run", metric.higher_is_better): mean_score,
        Metric("evaluation loss at the end", higher_is_better=False): final_number("eval_loss"),
        **{Metric(name): final_number(key) for key, name in PRECISIONS.items()},
    }
    found = []
    for other, value in values.items():
        of = {name: {seed: value(history) for seed, history in by_seed.items()} for name, by_seed in runs.items()}
        finite = {
            name: {seed: [{"score": v}] for seed, v in by_seed.items() if math.isfinite(v)}
            for name, by_seed in of.items()
        }
        if any(finite.values()):
            found.append((other, finite))
    return found
