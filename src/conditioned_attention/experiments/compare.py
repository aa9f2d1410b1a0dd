"""Variants × paired seeds around any training loop: what is missing is run, in worker processes if asked."""

from __future__ import annotations

import json
import math
import multiprocessing
import multiprocessing.connection
import operator
import os
import pickle
import signal
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from conditioned_attention.environment import environment
from conditioned_attention.experiments.files import JsonLines, finite, write_json, write_text
from conditioned_attention.experiments.statistics import Summary, summarise, verdict
from conditioned_attention.experiments.task import Metric
from conditioned_attention.experiments.variants import Variant, find_variants

Train = Callable[[Variant, int], Iterable[Mapping[str, Any]]]


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


def run_folder(folder: Path, variant: str, seed: int) -> Path:
    """Where one run keeps its files."""
    return folder / "runs" / variant / f"seed-{seed}"


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
    progress: bool = True,
) -> Comparison:
    """Runs ``train(variant, seed)`` for every variant and seed, and compares the scores in pairs.

    Args:
        train: builds and trains a model with everything random set by ``seed``, after ``variant.apply(model)``, and
            yields a row of metrics at every evaluation: ``{"score": …}``, with ``"epoch"`` if epochs are not simply
            counted.  With more than one worker it must be a module-level function or another picklable callable, and
            the calling script needs the ``if __name__ == "__main__"`` guard.
        variants: names out of ``VARIANTS``, or `Variant` objects; the first is the baseline.
        seeds: how many (0, 1, …), or which.
        folder: keeps the runs: a second call with the same folder runs only what is missing or had failed.  None
            keeps nothing on disk.
        workers: runs at a time; with 1 they run in this process.
        threads: torch's threads in each run; rounding depends on them, so fix them if runs in one process and runs
            in several are to agree to the last digit.  Default: the cores divided by the workers; with one worker
            as they are.
        metric: name and direction of the score; default ``"score"``, higher is better.
        settings: plain data that says what is run; a folder refuses runs of other settings.
        progress: show a progress bar on a terminal.

    Returns:
        The finished runs; ``print`` shows the table.  A run that raises is reported as a warning and in
        ``failures``, and does not stop the others.

    Raises:
        ValueError: unknown or repeated variants or seeds; a folder with runs of other settings.
        TypeError: several workers, and a ``train`` that cannot be sent to them.
        RuntimeError: another process works in the folder, or no run finished.

    >>> from conditioned_attention.experiments import compare
    >>> def train(variant, seed):
    ...     for epoch in (1, 2, 3):
    ...         yield {"epoch": epoch, "score": 90 + epoch + 0.1 * seed}
    >>> result = compare(train, seeds=3, progress=False)
    >>> result.verdicts()[0][:43]
    'preconditioned: no difference to baseline w'
    """
    chosen, seed_list = find_variants(variants), _seeds(seeds)
    for name, value in (("workers", workers), ("threads", 1 if threads is None else threads)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    with working_folder(folder) as path:
        check_settings(path, settings)
        jobs = [(v, s) for s in seed_list for v in chosen if not (run_folder(path, v.name, s) / "result.json").exists()]
        total = getattr(train, "evaluations", None)
        with _progress(path, jobs, total) if progress and jobs else nullcontext(lambda: None) as update:
            if workers == 1 or len(jobs) <= 1:
                with _threads(threads):
                    for variant, seed in jobs:
                        _run(train, variant, seed, path, update)
            else:
                _run_in_workers(train, jobs, path, min(workers, len(jobs)), threads, update)
        result = _collect(path, [v.name for v in chosen], seed_list, metric or Metric("score"), settings)
    if not any(result.runs.values()):
        name, reason = next(iter(result.failures.items()))
        raise RuntimeError(f"no run finished; the first that failed: {name}: {reason}")
    for name, reason in result.failures.items():
        warnings.warn(f"the run {name} failed: {reason}", stacklevel=2)
    return result


def _seeds(seeds: int | Iterable[int]) -> list[int]:
    found = list(range(seeds)) if isinstance(seeds, int) else [operator.index(seed) for seed in seeds]
    if not found or len(set(found)) < len(found) or min(found) < 0:
        raise ValueError(f"seeds must be at least one, all different and not negative, got {found}")
    return found


@contextmanager
def working_folder(folder: str | Path | None) -> Iterator[Path]:
    """The folder, locked against a second process; the lock goes with the process that holds it."""
    from filelock import FileLock, Timeout

    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path / ".lock", timeout=0):
            yield path
    except Timeout as error:
        raise RuntimeError(f"another process is working in {path}") from error


