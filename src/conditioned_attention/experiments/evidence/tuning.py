"""Tuning of each variant's learning rate: a small grid, the same budget for all, chosen on validation data alone.

A comparison at one learning rate says little: if a method prefers a lower rate than its rival, it wins or loses
depending on where that one rate happens to lie.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.evidence.statistics import finite_or_nan
from conditioned_attention.experiments.evidence.stored import Tuned, TuningSettings
from conditioned_attention.storage.files import read_json

FIRST_SEED = 1_000_000  # far from those of comparisons, so that choice and comparison are independent


@dataclass(frozen=True)
class Trial:
    """One variant at one learning rate.

    Attributes:
        scores: the final validation score of each seed that finished.
        failures: for each other seed, the first line of its error.
    """

    scores: dict[int, float]
    failures: dict[int, str]

    @property
    def seeds(self) -> set[int]:
        """The seeds that were tried."""
        return {*self.scores, *self.failures}

    @property
    def mean(self) -> float | None:
        """Mean score over seeds; None if a run failed or has no finite score, so that the rate cannot be chosen."""
        whole = self.scores and not self.failures and all(map(math.isfinite, self.scores.values()))
        return statistics.fmean(self.scores.values()) if whole else None

    def reason(self) -> tuple[int, str]:
        """For a rate without a mean, the seed of the first run that failed or has no finite score, and the reason."""
        odd = {seed: "its score is not finite" for seed, score in self.scores.items() if not math.isfinite(score)}
        return next(iter({**self.failures, **odd}.items()))


@dataclass(frozen=True)
class Tuning:
    """The learning rates that were tried for each variant, from which the choice follows.

    Attributes:
        trials: for every variant the trial of each learning rate, in ascending order.
        metric: what the score is.
    """

    trials: dict[str, dict[float, Trial]]
    metric: Metric

    def chosen(self, variant: str) -> float | None:
        """The rate with the best mean, the lowest of equally good ones; None if every rate had a run that failed."""
        sign = 1 if self.metric.higher_is_better else -1
        means = {lr: sign * trial.mean for lr, trial in self.trials[variant].items() if trial.mean is not None}
        return max(sorted(means), key=means.__getitem__, default=None)

    def rates(self) -> dict[str, float]:
        """The chosen rate of every variant that has one."""
        return {variant: lr for variant in self.trials if (lr := self.chosen(variant)) is not None}

    def failures(self) -> dict[str, str]:
        """The reason why a variant has no rate, by variant."""
        found = {}
        for variant in self.trials:
            if self.chosen(variant) is not None:
                continue
            lr, trial = next(iter(self.trials[variant].items()))
            seed, reason = trial.reason()
            found[variant] = f"every learning rate of the grid failed; the first, {lr:g} with seed {seed}: {reason}"
        return found

    def warnings(self) -> list[str]:
        """Sentences that warn of rates which failed by accident, and of best rates at an edge of the grid.

        An accident is any failure other than a loss that is not finite, such as a full disk.  The first variant is the
        baseline.
        """
        found, at_edge = [], dict[str, list[str]]()
        for variant, lr in self.rates().items():
            for rate, trial in self.trials[variant].items():
                accidents = [why for why in trial.failures.values() if not why.startswith("FloatingPointError")]
                if accidents:
                    found.append(
                        f"{variant}: the learning rate {rate:g} was excluded because a run failed ({accidents[0]}); "
                        "if that was an accident, delete tuning.json and run the command again."
                    )
            grid = list(self.trials[variant])
            edges = [word for word, edge in (("lowest", grid[0]), ("highest", grid[-1])) if lr == edge]
            if edges:
                at_edge.setdefault(f"{lr:g}, is the {' and '.join(edges)}", []).append(variant)
        found += [
            f"{', '.join(names)}: the best learning rate, {edge} of the grid; widen it before trusting a difference: "
            "the same command with more rates tries only the new ones."
            for edge, names in at_edge.items()
        ]
        first = next(iter(self.trials), "")
        if len(self.trials) > 1 and any(first in names for names in at_edge.values()):
            found.append(
                f"All are compared with {first}, whose best rate is at an edge: any difference may be due to tuning."
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain data: one row per variant and learning rate, and the choice."""
        trials = [
            {
                "variant": variant,
                "lr": lr,
                "scores": [{"seed": seed, "score": score} for seed, score in trial.scores.items()],
                "failures": [{"seed": seed, "reason": reason} for seed, reason in trial.failures.items()],
                "mean": trial.mean,
                "chosen": lr == self.chosen(variant),
            }
            for variant, by_rate in self.trials.items()
            for lr, trial in by_rate.items()
        ]
        metric = {"name": self.metric.name, "higher_is_better": self.metric.higher_is_better}
        return {"metric": metric, "chosen": self.rates(), "trials": trials}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Tuning:
        """The tuning from what `to_json` returned."""
        trials: dict[str, dict[float, Trial]] = {}
        for row in data["trials"]:
            scores = {found["seed"]: finite_or_nan(found["score"]) for found in row["scores"]}
            failures = {found["seed"]: found["reason"] for found in row["failures"]}
            trials.setdefault(row["variant"], {})[row["lr"]] = Trial(scores, failures)
        return cls(trials, Metric(**data["metric"]))


def grid_of(rates: Sequence[float], seeds: int) -> dict[str, Any]:
    """The grid as plain data for settings: rates in ascending order, and how many seeds try each.

    Raises:
        ValueError: rates that are not positive, finite and different; no rate or no seed.
    """
    if not rates or len(set(rates)) < len(rates) or not all(lr > 0 and math.isfinite(lr) for lr in rates):
        raise ValueError(
            f"the learning rates to try must be at least one, all different, positive and finite, got {list(rates)}"
        )
    if seeds < 1:
        raise ValueError(f"tune_seeds must be at least 1, got {seeds}")
    return {"rates": sorted(map(float, rates)), "seeds": seeds}


def read_grid(folder: Path) -> dict[str, Any]:
    """The grid that a folder of tuning was made with, as `grid_of` gives it."""
    grid: dict[str, Any] = read_json(folder / "settings.json", TuningSettings)["grid"]
    return grid


def read_tuning(folder: Path) -> Tuning | None:
    """Reads what `tune` has written into a folder; None if it has not finished there."""
    file = folder / "tuning.json"
    return Tuning.from_json(read_json(file, Tuned)) if file.exists() else None
