"""Estimates what a run will take before it starts: parameters, steps, FLOPs, memory, and hours on a named GPU."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from conditioned_attention.experiments.planning.counting import StepCount, count_step
from conditioned_attention.experiments.planning.gpus import GPUS, find_gpu
from conditioned_attention.experiments.tasks.task import Task, number_of
from conditioned_attention.experiments.training.batches import training_batches
from conditioned_attention.experiments.training.launch import Launch
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.training.step import step_of_variant
from conditioned_attention.experiments.variants.catalogue import find_variants
from conditioned_attention.experiments.variants.variant import Variant, check_suited
from conditioned_attention.profiling.clock import seconds_of

# Share of the peak rate that training is assumed to reach: an assumption, not a measurement.  Published runs of large
# transformers reach 0.3 to 0.5; models with narrow matrices, and small batches, reach much less.
UTILISATION = 0.35

# Time that PyTorch takes to launch an operation on a GPU, which counts where the GPU itself is faster: of the order of
# ten microseconds with Python and autograd.  An assumption too; without it small models would seem to train in no time.
OPERATION_SECONDS = 1e-5

# Steps are timed on this machine only where they cannot take long, and fit: FLOPs and bytes of an optimizer step.
_TIMED_FLOPS = {"cpu": 1e11, "cuda": 1e13}
_TIMED_BYTES = 2 * 2**30
_TIMED_STEPS = 3
_PATIENCE = 5.0  # seconds per variant; half precision may be emulated, a hundred times slower than the FLOPs suggest


@dataclass(frozen=True)
class Timing:
    """Measured seconds of an optimizer step: the median of a few steps, after one to warm up."""

    device: str
    threads: int
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """What one run of one variant will take.

    Memory is that of one process.  It is the sum of what certainly exists at the same time, or nearly so; it leaves out
    temporaries of single operations, the evaluation, and blocks that are put together from their shards while they are
    used.  FLOPs are those of training alone.

    Attributes:
        variant: name of the variant.
        parameters, trainable: how many numbers.
        steps: optimizer steps; an upper bound if there is a budget of seconds.
        samples: samples in these steps, over all processes.
        tokens: the same in tokens; None if samples are not counted in tokens.
        micro_batch, accumulation: samples at a time in one process, and how many micro-batches an optimizer step takes.
        precision: precision of autocast.
        micro_batch_flops: FLOPs of one micro-batch, forward and backward.
        operations: operations of one micro-batch, forward and backward.
        flops: FLOPs of the whole run, in all processes.
        recomputed_flops: forward FLOPs of one micro-batch that are computed again; they count in the hours alone.
        gpus: how many processes, each with one GPU, share a batch.
        sharded: whether they also share weights, gradients and optimizer state.
        weight_bytes: bytes of parameters and buffers.
        gradient_bytes, optimizer_bytes: bytes of the gradients, and of the optimizer state.
        ema_bytes: bytes of the running average, a whole copy of the model; 0 without one.
        activation_bytes: bytes that one micro-batch holds for backward.
        checkpoint_bytes: bytes of one checkpoint on disk.
        budget_seconds: `Training.seconds`; None without such a budget.
        gpu: the GPU that the hours are for, a key of `GPUS`; None if none was named.
        utilisation: the share of its peak rate that is assumed.
        gpu_seconds: time on ``gpus`` of that GPU: the FLOPs at that share of its peak rate, or `OPERATION_SECONDS` for
            each operation, whichever takes longer, without communication between GPUs; None without a GPU, or if it
            has no hardware for the precision.
        least_gpu_seconds: lower bound of that time: every FLOP at the peak rate, or every byte of weights, optimizer
            state and activations at the peak bandwidth, whichever takes longer.
        timing: time of steps on this machine; None if they were not measured.
    """

    variant: str
    parameters: int
    trainable: int
    steps: int
    samples: int
    tokens: int | None
    micro_batch: int
    accumulation: int
    precision: str
    micro_batch_flops: int
    operations: int
    flops: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    ema_bytes: int
    activation_bytes: int
    checkpoint_bytes: int
    recomputed_flops: int = 0
    gpus: int = 1
    sharded: bool = False
    budget_seconds: float | None = None
    gpu: str | None = None
    utilisation: float = UTILISATION
    gpu_seconds: float | None = None
    least_gpu_seconds: float | None = None
    timing: Timing | None = None

    @property
    def memory_bytes(self) -> int:
        """All memory that is counted."""
        return self.fixed_bytes + self.activation_bytes

    @property
    def fixed_bytes(self) -> int:
        """The part of the memory that does not depend on the micro-batch."""
        whole = self.weight_bytes + self.gradient_bytes + self.optimizer_bytes + self.ema_bytes
        return -(-whole // self.gpus) if self.sharded else whole

    @property
    def gpu_hours(self) -> float | None:
        """Hours of all GPUs together; None if ``gpu_seconds`` is None."""
        return None if self.gpu_seconds is None else self.gpus * self.gpu_seconds / 3600

    @property
    def fits(self) -> bool | None:
        """Whether the run fits into the usable part of the GPU's memory; None without a GPU."""
        return None if self.gpu is None else self.memory_bytes <= GPUS[self.gpu].usable_bytes

    @property
    def measured_seconds(self) -> float | None:
        """Seconds of the whole run on this machine, from the steps that were timed; at most the budget."""
        return None if self.timing is None else self.within_budget(self.steps * self.timing.seconds)

    def within_budget(self, seconds: float) -> float:
        """Returns ``seconds``, or the budget of seconds if that is less."""
        return seconds if self.budget_seconds is None else min(seconds, self.budget_seconds)

    def to_json(self) -> dict[str, Any]:
        """Returns the estimate as plain data."""
        names = ("memory_bytes", "fits", "gpu_hours", "measured_seconds")
        more = {name: getattr(self, name) for name in names}
        return {**dataclasses.asdict(self), **more}


