"""What a variant costs: time and memory of a training step, against the baseline's, in one process."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.experiments.training.optimizer import build_optimizer
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.variants.variant import Variant
from conditioned_attention.profiling.clock import interleave, paired_ratio, seconds_of
from conditioned_attention.profiling.memory import peak_bytes

_WARMUP = 3


def measure_cost(
    task: Task, settings: Training, variants: Sequence[Variant], rounds: int = 30, threads: int = 1
) -> dict[str, Any]:
    """Time and peak memory of one training step of each variant, relative to the first.

    The variants take turns, one step each, so that a machine that slows down slows all of them; the order
    changes from round to round.  The ratio is the median of the rounds' ratios.

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
        times = interleave([partial(seconds_of, step, device) for step, _ in steps], rounds, _WARMUP)
        peaks = [held + peak_bytes(step, device) for step, held in steps]
    rows: dict[str, Any] = {}
    for i, variant in enumerate(variants):
        ratio = paired_ratio(times[i], times[0])
        rows[variant.name] = {
            "milliseconds": 1000 * statistics.median(times[i]),
            "time_ratio": ratio.median,
            "time_p20": ratio.p20,
            "time_p80": ratio.p80,
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
    variant.apply_structure(model)
    model.to(device).train()
    optimizer = build_optimizer(model, settings)

    def step() -> None:
        task.loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    held = 3 * sum(p.numel() * p.element_size() for p in model.parameters())  # AdamW keeps two numbers a parameter
    return step, held


def _to(batch: Any, device: torch.device) -> Any:
    from accelerate.utils import send_to_device

    return send_to_device(batch, device)
