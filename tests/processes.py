"""What the processes of a test have in common."""

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist


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