def check_settings(folder: Path, settings: Any) -> None:
    """Writes what is run into a folder; raises if it already holds runs of something else."""
    file, now = folder / "settings.json", json.loads(json.dumps(finite(settings)))
    begun = any(folder.rglob("result.json")) or any(folder.rglob("checkpoint-*"))
    if not file.exists() or not begun:  # an attempt that came to nothing does not claim the folder
        write_json(file, settings)
        return
    there = json.loads(file.read_text())
    if there != now:
        different = ", ".join(f"{key}: {old} there, {new} now" for key, old, new in differences(there, now))
        raise ValueError(f"{folder} holds runs of other settings ({different}); choose another folder")


def differences(a: Any, b: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every key at which two pieces of plain data differ, with both values."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(key for key in b if key not in a)]:
            yield from differences(a.get(key), b.get(key), f"{prefix}.{key}" if prefix else key)
    elif a != b:
        yield prefix or "settings", a, b


def _run(train: Train, variant: Variant, seed: int, folder: Path, update: Callable[[], None]) -> None:
    """One run; its rows go to ``metrics.jsonl`` as they come, and to ``result.json`` when it has finished."""
    path = run_folder(folder, variant.name, seed)
    error_file, log = path / "error.txt", JsonLines(path / "metrics.jsonl")
    error_file.unlink(missing_ok=True)
    log.path.unlink(missing_ok=True)
    history: list[Mapping[str, Any]] = []
    try:
        for row in train(variant, seed):
            history.append(_plain_row(row))
            log.append(history[-1])
            update()
        if not history:
            raise ValueError("train yielded no row")
    except Exception as error:  # whatever a training loop raises is that run's result, and no other run's business
        summary = f"{type(error).__name__}: {error}".splitlines()[0]
        write_text(error_file, f"{summary}\n\n{traceback.format_exc()}")
    else:
        write_json(path / "result.json", {"variant": variant.name, "seed": seed, "history": history})
    update()


def _plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of plain numbers, from those of numpy and torch too; raises unless it has a finite score."""
    plain = {key: value.item() if hasattr(value, "item") else value for key, value in row.items()}
    if "score" not in plain:
        raise ValueError(f"train yielded a row without 'score': {plain}")
    score = plain["score"]
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
        raise ValueError(f"train yielded a score that is not a finite number: {score!r}")
    return plain


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    """torch's thread count, for as long as it lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run_in_workers(
    train: Train,
    jobs: Sequence[tuple[Variant, int]],
    folder: Path,
    workers: int,
    threads: int | None,
    update: Callable[[], None],
) -> None:
    try:
        pickle.dumps(train)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise TypeError(
            f"workers={workers} needs a train that can be pickled, a module-level function: {error}"
        ) from error
    context = multiprocessing.get_context("spawn")  # forking a process that has used torch's threads can hang
    queue = context.Queue()
    for job in [*jobs, *[None] * workers]:
        queue.put(job)
    threads = threads or max(1, (os.cpu_count() or 1) // workers)
    arguments = (train, queue, folder, threads)
    processes = [context.Process(target=_work, args=arguments, daemon=True) for _ in range(workers)]
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            multiprocessing.connection.wait([p.sentinel for p in processes if p.is_alive()], timeout=0.5)
            update()
    finally:
        queue.cancel_join_thread()  # jobs that nobody will take must not keep this process
        for process in processes:
            if process.is_alive():
                process.terminate()
        for process in processes:
            if process.pid is not None:
                process.join()


def _work(train: Train, queue: Any, folder: Path, threads: int) -> None:
    """A worker process: runs jobs until there are none, and ends with its parent, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    while (job := queue.get()) is not None:
        variant, seed = job
        _run(train, variant, seed, folder, lambda: None)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


@contextmanager
def _progress(folder: Path, jobs: Sequence[tuple[Variant, int]], total: int | None) -> Iterator[Callable[[], None]]:
    """A bar a run, fed from the runs' own files, so that it works across processes."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[score]}")) as bars:
        rows = [(bars.add_task(f"{v.name}, seed {s}", total=total, score="", start=False), v, s) for v, s in jobs]
        read_at = 0.0

        def update() -> None:
            nonlocal read_at
            if time.monotonic() - read_at < 0.2 and not all(bars.tasks[i].finished for i, *_ in rows):
                return
            read_at = time.monotonic()
            for bar, variant, seed in rows:
                path = run_folder(folder, variant.name, seed)
                history = JsonLines(path / "metrics.jsonl").read()
                if history and not bars.tasks[bar].started:
                    bars.start_task(bar)
                score = f"{history[-1]['score']:.2f}" if history and history[-1]["score"] is not None else ""
                done = (path / "result.json").exists()
                bars.update(bar, completed=len(history), total=len(history) if done else total, score=score)
                if (path / "error.txt").exists():
                    bars.update(bar, score="failed")
                if done:
                    bars.stop_task(bar)

        yield update
        read_at = 0.0
        update()


def _collect(folder: Path, variants: Sequence[str], seeds: Sequence[int], metric: Metric, settings: Any) -> Comparison:
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
