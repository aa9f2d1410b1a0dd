"""What one sees while runs are going on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from conditioned_attention.experiments.files import JsonLines
from conditioned_attention.experiments.run import Job


@contextmanager
def progress_bars(jobs: Sequence[Job], total: int | None) -> Iterator[Callable[[], None]]:
    """A bar a run, fed from the runs' own files, so that it works across processes."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[score]}")) as bars:
        rows = [(bars.add_task(job.name, total=total, score="", start=False), job) for job in jobs]
        read_at = 0.0

        def update() -> None:
            nonlocal read_at
            if time.monotonic() - read_at < 0.2 and not all(bars.tasks[i].finished for i, *_ in rows):
                return
            read_at = time.monotonic()
            for bar, job in rows:
                history = JsonLines(job.path / "metrics.jsonl").read()
                if history and not bars.tasks[bar].started:
                    bars.start_task(bar)
                score = f"{history[-1]['score']:.2f}" if history and history[-1]["score"] is not None else ""
                done = job.result.exists()
                bars.update(bar, completed=len(history), total=len(history) if done else total, score=score)
                if job.error.exists():
                    bars.update(bar, score="failed")
                if done:
                    bars.stop_task(bar)

        yield update
        read_at = 0.0
        update()
