"""The experiments by name, and how one is run, compared and measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from conditioned_attention._warnings import warn
from conditioned_attention.environment import check_torchvision, is_main, world_size
from conditioned_attention.experiments.evidence.comparison import Comparison
from conditioned_attention.experiments.evidence.stored import Places
from conditioned_attention.experiments.evidence.tuning import FIRST_SEED as FIRST_TUNING_SEED
from conditioned_attention.experiments.evidence.tuning import grid_of, read_grid, read_tuning
from conditioned_attention.experiments.planning.cost import measure_cost
from conditioned_attention.experiments.recipes.recipe import Recipe
from conditioned_attention.experiments.recipes.registry import name_of, recipe_of, settings_of
from conditioned_attention.experiments.runs.compare import compare, seed_list
from conditioned_attention.experiments.runs.run import (
    carry_out,
    check_metric,
    check_origin,
    job_of,
    read_run,
    run_folder,
    single_job,
)
from conditioned_attention.experiments.runs.tune import AtRates, set_aside, settings_of_tuning
from conditioned_attention.experiments.runs.tune import tune as find_rates
from conditioned_attention.experiments.tasks.task import Task, number_of
from conditioned_attention.experiments.training.launch import Launch
from conditioned_attention.experiments.training.loop import train
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.variants.catalogue import find_variant, find_variants
from conditioned_attention.experiments.variants.variant import Variant, check_suited
from conditioned_attention.storage.files import read_json, write_json
from conditioned_attention.storage.folder import FINGERPRINT, changes, check_settings, working_folder
from conditioned_attention.storage.ownership import check_ours, claim
from conditioned_attention.storage.settings import places_of


@dataclass(frozen=True)
class RecipeTraining:
    """``train(variant, seed)`` for `compare`: runs of a recipe, each in its folder, resumed from its checkpoints.

    A learning rate as a third argument replaces the recipe's.
    """

    recipe: Recipe
    folder: Path
    tuning: bool = False
    launch: Launch = field(default_factory=Launch)

    @property
    def evaluations(self) -> int | None:
        """How many rows a run yields; None if a time budget decides."""
        return evaluations_of(self.task, self.recipe.training)

    def __call__(self, variant: Variant, seed: int, lr: float | None = None) -> Iterator[dict[str, Any]]:
        training = self.recipe.training if lr is None else dataclasses.replace(self.recipe.training, lr=lr)
        if self.tuning:
            training = dataclasses.replace(training, monitor_every=0)  # nobody looks at the condition numbers
        path = run_folder(self.folder, variant.name, seed)
        return train(self.task, training, variant, seed, path, named(self.launch, self.recipe))

    @cached_property
    def task(self) -> Task:
        """The task, built once in each process and shared by all of its runs.

        Raises:
            ValueError: the data are not what they were when the comparison began.
        """
        task = self.recipe.task(tuning=True) if self.tuning else self.recipe.task()
        now = task.data_fingerprint
        if changed := changes(vars(self).get(FINGERPRINT, now), now):
            raise ValueError(f"the data have changed since this comparison began ({changed})")
        return task

    def __getstate__(self) -> dict[str, Any]:
        """The state without the task: a worker process reads the data itself, and then knows if they are the same."""
        state = {name: value for name, value in vars(self).items() if name != "task"}
        return state | ({FINGERPRINT: self.task.data_fingerprint} if "task" in vars(self) else {})


def evaluations_of(task: Task, training: Training) -> int | None:
    """How many rows a run yields; None if a time budget decides."""
    return training.evaluations(number_of(task.train_data()), task.tokens_per_sample)


def named(launch: Launch, recipe: Recipe) -> Launch:
    """The same launch with the recipe's name, unless it has a name already."""
    return dataclasses.replace(launch, name=launch.name or name_of(recipe))


