"""What a variant costs: time and memory of a training step relative to the baseline's, in one process."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.experiments.training.batches import training_batches
from conditioned_attention.experiments.training.launch import Launch
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.training.step import step_of_variant
from conditioned_attention.experiments.variants.variant import Variant
from conditioned_attention.profiling.clock import interleave, paired_ratio, seconds_of
from conditioned_attention.profiling.memory import peak_bytes

_WARMUP = 3


def measure_cost(
    task: Task, settings: Training, variants: Sequence[Variant], rounds: int = 30, threads: int = 1
) -> dict[str, Any]:
    """Measures time and peak memory of one training step of each variant, relative to the first.

    The step is the same as in training, including precision, accumulation, clipping and the average of the weights.
    The variants take turns, one step each, so that a machine that slows down slows all of them; the order changes from
    round to round.  The ratio is the median of the rounds' ratios.

    Args:
        task, settings: what is trained, and how; all micro-batches of a step are the same one.
        variants: the variants, with the baseline first.
        rounds: how many steps each variant takes.
        threads: torch's threads, for the rest of the process.

    Returns:
        ``{"threads", "rounds", "micro_batch", "precision", "accumulation", "variants": {name: {"milliseconds",
        "time_ratio", "time_p20", "time_p80", "peak_mebibytes", "memory_ratio"}}}``.  The peak consists of parameters,
        optimizer state and average, plus what a step allocates beyond them.
    """
    from accelerate.utils import send_to_device

    torch.set_num_threads(threads)
    accelerator = Launch().accelerator(settings.precision, settings.accumulation)
    device = accelerator.device
    with torch.random.fork_rng():
        batch = next(training_batches(task.train_data(), settings, seed=0, collate=task.collate_train))
        batches = itertools.repeat(send_to_device(batch, device))
        steps = [step_of_variant(task, settings, variant, accelerator) for variant in variants]
        taken = [partial(step, batches, settings.accumulation) for step in steps]
        times = interleave([partial(seconds_of, take, device) for take in taken], rounds, _WARMUP)
        peaks = [step.fixed_bytes + peak_bytes(take, device) for step, take in zip(steps, taken)]
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
    how = {"micro_batch": settings.micro_batch, "precision": settings.precision, "accumulation": settings.accumulation}
    return {"threads": torch.get_num_threads(), "rounds": rounds, **how, "variants": rows}
