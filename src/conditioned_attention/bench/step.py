"""Measures whole training steps of a plain model and of the same model converted, in turns, with their memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conditioned_attention.bench.heap import keep_freed_memory
from conditioned_attention.bench.judge import first_line
from conditioned_attention.bench.models import Batch, StepModel
from conditioned_attention.bench.results import measure_missing, time_columns
from conditioned_attention.bench.settings import ModelSettings
from conditioned_attention.environment import check_torchvision
from conditioned_attention.experiments.training.launch import Launch
from conditioned_attention.experiments.training.optimizer import build_optimizer
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.training.step import Step
from conditioned_attention.experiments.variants.catalogue import find_variants
from conditioned_attention.experiments.variants.variant import Variant
from conditioned_attention.functional import IMPLEMENTATIONS, implementation
from conditioned_attention.profiling.clock import interleave, seconds_of
from conditioned_attention.profiling.memory import held_bytes, peak_bytes

_WARMUP = 2
_PRECONDITIONED = "preconditioned"


@dataclass(frozen=True)
class StepSettings(ModelSettings):
    """How training steps are measured.

    Attributes:
        variants: variants that take turns; the first is the baseline.
        implementations: implementations of attention; for each, one more contestant is the preconditioned model that
            uses it in place of the one that ``"auto"`` picks.
    """

    variants: tuple[str, ...] = ("baseline", "preconditioned", "head_rmsnorm")
    implementations: tuple[str, ...] = ()

    def check(self) -> None:
        super().check()
        find_variants(self.variants)
        unknown = [name for name in self.implementations if name not in IMPLEMENTATIONS]
        if unknown:
            raise ValueError(f"implementation {unknown[0]!r} is unknown; valid are {', '.join(IMPLEMENTATIONS)}")


@dataclass(frozen=True)
class StepRow:
    """The training step of one variant of one model.

    Attributes:
        model, shape, variant: what was measured; the first variant of a model is the baseline.
        note: what the conversion did; the baseline's says which implementation failed, and how.
        ratio, p20, p80: time of a step over the baseline's, median and percentiles of the rounds' ratios.
        milliseconds: of a step, median of the rounds.
        held_bytes, held_ratio: different storages that the loss holds for backward, parameters and data not counted.
        peak_bytes, peak_ratio: parameters and optimizer state, and the most that a step allocates beyond them.
        rounds_milliseconds: of each round; a model's rows are paired by position.
    """

    model: str
    shape: str
    variant: str
    note: str
    ratio: float
    p20: float
    p80: float
    milliseconds: float
    held_bytes: int
    held_ratio: float
    peak_bytes: int
    peak_ratio: float
    rounds_milliseconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Trainee:
    """A model in training: what it is, a function that makes one step, and what it holds in memory."""

    note: str
    network: nn.Module
    place: Callable[[torch.Tensor], torch.Tensor]  # data to the model's device and dtype
    step: Callable[[], None]
    held: Callable[[], int]
    fixed_bytes: Callable[[], int]  # weights and optimizer state, after a step


def run_step(models: Sequence[StepModel], settings: StepSettings, folder: Path) -> Iterator[list[StepRow]]:
    """Measures the models that ``folder``/step.csv does not hold yet, and yields every model's rows in turn."""
    settings.check()
    torch.set_num_threads(settings.threads)
    keep_freed_memory()
    groups = {model.name: partial(measure_model, model, settings) for model in models}
    return measure_missing(folder / "step.csv", StepRow, settings, groups, attrgetter("model"))


def measure_model(model: StepModel, settings: StepSettings) -> list[StepRow]:
    """One row per variant, the baseline first."""
    device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
    model = model.of_size(settings.batch_size, settings.layers)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make = partial(trainee, model, batch=model.batch(model.batch_size), device=device, dtype=dtype)
        trainees = {variant.name: make(variant) for variant in find_variants(settings.variants)}  # all on one batch
        (preconditioned,) = find_variants([_PRECONDITIONED])
        failed = []
        for impl in settings.implementations:
            try:
                trainees[f"{_PRECONDITIONED}, {impl}"] = _with_implementation(make(preconditioned), impl)
            except ValueError:
                raise
            except Exception as error:  # a kernel may raise anything; the others are measured all the same
                failed.append(f"{impl} failed: {type(error).__name__}: {first_line(error)}")
        samples = [partial(seconds_of, each.step, device) for each in trainees.values()]
        times = interleave(samples, settings.rounds, _WARMUP)
        held = [each.held() for each in trainees.values()]
        peak = [each.fixed_bytes() + peak_bytes(each.step, device) for each in trainees.values()]
    rows = []
    for i, (name, each) in enumerate(trainees.items()):
        memory: Any = {"held_bytes": held[i], "held_ratio": held[i] / held[0]}
        memory |= {"peak_bytes": peak[i], "peak_ratio": peak[i] / peak[0]}
        note = each.note if i else "; ".join(failed)
        rows.append(StepRow(model.name, model.shape, name, note, **memory, **time_columns(times[i], times[0])))
    return rows


def trainee(model: StepModel, variant: Variant, batch: Batch, device: torch.device, dtype: torch.dtype) -> Trainee:
    """A fresh model of this variant, ready to train on this batch."""

    def place(tensor: torch.Tensor) -> torch.Tensor:
        moved = tensor.detach().to(device, dtype if tensor.is_floating_point() else tensor.dtype)
        return moved.requires_grad_(tensor.requires_grad)

    batch = tuple(place(tensor) for tensor in batch)
    torch.manual_seed(0)
    check_torchvision()
    network: nn.Module = model.build(model.layers)
    report = variant.leaving(model.left_alone).apply_structure(network)
    network.to(device, dtype).train()
    accelerator = Launch().accelerator("no", 1, cpu=device.type == "cpu")
    settings = Training(lr=1e-4, weight_decay=0.01, clip=None)
    take = Step(accelerator, network, build_optimizer(network, settings), model.loss)
    exist = [*network.parameters(), *network.buffers(), *batch]

    def step() -> None:
        take(iter([batch]), 1)
        for tensor in batch:
            tensor.grad = None

    def held() -> int:
        return held_bytes(lambda: model.loss(network, batch), exist)

    note = "" if report is None else f"{len(report.converted)} of {len(report.rows)} attention modules converted"
    return Trainee(note, network, place, step, held, lambda: take.fixed_bytes)


def _with_implementation(each: Trainee, impl: str) -> Trainee:
    """The same model with one implementation; raises ValueError if that cannot run in it."""

    def inside(work: Callable[[], Any]) -> Any:
        with implementation(impl):
            return work()

    inside(each.step)  # raises where it cannot run
    return replace(each, step=partial(inside, each.step), held=partial(inside, each.held))