def estimate(
    task: Task,
    settings: Training,
    variants: Sequence[str | Variant],
    *,
    gpu: str | None = None,
    gpus: int = 1,
    utilisation: float = UTILISATION,
    launch: Launch | None = None,
    measure: bool = True,
) -> list[Estimate]:
    """Estimates what training a task will take, one row per variant.

    One micro-batch of data is read; nothing is trained or written.

    Args:
        task, settings: what is trained, and how.
        variants: names or `Variant` objects.
        gpu: the GPU to estimate hours and memory for, a key of `GPUS`.
        gpus: how many of them share each micro-batch.
        utilisation: share of that GPU's peak rate that is assumed, in (0, 1].
        launch: whether they share the weights too (``parallel="fsdp2"``), and whether blocks are computed again in
            backward.
        measure: time a few steps on this machine, if they are small enough to take only seconds.

    Raises:
        ValueError: an unknown GPU or variant, a share out of range, a batch that is larger than the training set or
            cannot be divided among so many GPUs, or a task whose step depends on values in the data (see `count_step`).
    """
    from accelerate.utils import slice_tensors

    launch = launch or Launch()
    gpu = None if gpu is None else find_gpu(gpu)
    if not 0 < utilisation <= 1:
        raise ValueError(f"utilisation must be in (0, 1], got {utilisation}")
    if gpus < 1 or settings.micro_batch % gpus:
        raise ValueError(f"gpus must be at least 1 and divide the {settings.micro_batch} samples at a time, got {gpus}")
    chosen = find_variants(variants)
    check_suited(chosen, causal=task.causal)
    steps = settings.steps(number_of(task.train_data()), task.tokens_per_sample)
    # the first micro-batch that a run trains on: its shapes are what counts
    batch = next(training_batches(task.train_data(), settings, seed=0, collate=task.collate_train))
    share = slice_tensors(batch, slice(0, settings.micro_batch // gpus))  # as Accelerate cuts it
    like_gpu = gpu is not None or torch.cuda.is_available()
    rows = []
    for variant in chosen:
        count = count_step(task, variant, share, settings, gpu=like_gpu, recompute=launch.recompute)
        row = _estimate(task, settings, variant, steps, count, gpus)
        row = _on_gpu(dataclasses.replace(row, sharded=launch.parallel == "fsdp2"), gpu, utilisation)
        if measure and _quick(row):
            row = dataclasses.replace(row, timing=_time(task, settings, variant, batch, launch))
        rows.append(row)
    return rows


def _estimate(task: Task, settings: Training, variant: Variant, steps: int, count: StepCount, gpus: int) -> Estimate:
    flops = count.forward_flops + count.backward_flops
    full = settings.full_steps(number_of(task.train_data()), task.tokens_per_sample)
    samples = full * settings.batch_size
    ema = count.weight_bytes if settings.averages else 0
    counted = (
        "parameters", "trainable", "operations", "weight_bytes", "optimizer_bytes", "activation_bytes",
        "recomputed_flops",
    )  # fmt: skip
    return Estimate(
        **{name: getattr(count, name) for name in counted},
        **{name: getattr(settings, name) for name in ("accumulation", "precision")},
        micro_batch=settings.micro_batch // gpus, gpus=gpus,
        variant=variant.name, steps=steps, samples=samples,
        tokens=samples * task.tokens_per_sample if task.tokens_per_sample > 1 else None,
        micro_batch_flops=flops, flops=full * settings.accumulation * gpus * flops,
        gradient_bytes=count.trainable_bytes, ema_bytes=ema,
        checkpoint_bytes=count.saved_bytes + count.optimizer_bytes + (ema and count.saved_bytes),
        budget_seconds=settings.seconds,
    )  # fmt: skip


def _on_gpu(row: Estimate, name: str | None, utilisation: float) -> Estimate:
    """Adds the time on a GPU to an estimate."""
    if name is None:
        return row
    row, gpu = dataclasses.replace(row, gpu=name, utilisation=utilisation), GPUS[name]
    peak = gpu.flops_a_second(row.precision)  # type: ignore[arg-type]
    if peak is None:
        return row
    # AdamW reads weight, gradient and both moments, and writes all but the gradient; what is held for backward is
    # written once and read once.
    update = (2 * (row.gradient_bytes + row.optimizer_bytes) + row.gradient_bytes) / (row.gpus if row.sharded else 1)
    traffic = row.steps * (update + 2 * row.accumulation * row.activation_bytes)
    done = row.flops / row.gpus * (1 + row.recomputed_flops / row.micro_batch_flops)
    least = max(done / peak, traffic / (1e9 * gpu.bandwidth))
    launches = row.steps * row.accumulation * row.operations * OPERATION_SECONDS
    seconds = max(done / (peak * utilisation), launches, least)
    return dataclasses.replace(row, gpu_seconds=row.within_budget(seconds), least_gpu_seconds=row.within_budget(least))


def _quick(row: Estimate) -> bool:
    """Whether a few steps on this machine fit into memory and take only seconds."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    runs_here = (row.precision, device) != ("fp16", "cpu")
    flops = row.gpus * row.accumulation * row.micro_batch_flops
    return runs_here and row.memory_bytes <= _TIMED_BYTES and flops <= _TIMED_FLOPS[device]


def _time(task: Task, settings: Training, variant: Variant, batch: Any, launch: Launch) -> Timing:
    """Times a few real optimizer steps on the same micro-batch, on this machine."""
    from accelerate.utils import send_to_device

    accelerator = Launch().accelerator(settings.precision, settings.accumulation)
    device = accelerator.device
    with torch.random.fork_rng():
        step = step_of_variant(task, settings, variant, accelerator, recompute=launch.recompute)
        take = partial(step, itertools.repeat(send_to_device(batch, device)), settings.accumulation)
        seconds = [seconds_of(take, device)]
        while len(seconds) <= _TIMED_STEPS and sum(seconds) < _PATIENCE:
            seconds.append(seconds_of(take, device))
    return Timing(device.type, torch.get_num_threads(), statistics.median(seconds[1:] or seconds))
