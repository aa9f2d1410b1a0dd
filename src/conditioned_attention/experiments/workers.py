"""Runs in worker processes."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from conditioned_attention.experiments.run import Job, Train, run_job


def run_in_workers(
    train: Train,
    jobs: Sequence[Job],
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
    arguments = (train, queue, threads)
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


def _work(train: Train, queue: Any, threads: int) -> None:
    """A worker process: runs jobs until there are none, and ends with its parent, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    while (job := queue.get()) is not None:
        run_job(train, job, lambda: None)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
