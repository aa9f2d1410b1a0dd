"""Tunes each variant's learning rate on a small grid, with the same budget for all, on validation data alone."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.evidence.statistics import final_score
from conditioned_attention.experiments.evidence.tuning import FIRST_SEED, Trial, Tuning, grid_of, read_tuning
from conditioned_attention.experiments.runs.compare import run_missing
from conditioned_attention.experiments.runs.run import made_before, name_of_run
from conditioned_attention.experiments.variants.catalogue import find_variants
from conditioned_attention.experiments.variants.variant import Variant
from conditioned_attention.storage.files import write_json
from conditioned_attention.storage.folder import check_settings, working_folder

TrainAt = Callable[[Variant, int, float], Iterable[Mapping[str, Any]]]


@dataclass(frozen=True)
class AtRates:
    """Makes ``train(variant, seed)`` from ``train(variant, seed, lr)``: each variant gets the rate of its name."""

    train: TrainAt
    rates: Mapping[str, float]

    @property
    def evaluations(self) -> int | None:
        """How many rows a run yields, if that is known."""
        return getattr(self.train, "evaluations", None)

    def __call__(self, variant: Variant, seed: int) -> Iterable[Mapping[str, Any]]:
        return self.train(variant, seed, self.rates[variant.name])


def tune(
    train: TrainAt,
    variants: Sequence[str | Variant],
    rates: Sequence[float],
    seeds: int = 1,
    *,
    folder: Path,
    workers: int = 1,
    threads: int | None = None,
    metric: Metric | None = None,
    settings: Any = None,
    progress: bool = True,
) -> Tuning:
    """Tries every rate for every variant with the same seeds, and stores the results in ``tuning.json``.

    What is in ``tuning.json`` is not tried again.  A later call may ask for more variants, rates or seeds, and tries
    what is missing.

    Args:
        train: as for `compare`, with the learning rate as a third argument; its score is computed on validation data.
            The name of the variant that it gets, and of its folder, includes the rate.
        rates: the grid, the same for all variants.
        seeds: how many runs for each variant and rate, with seeds 1,000,000, 1,000,001, …
        folder: where the runs are kept; a second call tries only what is missing.
        variants, workers, threads, metric, settings, progress: as for `compare`.

    Returns:
        The results of each variant's rates, in the order of ``variants``.

    Raises:
        ValueError, TypeError, RuntimeError: as for `compare`; runs that fail are no error here.
    """
    chosen, grid, metric = find_variants(variants), grid_of(rates, seeds), metric or Metric("score")
    settings, tuning_seeds = settings_of_tuning(grid, settings), range(FIRST_SEED, FIRST_SEED + seeds)
    with working_folder(folder):
        check_settings(folder, settings)
    known = read_tuning(folder) or Tuning({}, metric)
    if known.metric != metric:
        raise ValueError(f"{folder} was tuned for {known.metric}, not for {metric}; choose another folder")
    rated, asked = known.rates(), {variant.name for variant in chosen}
    # variants for which no rate worked are tried again if they are asked for, and kept as they are otherwise
    trials = {name: by_rate for name, by_rate in known.trials.items() if name in rated or name not in asked}
    names = {
        f"{v.name}-lr-{lr!r}": (v, lr)
        for lr in grid["rates"]
        for v in chosen
        if not (lr in trials.get(v.name, {}) and trials[v.name][lr].seeds.issuperset(tuning_seeds))
    }  # one rate after the other, so that a first impression of all variants comes early
    if names:
        found = run_missing(
            AtRates(train, {name: lr for name, (_, lr) in names.items()}),
            [dataclasses.replace(variant, name=name) for name, (variant, _) in names.items()],
            tuning_seeds,
            folder=folder, workers=workers, threads=threads, metric=metric, settings=settings, progress=progress,
        )  # fmt: skip
        for name, (variant, lr) in names.items():
            scores = {seed: final_score(history) for seed, history in found.runs[name].items()}
            failures = {seed: found.failures[name_of_run(name, seed)] for seed in tuning_seeds if seed not in scores}
            trials.setdefault(variant.name, {})[lr] = Trial(scores, failures)
        trials = {name: dict(sorted(by_rate.items())) for name, by_rate in trials.items()}
        write_json(folder / "tuning.json", Tuning(trials, metric).to_json())
    return Tuning({variant.name: trials[variant.name] for variant in chosen}, metric)


def set_aside(folder: Path, rates: Mapping[str, float]) -> dict[str, float]:
    """Moves runs at a rate that is no longer the best into ``other-rates``, and fetches those at the best from there.

    A wider grid may choose another rate for a variant whose runs have finished at an earlier choice.

    Args:
        folder: of the comparison.
        rates: the rate chosen for each variant.

    Returns:
        For each variant with runs that were moved away, the rate that they had.

    Raises:
        RuntimeError: another process is working on such a run.
    """
    moved = {}
    for name, lr in rates.items():
        for place in sorted((folder / "runs" / name).glob("seed-*")):
            at = ((made_before(place) or {}).get("variant_settings") or {}).get("lr", lr)
            if at != lr:
                with working_folder(place):
                    _move(place, _other_rate(folder, name, at))
                moved[name] = at
        for place in sorted(_other_rate(folder, name, lr).glob("seed-*")):
            there = folder / "runs" / name / place.name
            if made_before(there) is None:
                with working_folder(there):  # of ours, with a failed attempt at most
                    shutil.rmtree(there)
                _move(place, there.parent)
    return moved


def _other_rate(folder: Path, variant: str, lr: float) -> Path:
    return folder / "other-rates" / f"{variant}-lr-{lr!r}"


def _move(place: Path, into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    place.rename(into / place.name)


def settings_of_tuning(grid: dict[str, Any], settings: Any) -> dict[str, Any]:
    """Returns the settings that a tuning folder records: the grid, and the settings of the comparison."""
    return {"grid": grid, "runs": settings}
