"""What a comparison is when its runs have finished, and how it is collected from their folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conditioned_attention.environment import environment
from conditioned_attention.experiments.folder import run_folder
from conditioned_attention.experiments.statistics import Summary, summarise, verdict
from conditioned_attention.experiments.task import Metric


@dataclass(frozen=True)
class Comparison:
    """Finished runs of several variants with the same seeds.

    Attributes:
        runs: for every variant (the baseline first) the history of each finished seed: the rows that ``train``
            yielded.
        metric: what the score is.
        failures: the first line of the error of each run that failed, by ``"variant, seed n"``.
        settings: what was run, plain data.
        environment: where.
        cost: time and memory of a training step by variant, relative to the baseline; None if not measured.
    """

    runs: dict[str, dict[int, list[dict[str, Any]]]]
    metric: Metric
    failures: dict[str, str] = field(default_factory=dict)
    settings: Any = None
    environment: dict[str, Any] = field(default_factory=environment)
    cost: dict[str, Any] | None = None

    def summary(self) -> list[Summary]:
        """One row a variant; see `Summary`."""
        return summarise(self.runs, self.metric)

    def verdicts(self) -> list[str]:
        """One sentence a variant (but the baseline), which says no more than the statistics do."""
        rows = self.summary()
        return [verdict(row, rows[0].variant, self.metric) for row in rows[1:]]

    def __str__(self) -> str:
        from conditioned_attention.experiments.report import text_table

        return "\n".join([text_table(self), "", *self.verdicts()])


def collect(folder: Path, variants: Sequence[str], seeds: Sequence[int], metric: Metric, settings: Any) -> Comparison:
    runs: dict[str, dict[int, list[dict[str, Any]]]] = {variant: {} for variant in variants}
    failures: dict[str, str] = {}
    for variant in variants:
        for seed in seeds:
            path = run_folder(folder, variant, seed)
            if (path / "result.json").exists():
                runs[variant][seed] = json.loads((path / "result.json").read_text())["history"]
            elif (path / "error.txt").exists():
                failures[f"{variant}, seed {seed}"] = (path / "error.txt").read_text().splitlines()[0]
            else:
                failures[f"{variant}, seed {seed}"] = (
                    "its worker process died (killed, out of memory, or unable to import train)"
                )
    return Comparison(runs, metric, failures, settings)
