"""What a comparison is when its runs have finished, and how it is collected from their folders."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from conditioned_attention.environment import environment
from conditioned_attention.experiments.run import Job
from conditioned_attention.experiments.statistics import Summary, summarise, verdict
from conditioned_attention.experiments.task import Metric

if TYPE_CHECKING:
    from conditioned_attention.experiments.tuning import Tuning


@dataclass(frozen=True)
class Comparison:
    """Finished runs of several variants with the same seeds.

    Attributes:
        runs: for every variant (the baseline first) the history of each finished seed: the rows that ``train``
            yielded.
        metric: what the score is.
        failures: the first line of the error of each run that failed, by ``"variant, seed n"``.
        settings: what was run, plain data.
        environment: where this was put together.
        machines: where the runs were made: what differs between machines, and how many runs each made.
        cost: time and memory of a training step by variant, relative to the baseline; None if not measured.
        tuning: how each variant's learning rate was chosen; None if it was not tuned.
    """

    runs: dict[str, dict[int, list[dict[str, Any]]]]
    metric: Metric
    failures: dict[str, str] = field(default_factory=dict)
    settings: Any = None
    environment: dict[str, Any] = field(default_factory=environment)
    cost: dict[str, Any] | None = None
    machines: list[dict[str, Any]] = field(default_factory=list)
    tuning: Tuning | None = None

    def summary(self) -> list[Summary]:
        """One row a variant; see `Summary`."""
        return summarise(self.runs, self.metric)

    def verdicts(self) -> list[str]:
        """One sentence a variant (but the baseline), which says no more than the statistics do."""
        rows = self.summary()
        sentences = [verdict(row, rows[0].variant, self.metric) for row in rows[1:]]
        if self.tuning is None:
            return sentences
        rates = self.tuning.rates()
        return [
            f"{sentence} Each at the learning rate tuned for it on validation data: {rates[rows[0].variant]:g} for "
            f"{rows[0].variant}, {rates[row.variant]:g} for {row.variant}."
            for sentence, row in zip(sentences, rows[1:])
        ]

    def __str__(self) -> str:
        from conditioned_attention.experiments.report import text_table

        return "\n".join([text_table(self), "", *self.verdicts()])


def collect(variants: Sequence[str], jobs: Sequence[Job], metric: Metric, settings: Any) -> Comparison:
    """What the jobs' folders hold now."""
    runs: dict[str, dict[int, list[dict[str, Any]]]] = {variant: {} for variant in variants}
    failures: dict[str, str] = {}
    found = []
    for job in jobs:
        if job.result.exists():
            found.append(json.loads(job.result.read_text()))
            runs[job.variant.name][job.seed] = found[-1]["history"]
        elif job.error.exists():
            failures[job.name] = job.error.read_text().splitlines()[0]
        else:
            failures[job.name] = "its worker process died (killed, out of memory, or unable to import train)"
    return Comparison(runs, metric, failures, settings, machines=machines_of(found))


def machines_of(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The distinct environments of runs, each with the number of its runs."""
    counts = Counter(json.dumps(result["environment"]) for result in results)
    return [{"runs": n, **json.loads(text)} for text, n in counts.items()]
