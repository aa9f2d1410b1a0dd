"""Processes of tests: forks of a process that has imported already, and two that train together."""

import multiprocessing
import os
import signal
import socket
import sys
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist

# Forks of a server that imports once and runs nothing: a fork of the process that tests would inherit its threads and,
# where there is one, its GPU.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.imported"])


class Forked:
    """``target(*args)`` in a process of its own; what it says is in a file.

    Args:
        said: the file for its standard output and standard error.
        target, args: what it runs; they are pickled.
    """

    def __init__(self, said, target, *args):
        self.said = said
        self._process = FORKS.Process(target=_run, args=(said, dict(os.environ), target, args))
        self._process.start()
        self.pid = self._process.pid

    def running(self):
        return self._process.is_alive()

    def send_signal(self, number):
        os.kill(self.pid, number)

    def wait(self, timeout=60):
        """Its exit status, negative for a signal; TimeoutError if it is still running after so many seconds."""
        self._process.join(timeout)
        if self.running():
            raise TimeoutError(f"still running after {timeout} s: {self.said.read_text()}")
        return self._process.exitcode


def _run(said, environment, target, args):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    torch.set_num_threads(1)
    try:
        target(*args)
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
    finally:
        sys.stdout.flush()


def torchruns_variables(count):
    """What torchrun, which takes seconds to start, tells each of so many processes: a dictionary a rank."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    told = {"WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    return [{**told, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def two(store):
    """Makes this process the first of two; the second is a fork of it, so that what they import is imported once.

    Args:
        store: a file that does not exist yet, by which they find each other.

    Returns:
        The rank, and for `end` the child, which the second has not.
    """
    child = os.fork() or None  # before torch has any threads
    rank = 0 if child else 1
    torch.set_num_threads(1)
    found = dist.FileStore(store, 2)
    dist.init_process_group("gloo", timeout=timedelta(minutes=5), store=found, rank=rank, world_size=2)
    return rank, child


def end(child=None):
    """Leaves with status 0, past Python's own shutdown, and not before a forked ``child``.

    After fully_shard the process group's threads outlive destroy_process_group, and one that wakes while Python
    shuts down aborts the process: seen once in some hundred runs, with every result written.
    """
    dist.barrier()
    dist.destroy_process_group()
    if child is not None:
        os.waitpid(child, 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
