"""What a variant costs: time and memory of a training step, against the baseline's, in one process."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader

from conditioned_attention.experiments.task import Task
from conditioned_attention.experiments.training import Training, parameter_groups
from conditioned_attention.experiments.variants import Variant

_WARMUP = 3


def measure_cost(
    task: Task, settings: Training, variants: Sequence[Variant], rounds: int = 30, threads: int = 1
) -> dict[str, Any]:
    """Time and peak memory of one training step of each variant, relative to the first.

    The variants take turns, one step each, so that a machine that slows down slows all of them; the order within a
    round alternates.  The ratio is the median of the rounds' ratios.

    Args:
        task, settings: what is trained; the batch is a micro-batch of the settings, in float32.
        variants: the baseline first.
        rounds: how many turns.
        threads: of torch, for the rest of the process.

    Returns:
        ``{"threads", "rounds", "variants": {name: {"milliseconds", "time_ratio", "time_p20", "time_p80",
        "peak_mebibytes", "memory_ratio"}}}``.  The peak counts what a step allocates beyond parameters and optimizer
        state, those included.
    """
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch_size = settings.batch_size // settings.accumulation
    batch = next(iter(DataLoader(task.train_data(), batch_size, collate_fn=task.collate)))
    batch = _to(batch, device)
    with torch.random.fork_rng():
        steps = [_training_step(task, settings, variant, batch, device) for variant in variants]
        for _ in range(_WARMUP):
            for step, _ in steps:
                step()
        times = _interleave([step for step, _ in steps], rounds, device)
        peaks = [held + _peak_of(step, device) for step, held in steps]
    rows: dict[str, Any] = {}
    for i, variant in enumerate(variants):
        ratios = sorted(mine / base for mine, base in zip(times[i], times[0]))
        rows[variant.name] = {
            "milliseconds": 1000 * statistics.median(times[i]),
            "time_ratio": statistics.median(ratios),
            "time_p20": ratios[len(ratios) // 5],
            "time_p80": ratios[-1 - len(ratios) // 5],
            "peak_mebibytes": peaks[i] / 2**20,
            "memory_ratio": peaks[i] / peaks[0],
        }
    return {"threads": torch.get_num_threads(), "rounds": rounds, "batch_size": batch_size, "variants": rows}


def _training_step(
    task: Task, settings: Training, variant: Variant, batch: Any, device: torch.device
) -> tuple[Callable[[], None], int]:
    """A function that takes one optimizer step, and the bytes that parameters and optimizer state hold."""
    torch.manual_seed(0)
    model = task.build_model()
    variant.apply(model)
    model.to(device).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, settings.weight_decay), lr=settings.lr)

    def step() -> None:
        task.loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    held = 3 * sum(p.numel() * p.element_size() for p in model.parameters())  # AdamW keeps two numbers a parameter
    return step, held


def _interleave(steps: Sequence[Callable[[], None]], rounds: int, device: torch.device) -> list[list[float]]:
    times: list[list[float]] = [[] for _ in steps]
    for turn in range(rounds):
        order = range(len(steps)) if turn % 2 == 0 else reversed(range(len(steps)))
        for i in order:
            began = time.perf_counter()
            steps[i]()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[i].append(time.perf_counter() - began)
    return times


def _peak_of(step: Callable[[], None], device: torch.device) -> int:
    """The most bytes that one step had allocated at a time, beyond what was there before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _no_chatter(), torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        step()
    kineto = profiler.profiler.kineto_results
    changes = [(event.start_ns(), event.nbytes()) for event in kineto.events() if event.name() == "[memory]"]
    live = peak = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        live += change
        peak = max(peak, live)
    return peak


@contextmanager
def _no_chatter() -> Iterator[None]:
    """The profiler's C++ side announces itself on standard error; that is not for the user of a table."""
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def _to(batch: Any, device: torch.device) -> Any:
    from accelerate.utils import send_to_device

    return send_to_device(batch, device)
