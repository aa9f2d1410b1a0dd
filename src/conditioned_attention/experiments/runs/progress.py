"""The progress display that is shown while runs are being made."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

from conditioned_attention.experiments.evidence.statistics import finite_or_nan
from conditioned_attention.experiments.evidence.stored import Row
from conditioned_attention.experiments.runs.run import Job
from conditioned_attention.storage.json_lines import JsonLines

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, TaskID


class Display:
    """The interface of a progress display; this base class shows nothing."""

    def started(self, job: Job) -> None:
        """Shows that a run has started."""

    def ended(self, job: Job, finished: bool) -> None:
        """Shows that a run has finished or failed."""

    def refresh(self) -> None:
        """Updates the display; called every now and then."""

    def say(self, text: str) -> None:
        """Shows a line of text to the user."""


class Bars(Display):
    """A progress bar for each active run, read from the run's own file to work across processes, and one for all runs.

    Even with hundreds of runs, only the files of active runs are looked at, and they are read only if they have grown.
    Where bars cannot be drawn (a log file, a batch system), a line is printed for each run that has finished.
    """

    def __init__(self, bars: Progress, runs: int, rows: int | None) -> None:
        self.bars, self.runs, self.rows = bars, runs, rows
        self.active: dict[str, tuple[Job, TaskID]] = {}
        self.sizes: dict[str, int] = {}
        self.done = self.failed = 0
        self.refreshed = 0.0
        self.overall = bars.add_task(self._count(), total=runs, score="", unit="")

    def _count(self) -> str:
        return f"{self.done} of {self.runs} runs" + (f", {self.failed} failed" if self.failed else "")

    def started(self, job: Job) -> None:
        self.active[job.name] = job, self.bars.add_task(job.name, total=self.rows, score="", unit="evaluations")

    def ended(self, job: Job, finished: bool) -> None:
        self._read_on(job.name)
        bar = self.bars.tasks[self.bars.task_ids.index(self.active.pop(job.name)[1])]
        self.bars.remove_task(bar.id)
        self.sizes.pop(job.name, None)
        self.done += finished
        self.failed += not finished
        self.bars.update(self.overall, completed=self.done + self.failed, description=self._count())
        if finished and not self.bars.console.is_terminal:
            self.say(f"{self._count()}: {job.name}, {bar.fields['score']}, {bar.elapsed or 0:.0f} s")

    def refresh(self) -> None:
        if time.monotonic() - self.refreshed < 0.2:
            return
        self.refreshed = time.monotonic()
        for name in self.active:
            self._read_on(name)

    def _read_on(self, name: str) -> None:
        job, bar = self.active[name]
        log = JsonLines(job.path / "metrics.jsonl", Row)
        size = log.path.stat().st_size if log.path.exists() else 0
        if size != self.sizes.get(name, 0):
            self.sizes[name] = size
            history = log.read()
            score = f"score {finite_or_nan(history[-1]['score']):.4g}" if history else ""
            self.bars.update(bar, completed=len(history), score=score)

    def say(self, text: str) -> None:
        self.bars.console.print(text, markup=False, highlight=False)


class _Unfailing:
    """A stream that ignores write errors: a run of hours must not end because its progress cannot be shown."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self.stream.flush()


def columns() -> list[ProgressColumn]:
    """Returns the columns of a run's line: how many evaluations are done, and the time left, within 80 characters.

    A task has the fields ``unit`` (what is counted) and ``score``.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    return [
        TextColumn("{task.description}", markup=False),
        BarColumn(12),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
        TextColumn("{task.fields[score]}"),
    ]


@contextmanager
def display(runs: int, rows: int | None, *, shown: bool) -> Iterator[Display]:
    """Yields `Bars` for ``runs`` runs of ``rows`` rows each (None: unknown), or a `Display` that shows nothing."""
    if not shown or runs == 0:
        yield Display()
        return
    from rich.console import Console
    from rich.progress import Progress

    # if writing to the stream fails, Rich ends the process without a message
    console = None if sys.stdout is None else Console(file=cast(TextIO, _Unfailing(sys.stdout)))
    with Progress(*columns(), console=console) as bars:
        yield Bars(bars, runs, rows)
