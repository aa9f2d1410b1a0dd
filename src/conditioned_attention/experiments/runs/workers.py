"""Runs jobs in worker processes, one at a time in each; replaces those that die, and gives them time to stop."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch

from conditioned_attention._streams import survive
from conditioned_attention.experiments.runs.progress import Display
from conditioned_attention.experiments.runs.run import Job, Train, note_failure, run_job

GRACE = 60.0  # seconds in which a worker that is to stop may write its checkpoint

_READY = "ready"


def run_in_workers(train: Train, jobs: Sequence[Job], workers: int, threads: int, display: Display) -> None:
    """Runs the jobs, ``workers`` at a time, each with ``threads`` of torch's threads.

    If a worker dies, its job fails, with the cause in ``error.txt``, and the worker is replaced.  If all of the first
    workers die before they are ready, no more are started, and the other jobs are not run.

    Ctrl-C and SIGTERM are passed on to the workers as SIGTERM.  `training.train` then writes a checkpoint, for which it
    has a minute; a second Ctrl-C kills the workers.

    Raises:
        TypeError: ``train`` cannot be pickled.
    """
    try:
        pickle.dumps(train)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise TypeError(
            f"workers={workers} needs a train that can be pickled, a module-level function: {error}"
        ) from error
    pool = Pool(lambda: Worker(train, threads), workers, jobs, display)
    with _sigterm_raises():
        try:
            while pool.step():
                pass
        except BaseException:
            display.say(f"stopping: runs may write checkpoints for {GRACE:.0f} seconds; Ctrl-C again ends them at once")
            stop(pool.workers)
            raise


class Worker:
    """A process that runs jobs, seen from outside.

    Attributes:
        job: the job that it was given and has not ended; None without one.
        ready: whether it has ever sent a message.
        talks: whether its end of the pipe is open.
    """

    def __init__(self, train: Train, threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # forking a process that has used torch's threads can hang
        self.pipe, self._theirs = context.Pipe()
        # not a daemon: those may have no children, such as the processes of a data loader
        self.process = context.Process(target=_work, args=(train, self._theirs, threads))
        self.job: Job | None = None
        self.ready, self.talks = False, True

    def start(self) -> None:
        """Starts the process."""
        self.process.start()
        self._theirs.close()  # now the pipe breaks when the process ends

    def give(self, job: Job | None) -> None:
        """Gives the worker its next job; None tells it to end."""
        self.job = job
        with suppress(OSError):  # it has just died, as its sentinel will tell
            self.pipe.send(job)

    def hear(self) -> bool | None:
        """Returns whether its job has finished (True) or failed (False); None if it is still running."""
        try:
            while self.talks and self.pipe.poll():
                message = self.pipe.recv()
                self.ready = True
                if message != _READY:
                    self.job = None
                    return bool(message)
        except (EOFError, OSError):  # it is about to end, as its sentinel will tell
            self.talks = False
        return None

    def death(self) -> str:
        """Returns how the process died; to be called only if it did."""
        code = self.process.exitcode or 0
        how = f"exit code {code}"
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            how = f"{name} (out of memory?)" if name == "SIGKILL" else name
        if not self.ready:
            return f"its worker process died while it started, before the run: {how} (can it import train?)"
        return f"its worker process died: {how}"


class Pool:
    """The workers, and the jobs that wait for them."""

    def __init__(self, new_worker: Callable[[], Worker], size: int, jobs: Sequence[Job], display: Display) -> None:
        self.new_worker, self.size, self.waiting, self.display = new_worker, size, deque(jobs), display
        self.workers: list[Worker] = []
        self.ever_ready = self.ever_died = False

    def step(self) -> bool:
        """Starts workers, waits a moment for news of them and hands out jobs; False when nothing is left to do."""
        while self.waiting and len(self.workers) < self.size and (self.ever_ready or not self.ever_died):
            worker = self.new_worker()
            self.workers.append(worker)  # first, so that whatever interrupts its start finds it
            worker.start()
            self._hand_out(worker)
        if not self.workers:
            return False
        news: list[Any] = [worker.process.sentinel for worker in self.workers]
        news += [worker.pipe for worker in self.workers if worker.talks]
        multiprocessing.connection.wait(news, timeout=0.2)
        for worker in list(self.workers):
            self._attend(worker)
        self.display.refresh()
        return True

    def _attend(self, worker: Worker) -> None:
        alive = worker.process.is_alive()  # asked first: what it said before it died is then in the pipe
        job = worker.job
        finished = worker.hear()
        self.ever_ready |= worker.ready
        if job is not None and finished is not None:
            self.display.ended(job, finished)
            if alive:
                self._hand_out(worker)
        if not alive:
            self._bury(worker)

    def _hand_out(self, worker: Worker) -> None:
        job = self.waiting.popleft() if self.waiting else None
        if job is not None:
            self.display.started(job)
        worker.give(job)

    def _bury(self, worker: Worker) -> None:
        self.workers.remove(worker)
        worker.process.join()
        self.ever_died |= worker.process.exitcode != 0
        if worker.job is not None:
            note_failure(worker.job, worker.death() + "\n")
            self.display.ended(worker.job, False)


def stop(workers: Sequence[Worker]) -> None:
    """Ends the processes by SIGTERM, and after a minute by SIGKILL; an exception cuts that minute short."""
    processes = [worker.process for worker in workers if worker.process.pid is not None]
    try:
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + GRACE
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Makes SIGTERM raise SystemExit, so that this process can end its workers, unless another handler is set."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _work(train: Train, pipe: Any, threads: int) -> None:
    """The main function of a worker process: runs jobs until there are none, and ends whenever its parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that a loop may write first
    threading.Thread(target=_end_with_parent, daemon=True).start()
    survive(quiet=True)
    torch.set_num_threads(threads)
    pipe.send(_READY)
    try:
        with suppress(EOFError):  # the parent is gone
            while (job := pipe.recv()) is not None:
                pipe.send(run_job(train, job))
    except KeyboardInterrupt:  # a terminal's Ctrl-C reaches every process, and a loop may have listened to it
        sys.exit(130)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
