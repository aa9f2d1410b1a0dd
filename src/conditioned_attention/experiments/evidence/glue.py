"""The mean over the tasks of GLUE, of eight numbers and of nine, seed by seed."""

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
    """Comparisons by the mean over the tasks, of what all eight comparisons of the recipe ``glue`` have.

    Two: by the mean of eight numbers, as in table 5 of arXiv 2603.27153, and by that of nine, with both development
    sets of MNLI, as JonasGeiping/cramming prints it.  A variant's run with a seed is there if it has ended on every
    task; its history is one row.  Nothing where a task is missing, or there twice.

    Args:
        comparisons: of any recipes; the others are passed by.
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
    """One row for each seed that every task has."""
    seeds = sorted(set.intersection(*(set(runs) for runs in by_task.values())))
    return {
        seed: [{"score": statistics.fmean(numbers({task: runs[seed] for task, runs in by_task.items()}))}]
        for seed in seeds
    }


def _eight(histories: Mapping[str, History]) -> list[float]:
    return [final_score(history) for history in histories.values()]


def _nine(histories: Mapping[str, History]) -> list[float]:
    return [*_eight(histories), final_number("mismatched")(histories["mnli"])]
