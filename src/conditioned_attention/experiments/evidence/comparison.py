"""A comparison whose runs have finished."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any

from conditioned_attention.environment import environment
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.evidence.outcomes import other_outcomes, saturated
from conditioned_attention.experiments.evidence.statistics import (
    Summary,
    decimals,
    final_score,
    many_compared,
    summarise,
    verdict,
)
from conditioned_attention.experiments.evidence.tables import aligned, outcome_table, text_table
from conditioned_attention.experiments.evidence.tuning import Tuning

if TYPE_CHECKING:
    from conditioned_attention.experiments.evidence.blocks import BlockedTest  # needs numpy, which comparing does not


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Finished runs of several variants with the same seeds.

    Attributes:
        runs: for every variant (the baseline first) the history of each finished seed: the rows that ``train`` yielded.
        metric: what the score is.
        failures: why each of the other runs has no result, in one line, by ``"variant, seed n"``.
        settings: what was run, as plain data.
        environment: where this comparison was put together.
        machines: where the runs were made: what differs between machines, and how many runs each made.
        cost: time and memory of a training step by variant, relative to the baseline; None if not measured.
        tuning: how each variant's learning rate was chosen; None if it was not tuned.
        data: what the runs report about their data, in lines.
        calls: on which day and by which command runs were begun; runs of earlier versions do not say.

    >>> from conditioned_attention.experiments import Comparison, Metric
    >>> of = lambda *scores: {seed: [{"score": score}] for seed, score in enumerate(scores)}
    >>> runs = {"baseline": of(90.0, 91.0), "other": of(92.0, 94.0)}
    >>> [(row.variant, row.final.mean) for row in Comparison(runs, Metric("accuracy (%)")).summary()]
    [('baseline', 90.5), ('other', 93.0)]
    """

    runs: dict[str, dict[int, list[dict[str, Any]]]]
    metric: Metric
    failures: dict[str, str] = field(default_factory=dict)
    settings: Any = None
    environment: dict[str, Any] = field(default_factory=environment)
    cost: dict[str, Any] | None = None
    machines: list[dict[str, Any]] = field(default_factory=list)
    tuning: Tuning | None = None
    data: list[str] = field(default_factory=list)
    calls: list[dict[str, str]] = field(default_factory=list)

    def summary(self) -> list[Summary]:
        """One row per variant; see `Summary`."""
        return summarise(self.runs, self.metric)

    def blocked(self) -> BlockedTest | None:
        """A test of all variants against the baseline at once; None with fewer than two, or with nothing to test."""
        from conditioned_attention.experiments.evidence.blocks import blocked_test

        final = {name: {s: final_score(h) for s, h in by_seed.items()} for name, by_seed in self.runs.items()}
        return blocked_test(final) if len(final) > 2 else None

    @property
    def saturated(self) -> bool:
        """Whether final scores are too close to the best possible score to distinguish variants."""
        return saturated(self.summary(), self.metric)

    def outcomes(self) -> list[Comparison]:
        """The same runs, compared by numbers other than the final score.

        These are the mean of the score over the run, the evaluation loss and, for detection, the average precision of
        masks and at two overlaps.  Each run's history is then one row, with that number as its score.  Empty if there
        is nothing to compare.
        """
        found = other_outcomes(self.runs, self.metric) if len(self.runs) > 1 else []
        return [dataclasses.replace(self, runs=runs, metric=metric, cost=None, tuning=None) for metric, runs in found]

    def outcome_table(self) -> tuple[list[str], list[list[str]]]:
        """The header and rows of a table of `outcomes`, as text; no rows if there are none."""
        return outcome_table([(found.metric, found.summary(), found.blocked()) for found in self.outcomes()])

    def outcome_sentences(self) -> list[str]:
        """What the tests say about `outcomes`, in sentences."""
        return [
            f"{found.metric.name[:1].upper()}{found.metric.name[1:]}. {sentence}"
            for found in self.outcomes()
            for sentence in found.on_all() or found.verdicts()
        ]

    def on_all(self) -> list[str]:
        """Sentences about all variants together; none if there is only one to compare with the baseline."""
        rows, blocked = self.summary(), self.blocked()
        found = [sentence for sentence in [many_compared(rows)] if sentence]
        return found + (blocked.sentences(self.metric, decimals(rows[0].final.mean)) if blocked else [])

    def verdicts(self) -> list[str]:
        """One sentence per variant (except the baseline), and some on all; they say no more than the statistics do."""
        rows = self.summary()
        sentences = [verdict(row, rows[0].variant, self.metric) for row in rows[1:]]
        if self.tuning is None:
            return sentences + self.on_all()
        rates = self.tuning.rates()
        return [
            f"{sentence} Learning rates, tuned on validation data: {rates[rows[0].variant]:g} for {rows[0].variant}, "
            f"{rates[row.variant]:g} for {row.variant}."
            for sentence, row in zip(sentences, rows[1:])
        ] + self.on_all()

    def __str__(self) -> str:
        warnings = self.tuning.warnings() if self.tuning else []
        tables = text_table(self.summary(), self.metric, self.cost, self.blocked())
        lines = [tables, "", *self.verdicts(), *warnings]
        if self.saturated and (found := self.outcome_table())[1]:
            lines += ["", aligned(*found), "", *self.outcome_sentences()]
        return "\n".join(lines)


def describe_machines(machines: Sequence[Mapping[str, Any]]) -> str:
    """Where the runs were made, in a sentence."""
    parts = []
    for machine in machines:
        places = [_place(one) for one in [machine, *machine.get("continued", [])]]
        parts.append(f"{machine['runs']} on {', continued on '.join(places)}")
    return f"Runs: {'; '.join(parts)}."


def _place(machine: Mapping[str, Any]) -> str:
    devices = [device for device in machine["devices"] if device != "cpu"]
    versions = f"torch {machine['torch']}, conditioned-attention {machine['conditioned-attention']}"
    return ", ".join([machine["machine"], *devices, versions])


def machines_of(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The distinct environments of runs, each with its number of runs; ``continued`` if they went on elsewhere."""
    counts = Counter(json.dumps(_where(result)) for result in results)
    return [{"runs": n, **json.loads(text)} for text, n in counts.items()]


def calls_of(results: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The distinct days and commands of runs, earliest first."""
    found = {(result["date"], result["command"]) for result in results if "date" in result and "command" in result}
    return [{"date": date, "command": command} for date, command in sorted(found)]


def _where(result: Mapping[str, Any]) -> dict[str, Any]:
    continued = result.get("continued")
    return {**result["environment"], **({"continued": continued} if continued else {})}
