"""Memory of a computation in bytes: the peak of what it allocates, and what it holds for backward."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The most bytes that ``work`` had allocated at any time, beyond what existed before; on CUDA it runs twice."""
    if device.type == "cuda":
        return _peak_on_cuda(work)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _no_chatter(), torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        work()
    kineto = profiler.profiler.kineto_results
    changes = [(event.start_ns(), event.nbytes()) for event in kineto.events() if event.name() == "[memory]"]
    live = peak = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        live += change
        peak = max(peak, live)
    return peak


def _peak_on_cuda(work: Callable[[], object]) -> int:
    """The peak of the bytes that were requested from the allocator.

    What the allocator hands out is up to a megabyte more for each tensor, depending on what was freed before, and that
    would hide one float per row.
    """
    work()  # the first call leaves workspaces of cuBLAS behind, tens of megabytes, for each thread that multiplies
    gc.collect()  # otherwise garbage that is freed during the work makes room for it
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    work()
    return int(torch.cuda.memory_stats()["requested_bytes.all.peak"] - before)


def held_bytes(forward: Callable[[], object], exclude: Iterable[Tensor] = ()) -> int:
    """Counts the bytes of the different storages that the graph of ``forward`` holds for backward.

    Storages are counted, not tensors: views and tensors saved twice count once.  What a compiled graph saves is counted
    as well.

    Args:
        forward: returns its output, whose graph is what is measured.
        exclude: tensors that exist anyway, such as inputs and parameters; their storages do not count.

    >>> import torch
    >>> x = torch.ones(10, requires_grad=True)
    >>> held_bytes(lambda: x.exp().sum(), exclude=[x])  # exp keeps its result
    40
    """
    # By identity and not by address: tensors without data (meta, fake) have storages too, and no address.
    known = {tensor.untyped_storage()._cdata for tensor in exclude}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage._cdata] = storage.nbytes()
        return tensor.detach()  # keeps the storage, but makes no cycle through the graph that would outlive the call

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    del output  # not earlier: while the graph lives, no identity is used twice
    return sum(size for storage, size in held.items() if storage not in known)


@contextmanager
def _no_chatter() -> Iterator[None]:
    """Hides what the profiler's C++ side prints on standard error, which is of no use to the reader of a table."""
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
