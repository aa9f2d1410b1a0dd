"""``--dry-run``: prints what ``train`` and ``compare`` would take, without training or writing anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from conditioned_attention.experiments.planning.estimate import OPERATION_SECONDS, UTILISATION, Estimate, estimate
from conditioned_attention.experiments.planning.gpus import GPU, GPUS
from conditioned_attention.experiments.recipes.recipe import Recipe
from conditioned_attention.experiments.recipes.registry import settings_of
from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.experiments.training.launch import Launch

_PIPED = 200  # columns where the output is no terminal


@dataclass(frozen=True)
class DryRun:
    """What a dry run reports."""

    dry_run: bool = False
    """Only print what this would take: parameters, steps, FLOPs, memory and hours.  Nothing is trained or written."""
    gpu: str | None = None
    """With --dry-run: hours and memory for this GPU, such as H100; see `conditioned-attention list gpus`."""
    gpus: int = 1
    """With --dry-run: how many of these GPUs share a batch."""
    utilisation: float = UTILISATION
    """With --dry-run: the share of the GPU's peak rate to assume; a guess."""
    json: bool = False
    """With --dry-run: print JSON instead of a table."""

    @property
    def asked(self) -> bool:
        """Whether this is a dry run; if not, raises ValueError for options that only a dry run has."""
        if not self.dry_run and self != DryRun():
            raise ValueError("--gpu, --gpus, --utilisation and --json are options of a dry run: add --dry-run")
        return self.dry_run

    def __call__(
        self,
        recipe: Recipe,
        variants: Sequence[str],
        seeds: int = 1,
        *,
        tuning: int = 0,
        threads: int | None = None,
        launch: Launch | None = None,
    ) -> int:
        """Prints the estimate of every variant, and of all runs together; returns the exit status, 0.

        ``tuning`` is how many runs each variant has besides those of the seeds, to find its learning rate.
        """
        if seeds < 1 or (threads or 1) < 1:
            raise ValueError(f"seeds must be at least one, and so must threads, got {seeds} and {threads}")
        torch.set_num_threads(threads or torch.get_num_threads())
        task = task_to_plan(recipe)
        how: Any = {"gpu": self.gpu, "gpus": self.gpus, "utilisation": self.utilisation, "launch": launch}
        rows = estimate(task, recipe.training, variants, **how)
        if self.json:
            data = {
                "settings": settings_of(recipe),
                "data": task.data_in_words(),
                "seeds": seeds,
                "tuning_runs": tuning,
            }
            data |= {"runs": [row.to_json() for row in rows], "total": total(rows, seeds + tuning)}
            print(json.dumps(data, indent=2, default=str, allow_nan=False))
        else:
            print(*task.data_in_words(), sep="\n")
            print_estimates(rows, seeds, tuning)
        return 0


def task_to_plan(recipe: Recipe) -> Task:
    """Returns a recipe's task, or its stand-in of the same shapes, which needs no data, if the recipe has one."""
    stand_in: Callable[[], Task | None] = getattr(recipe, "stand_in", lambda: None)
    return stand_in() or recipe.task()


def total(rows: Sequence[Estimate], times: int) -> dict[str, Any]:
    """Sums up ``times`` runs of every variant, one after another; None where a variant's number is not known."""
    summed: dict[str, Any] = {"runs": times * len(rows), "flops": times * sum(row.flops for row in rows)}
    for name in ("gpu_seconds", "least_gpu_seconds", "measured_seconds"):
        values = [getattr(row, name) for row in rows]
        summed[name] = None if None in values else times * sum(values)
    return summed