def train_recipe(
    recipe: Recipe,
    variant: Variant,
    seed: int,
    *,
    folder: Path | None = None,
    into: Path | None = None,
    launch: Launch | None = None,
    show: Callable[[Mapping[str, Any]], None] = print,
    task: Task | None = None,
) -> Path:
    """Trains one run of a recipe; under torchrun or accelerate launch, every process calls this.

    Args:
        folder: the run's own folder; default ``runs/RECIPE-VARIANT-SEED``.
        into: the folder of a comparison to which the run is added, instead of ``folder``; if learning rates were tuned
            there, the variant's tuned rate replaces the recipe's.
        launch: how the run is carried out.
        show: called with every row, in the main process.
        task: the recipe's task, if it has been built already.

    Returns:
        The run's folder, which holds ``result.json`` besides what `train` writes.

    Raises:
        ValueError: the seed is out of range; both folders are given; or the folder holds something else.
        Exception: whatever `train` raises.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be between 0 and 2**32 - 1, got {seed}")
    if folder is not None and into is not None:
        raise ValueError(f"folder={str(folder)!r} and into={str(into)!r}: a run has one place")
    task, training = task or recipe.task(), recipe.training
    settings = {**settings_of(recipe), FINGERPRINT: task.data_fingerprint}
    if into is None:
        path = folder or Path("runs") / f"{name_of(recipe)}-{variant.name}-{seed}"
        check_ours(path)
        if (path / "settings.json").exists():
            raise ValueError(f"{path} is the folder of a comparison, which runs go into with into={str(path)!r}")
        job = single_job(path, variant, seed, task.metric, settings)
    else:
        training, settings, variant_settings = _as_in(into, recipe, settings, variant, seed)
        job = job_of(into, variant, seed, task.metric, settings, variant_settings)
    rows = train(task, training, variant, seed, job.path, named(launch or Launch(), recipe))
    if not is_main():
        for _ in rows:
            pass
        return job.path
    check_origin(job)
    if into is not None:
        claim(into)
        check_metric(into, task.metric)
        check_settings(into, settings)
    claim(job.path)
    with working_folder(job.path):
        write_json(job.path / "places.json", {"places": places_of(recipe)})
        carry_out(lambda *_: _shown(rows, show), job)
    return job.path


def recorded(folder: Path, data_dir: Path | None = None) -> tuple[Recipe, Variant, int]:
    """Recipe, variant and seed of the run in a folder, with which `train_recipe` can continue it.

    Args:
        folder: the folder of a run that `train_recipe` has begun.
        data_dir: where its data are now; default where they were.

    Raises:
        FileNotFoundError: no run has begun there.
        ValueError: the run cannot be identified: it is from an earlier version that did not record where the data are,
            it has a tuned learning rate (continue the comparison instead), or its recipe or variant is a custom one.
    """
    if not (folder / "begun.json").is_file():
        raise FileNotFoundError(f"no run has begun in {folder}")
    begun = read_run(folder / "begun.json")
    if not (folder / "places.json").is_file():
        raise ValueError(f"{folder} does not say where the data of its run lie: call 'train' or 'compare' as before")
    places = read_json(folder / "places.json", Places)["places"]
    if data_dir is not None:
        if "data_dir" not in places:
            raise ValueError(f"data_dir={str(data_dir)!r}: this run's recipe has none")
        places["data_dir"] = str(data_dir)
    settings = {name: value for name, value in begun["settings"].items() if name != FINGERPRINT}
    if "tuning" in settings:
        raise ValueError(f"{folder} is a run at a tuned learning rate: go on with its comparison")
    return recipe_of(settings, places), find_variant(begun["variant"]), begun["seed"]


def _as_in(
    folder: Path, recipe: Recipe, settings: dict[str, Any], variant: Variant, seed: int
) -> tuple[Training, dict[str, Any], dict[str, Any]]:
    """The training, settings and variant's own settings, as `compare_recipe` has them there, at the tuned rate."""
    tuning = read_tuning(folder / "tuning")
    if tuning is None:
        return recipe.training, settings, {}
    rates = tuning.rates()
    if variant.name not in rates:
        raise ValueError(
            f"no learning rate was tuned for {variant.name} in {folder / 'tuning'}, only for {', '.join(rates)}"
        )
    grid, lr = read_grid(folder / "tuning"), rates[variant.name]
    settings = tuned_settings(settings, grid, [seed])
    check_settings(folder / "tuning", settings_of_tuning(grid, settings))  # it may be all that was copied
    return dataclasses.replace(recipe.training, lr=lr), settings, {variant.name: {"lr": lr}}


def _shown(rows: Iterable[dict[str, Any]], show: Callable[[Mapping[str, Any]], None]) -> Iterator[dict[str, Any]]:
    for row in rows:
        show(row)
        yield row


