"""Compares variants over paired seeds with any training loop; makes missing runs, in worker processes if asked."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from conditioned_attention._warnings import warn
from conditioned_attention.environment import cores, needs
from conditioned_attention.experiments.evidence.comparison import Comparison, calls_of, machines_of
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.runs.progress import Display, display
from conditioned_attention.experiments.runs.run import (
    Job,
    Train,
    check_metric,
    check_origin,
    data_of,
    job_of,
    read_run,
    reason_of,
    run_job,
)
from conditioned_attention.experiments.runs.workers import run_in_workers
from conditioned_attention.experiments.variants.catalogue import find_variants
from conditioned_attention.experiments.variants.variant import Variant
from conditioned_attention.storage.folder import check_settings, working_folder


def compare(
    train: Train,
    variants: Sequence[str | Variant] = ("baseline", "preconditioned"),
    seeds: int | Iterable[int] = 3,
    *,
    folder: str | Path | None = None,
    workers: int = 1,
    threads: int | None = None,
    metric: Metric | None = None,
    settings: Any = None,
    variant_settings: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Comparison:
    """Runs ``train(variant, seed)`` for every variant and seed, and compares the scores in pairs of the same seed.

    Args:
        train: builds a model, changes it by ``variant.apply(model)`` and trains it, with everything random set
            by ``seed``; yields a row of metrics at every evaluation: ``{"score": …}``, with ``"epoch"`` unless
            evaluations are simply epochs 1, 2, ….  With a third parameter called ``run`` it also gets
            a `Run`: ``run.folder``, and ``run.monitor(model, probe, every=100)``, whose κ then is in the comparison.
            With more than one worker it must be a module-level function or another picklable callable, and the calling
            script needs the ``if __name__ == "__main__"`` guard.
        variants: names from ``VARIANTS``, or `Variant` objects; the first is the baseline.
        seeds: how many (0, 1, …), or which.
        folder: keeps the runs: a second call with the same folder runs only what is missing or has failed.  None keeps
            nothing on disk.
        workers: runs at a time; with 1 they run in this process.
        threads: PyTorch threads in each run; rounding depends on their number, so set it if runs in one process and
            runs in several must agree to the last digit.  Default: the cores that this process may use, divided by the
            workers; with one worker, the current number of threads.
        metric: name and direction of the score; default ``"score"``, higher is better.  It is stored with the runs, and
            a folder refuses runs with another metric.
        settings: plain data that describes what is run; a folder refuses runs with other settings.
        variant_settings: for each variant by name, plain data on what is set for that variant alone, such as a learning
            rate tuned for it.
        progress: whether to show a progress bar on a terminal.

    Returns:
        The finished runs; ``print`` shows the table.  A run that raises is reported as a warning and in ``failures``,
        and does not stop the others.

    Raises:
        ValueError: unknown or repeated variants or seeds; a folder with runs of other settings or another metric.
        TypeError: several workers, and a ``train`` that cannot be sent to them.
        RuntimeError: another process is working in the folder, or no run finished.

    >>> from conditioned_attention.experiments import compare
    >>> def train(variant, seed):
    ...     for epoch in (1, 2, 3):
    ...         yield {"epoch": epoch, "score": 90 + epoch + 0.1 * seed}
    >>> result = compare(train, seeds=3, progress=False)
    >>> result.verdicts()
    ['preconditioned: the same score as baseline on each of 3 seeds.']
    """
    with needs("experiments", "compare"):  # say what is missing now, and not when the runs are done
        for name in ("filelock", "rich", "scipy"):
            import_module(name)
    result = run_missing(
        train, find_variants(variants), seed_list(seeds), folder=folder, workers=workers, threads=threads,
        metric=metric, settings=settings, variant_settings=variant_settings, progress=progress,
    )  # fmt: skip
    if not any(result.runs.values()):
        name, reason = next(iter(result.failures.items()))
        raise RuntimeError(f"no run finished; the first that failed: {name}: {reason}")
    for name, reason in result.failures.items():
        warn(f"{name} has no result: {reason}")
    return result


def run_missing(
    train: Train,
    variants: Sequence[Variant],
    seeds: Sequence[int],
    *,
    folder: str | Path | None,
    workers: int,
    threads: int | None,
    metric: Metric | None,
    settings: Any,
    progress: bool,
    variant_settings: Mapping[str, Any] | None = None,
) -> Comparison:
    """Does the running and collecting part of `compare`; here it is no error if all runs fail."""
    for name, value in (("workers", workers), ("threads", 1 if threads is None else threads)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    metric = metric or Metric("score")
    with working_folder(folder) as path:
        jobs = [job_of(path, v, s, metric, settings, variant_settings or {}) for s in seeds for v in variants]
        for job in jobs:
            check_origin(job)
        check_metric(path, metric)  # also of variants and seeds not asked for now, which are reported together
        check_settings(path, settings)
        missing = [job for job in jobs if not job.result.exists()]
        for job in missing:
            job.error.unlink(missing_ok=True)
        if threads is None:  # set by the workers alone, not by how many runs are missing: rounding depends on it
            threads = torch.get_num_threads() if workers == 1 else max(1, cores() // workers)
        with display(len(missing), getattr(train, "evaluations", None), shown=progress) as shown:
            if workers == 1 or len(missing) <= 1:
                _run_here(train, missing, threads, shown)
            else:
                run_in_workers(train, missing, min(workers, len(missing)), threads, shown)
        return collect([v.name for v in variants], jobs, metric, settings)


def collect(variants: Sequence[str], jobs: Sequence[Job], metric: Metric, settings: Any) -> Comparison:
    """Collects the results that the jobs' folders hold now."""
    runs: dict[str, dict[int, list[dict[str, Any]]]] = {variant: {} for variant in variants}
    failures: dict[str, str] = {}
    found = []
    for job in jobs:
        if job.result.exists():
            found.append(read_run(job.result))
            runs[job.variant.name][job.seed] = found[-1]["history"]
        else:
            failures[job.name] = reason_of(job.path) or "not run"
    data = data_of(job.path for job in jobs)
    return Comparison(runs, metric, failures, settings, machines=machines_of(found), data=data, calls=calls_of(found))


def seed_list(seeds: int | Iterable[int]) -> list[int]:
    """Returns the seeds as a list; raises ValueError if there are none, or if one is repeated or negative."""
    found = list(range(seeds)) if isinstance(seeds, int) else [operator.index(seed) for seed in seeds]
    if not found or len(set(found)) < len(found) or min(found) < 0:
        raise ValueError(f"seeds must be at least one, all different and not negative, got {found}")
    return found


def _run_here(train: Train, jobs: Sequence[Job], threads: int, shown: Display) -> None:
    """Runs the jobs one after another in this process, and restores its thread count."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for job in jobs:
            shown.started(job)
            shown.ended(job, run_job(train, job, shown.refresh))
    finally:
        torch.set_num_threads(before)