def print_estimates(rows: Sequence[Estimate], seeds: int = 1, tuning: int = 0) -> None:
    """Prints a table with a column for each variant, and sentences on what it assumes."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = _PIPED
    grid = Table(box=None, padding=(0, 2, 0, 0))
    grid.add_column("one run")
    for row in rows:
        grid.add_column(row.variant, justify="right")
    cells = [_cells(row) for row in rows]
    for name in cells[0]:
        grid.add_row(name, *(cell[name] for cell in cells))
    console.print(grid)
    for line in _sentences(rows, seeds, tuning):
        console.print(line, highlight=False, markup=False)


def _cells(row: Estimate) -> dict[str, str]:
    trainable = "" if row.trainable == row.parameters else f" ({_short(row.trainable)} trainable)"
    cells = {
        "parameters": _short(row.parameters) + trainable,
        "optimizer steps": f"{'at most ' * (row.budget_seconds is not None)}{row.steps:,}",
        "samples": f"{row.samples:,}",
    }
    if row.tokens is not None:
        cells["tokens"] = _short(row.tokens)
    cells |= {
        "FLOPs of an optimizer step": _short(row.gpus * row.accumulation * row.micro_batch_flops),
        "FLOPs of the run": _short(row.flops),
        "memory" if row.gpus == 1 else "memory of each process": size(row.memory_bytes),
        "  parameters and buffers": size(row.weight_bytes),
        "  gradients": size(row.gradient_bytes),
        "  optimizer": size(row.optimizer_bytes),
    }
    if row.ema_bytes:
        cells["  running average"] = size(row.ema_bytes)
    cells[f"  activations of {row.micro_batch} samples"] = size(row.activation_bytes)
    cells["a checkpoint on disk"] = size(row.checkpoint_bytes)
    if row.gpu is not None:
        cells[f"time on {_many(row)}"] = "?" if row.gpu_seconds is None else duration(row.gpu_seconds)
        cells["  at the least"] = "?" if row.least_gpu_seconds is None else duration(row.least_gpu_seconds)
        cells["GPU hours"] = "?" if row.gpu_hours is None else _three(row.gpu_hours)
    measured = row.measured_seconds
    cells["time here, measured"] = "not measured" if measured is None else duration(measured)
    return cells


def _many(row: Estimate) -> str:
    return f"one {row.gpu}" if row.gpus == 1 else f"{row.gpus} × {row.gpu}"


def _sentences(rows: Sequence[Estimate], seeds: int, tuning: int) -> list[str]:
    first, lines = rows[0], []
    summed = total(rows, seeds + tuning)
    if summed["runs"] > 1:
        lines.append(_total_sentence(summed, _many(first)))
    if tuning:
        lines.append(
            f"{tuning * len(rows)} of them tune the learning rate, on nine tenths of the training data; "
            "here they count in full."
        )
    if first.budget_seconds is not None:
        lines.append(
            f"The budget is {duration(first.budget_seconds)} of training a run: steps, samples and FLOPs are upper "
            "bounds, and times are cut at it."
        )
    lines.append(
        "FLOPs: forward and backward of the model's matrix products, convolutions and attention, without "
        "recomputation, evaluation and measurement.  Memory: what is held, without temporaries, "
        f"{'float32' if first.precision == 'no' else f'under {first.precision} autocast, weights in float32'}."
    )
    lines += _gpu_sentences(rows) if first.gpu else [f"--gpu NAME estimates the hours on one of {', '.join(GPUS)}."]
    lines += _timing_sentences(rows)
    return lines


def _total_sentence(summed: dict[str, Any], gpus: str) -> str:
    words = [f"All {summed['runs']} runs, one after another: {_short(summed['flops'])} FLOPs"]
    if summed["gpu_seconds"] is not None:
        words.append(f"{duration(summed['gpu_seconds'])} on {gpus}")
    if summed["measured_seconds"] is not None:
        words.append(f"{duration(summed['measured_seconds'])} here")
    return ", ".join(words) + "."


def _gpu_sentences(rows: Sequence[Estimate]) -> list[str]:
    first = rows[0]
    assert first.gpu is not None
    gpu = GPUS[first.gpu]
    if first.gpu_seconds is None:
        lines = [
            f"{first.gpu} has no tensor cores for {first.precision}, so no time is estimated: "
            "--precision fp16 uses those that it has."
        ]
    else:
        rate = {"no": gpu.fp32, "bf16": gpu.bf16, "fp16": gpu.fp16}[first.precision]
        words = "float32 outside the tensor cores, as PyTorch computes it" if first.precision == "no" else "dense"
        lines = [
            f"Time on {_many(first)}: {first.utilisation:.0%} of its peak of {rate:g} TFLOP/s ({words}) is assumed, "
            f"and at least {1e6 * OPERATION_SECONDS:g} µs for each of the {first.operations:,} operations of a "
            "micro-batch; neither is measured.  At the least: all of the peak, or of the memory's bandwidth."
        ]
        lines += ["Communication between GPUs is not counted."] * (first.gpus > 1)
        lines += ["The blocks' forward is computed a second time, in the hours alone."] * bool(first.recomputed_flops)
        if first.sharded:
            lines.append(
                "Weights, gradients and optimizer are sharded over the GPUs; the blocks in use are gathered besides."
            )
    for row in rows:
        if not row.fits:
            lines.append(_does_not_fit(row, gpu))
    return lines


def _does_not_fit(row: Estimate, gpu: GPU) -> str:
    """Says what does not fit into the GPU's memory, and what would help."""
    words = f"{row.variant} does not fit: {size(row.memory_bytes)} of {gpu.memory} GB, a tenth of which is kept free."
    room = gpu.usable_bytes - row.fixed_bytes
    if room <= 0:
        return (
            f"{words}  Parameters, gradients and optimizer alone are too much for one {row.gpu}: "
            "--parallel fsdp2 shards them."
        )
    half = "fp16" if gpu.bf16 is None else "bf16"
    help_ = [f"--precision {half}"] * (row.precision == "no")
    wanted = row.accumulation * row.activation_bytes / room
    batch_size = row.micro_batch * row.accumulation
    enough = [n for n in range(row.accumulation + 1, batch_size + 1) if batch_size % n == 0 and n >= wanted]
    if not row.recomputed_flops:
        help_.append("--recompute")
    if enough:
        help_.insert(0, f"--accumulation {enough[0]} (micro-batches of {batch_size // enough[0]})")
    return f"{words}  What helps: {' or '.join([*help_, 'a GPU with more memory'])}."