def compare_recipe(
    recipe: Recipe,
    variants: Sequence[str | Variant],
    seeds: int | Iterable[int],
    folder: Path,
    *,
    workers: int = 1,
    threads: int = 1,
    cost: bool = True,
    progress: bool = True,
    tune: Sequence[float] = (),
    tune_seeds: int = 1,
    launch: Launch | None = None,
) -> Comparison:
    """Runs `compare` on a recipe, then measures time and memory of each variant while nothing else runs.

    Args:
        tune: learning rates; `tune` first finds the one that is best for each variant on validation data, and each
            variant is compared at that rate.  A variant for which all rates fail is left out and listed among the
            failures.  If empty, all variants are compared at the recipe's learning rate.
        tune_seeds: how many runs per variant and rate.
        recipe, variants, seeds, folder, workers, threads, progress: as for `compare`.
        cost: whether time and memory are measured.
        launch: how each run is carried out, in one process.

    Raises:
        ValueError, TypeError, RuntimeError: as `compare`; or no learning rate worked for the baseline; or a launcher
            has started several processes.
    """
    if world_size() > 1:
        raise RuntimeError(
            "compare starts processes of its own; under torchrun train one run with 'train … --into FOLDER'"
        )
    check_ours(folder)  # before the data are read
    chosen, seeds = find_variants(variants), seed_list(seeds)
    training = RecipeTraining(recipe, folder, launch=launch or Launch())
    check_torchvision()  # like missing data an error before anything starts
    training.launch.check(recipe.training.precision)
    task = training.task
    check_suited(chosen, causal=task.causal)
    evaluations_of(task, recipe.training)  # an error, such as of too few samples, before there is a folder
    how: dict[str, Any] = {"workers": workers, "threads": threads, "progress": progress}
    how |= {"metric": task.metric, "settings": {**settings_of(recipe), FINGERPRINT: task.data_fingerprint}}
    if progress:
        print(*task.data_in_words(), sep="\n")
    if tune:
        if "{" in (recipe.training.start_from or ""):
            raise ValueError(
                f"start_from={recipe.training.start_from!r} stands for each run's own variant and seed, and tune "
                "trains with seeds of its own, for which there is none; name one folder, or compare without tune"
            )
        how["settings"] = tuned_settings(how["settings"], grid_of(tune, tune_seeds), seeds)
        result = _compare_tuned(training, chosen, seeds, how)
    else:
        result = compare(training, chosen, seeds, folder=folder, **how)
    finished = [variant for variant in chosen if result.runs.get(variant.name)]
    if not cost or chosen[0] not in finished:  # it is measured relative to the baseline
        return result
    if progress:
        print("measuring time and memory of a training step of each variant")
    return dataclasses.replace(result, cost=measure_cost(task, recipe.training, finished, threads=threads))


def tuned_settings(settings: dict[str, Any], grid: dict[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """The settings of a comparison with tuned learning rates: the grid takes the place of the rate."""
    if max(seeds) >= FIRST_TUNING_SEED:
        raise ValueError(f"seeds from {FIRST_TUNING_SEED:,} on are those of tuning, got {max(seeds)}")
    return {**settings, "training": {**settings["training"], "lr": "tuned"}, "tuning": grid}


def _compare_tuned(
    training: RecipeTraining, variants: list[Variant], seeds: list[int], how: dict[str, Any]
) -> Comparison:
    """The comparison of all variants, each at its best rate of the grid in the settings."""
    folder, grid = training.folder, how["settings"]["tuning"]
    with working_folder(folder):
        check_settings(folder, how["settings"])  # before hours of tuning
    search = dataclasses.replace(training, folder=folder / "tuning", tuning=True)
    tuning = find_rates(search, variants, grid["rates"], grid["seeds"], folder=search.folder, **how)
    del search  # and the data that it has read
    rates, failures = tuning.rates(), tuning.failures()
    if variants[0].name in failures:
        raise RuntimeError(f"{variants[0].name}: {failures[variants[0].name]}")
    for name, reason in failures.items():
        warn(f"{name} is left out: {reason}")
    for warning in tuning.warnings():  # while there is time to widen the grid
        warn(warning)
    if how["progress"]:
        print("learning rates tuned on validation data:", ", ".join(f"{lr:g} for {name}" for name, lr in rates.items()))
    with working_folder(folder):
        moved = set_aside(folder, rates)
    for name, lr in moved.items():
        warn(
            f"{name}: its runs at the learning rate {lr:g}, which is no longer its best, were moved to "
            f"{folder / 'other-rates'}; they are made again at {rates[name]:g}"
        )
    left, own = [v for v in variants if v.name in rates], {name: {"lr": lr} for name, lr in rates.items()}
    result = compare(AtRates(training, rates), left, seeds, folder=folder, variant_settings=own, **how)
    failures = {f"{name}, tuning": reason for name, reason in failures.items()}
    return dataclasses.replace(result, tuning=tuning, failures={**failures, **result.failures})
