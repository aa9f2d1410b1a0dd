"""Means over the tasks of GLUE, of eight numbers and of nine, seed by seed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from conditioned_attention.experiments.evidence.comparison import Comparison
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.evidence.outcomes import final_number
from conditioned_attention.experiments.evidence.statistics import History, final_score

TASKS = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")
OF_EIGHT = Metric("GLUE, mean of eight tasks, MNLI matched")
OF_NINE = Metric("GLUE, mean of nine numbers, MNLI matched and mismatched")


def glue_means(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Combines the comparisons of all eight tasks of the recipe ``glue`` into comparisons by the mean over the tasks.

    There are two: by the mean of eight numbers, as in table 5 of arXiv 2603.27153, and by the mean of nine, with both
    development sets of MNLI, as JonasGeiping/cramming prints it.  They include a variant's run with a seed if it has
    ended on every task; its history is one row.  The list is empty if a task is missing or occurs twice.

    Args:
        comparisons: of any recipes; those of other recipes are ignored.
    """
    found = [one for one in comparisons if isinstance(one.settings, Mapping) and one.settings.get("recipe") == "glue"]
    tasks = {one.settings["glue_task"]: one for one in found}
    if set(tasks) != set(TASKS) or len(found) != len(TASKS):
        return []
    shared = list(dict.fromkeys(name for one in found for name in one.runs))
    settings = {"recipe": "glue", "tasks": list(TASKS)}
    means = []
    for metric, numbers in ((OF_EIGHT, _eight), (OF_NINE, _nine)):
        runs = {name: _means({task: one.runs.get(name, {}) for task, one in tasks.items()}, numbers) for name in shared}
        means.append(Comparison({name: rows for name, rows in runs.items() if rows}, metric, settings=settings))
    return [mean for mean in means if mean.runs]


def _means(
    by_task: Mapping[str, Mapping[int, History]], numbers: Callable[..., list[float]]
) -> dict[int, list[dict[str, Any]]]:
    """A history of one row for each seed that every task has."""
    seeds = sorted(set.intersection(*(set(runs) for runs in by_task.values())))
    return {
        seed: [{"score": statistics.fmean(numbers({task: runs[seed] for task, runs in by_task.items()}))}]
        for seed in seeds
    }


def _eight(histories: Mapping[str, History]) -> list[float]:
    return [final_score(history) for history in histories.values()]


def _nine(histories: Mapping[str, History]) -> list[float]:
    return [*_eight(histories), final_number("mismatched")(histories["mnli"])]