def _timing_sentences(rows: Sequence[Estimate]) -> list[str]:
    timing = rows[0].timing
    if timing is None:
        return ["A step is too large, or cannot run here, to be timed on this machine in seconds."]
    threads = f"{timing.threads} thread{'s' * (timing.threads > 1)}"
    steps = ", ".join(f"{row.variant} {1000 * row.timing.seconds:.3g} ms" for row in rows if row.timing is not None)
    return [
        f"Time here: measured on this machine ({timing.device}, {threads}), optimizer steps alone, without data, "
        f"evaluation and measurement: {steps}."
    ]


def _short(number: float) -> str:
    """Formats a count with three digits, such as 86.6 M; from 10¹⁵ on with an exponent."""
    if number < 1000 or number >= 1e15:
        return f"{number:.3g}"
    unit, power = next((u, p) for u, p in (("T", 12), ("G", 9), ("M", 6), ("k", 3)) if number >= 10**p)
    return f"{_three(number / 10**power)} {unit}"


def size(count: float) -> str:
    """Formats bytes in kB, MB or GB, which are powers of 1000 as on data sheets.

    >>> size(346_274_816)
    '346 MB'
    """
    unit, power = next((u, p) for u, p in (("GB", 9), ("MB", 6), ("kB", 3), ("B", 0)) if count >= 10**p or p == 0)
    return f"{_three(count / 10**power)} {unit}"


def _three(value: float) -> str:
    """Formats a number with three digits, but never fewer than it has before the decimal point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Formats seconds in the two largest units.

    >>> duration(7812), duration(42.4), duration(300_000)
    ('2 h 10 min', '42.4 s', '3 d 11 h')
    """
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, hours, days = round(seconds / 60), round(seconds / 3600), seconds / 86400
    if seconds < 3570:
        return f"{minutes} min"
    if days < 2:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"
