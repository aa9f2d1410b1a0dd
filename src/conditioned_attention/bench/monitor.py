"""Measures the cost of the condition monitor: one of its measurements beside the training steps around it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from pathlib import Path

import torch

from conditioned_attention.bench.heap import keep_freed_memory
from conditioned_attention.bench.models import StepModel
from conditioned_attention.bench.results import measure_missing
from conditioned_attention.bench.settings import ModelSettings
from conditioned_attention.bench.step import trainee
from conditioned_attention.experiments.variants.catalogue import find_variants
from conditioned_attention.measure import ConditionMonitor
from conditioned_attention.profiling.clock import interleave, paired_ratio, seconds_of
from conditioned_attention.profiling.memory import peak_bytes

_WARMUP = 1


@dataclass(frozen=True)
class MonitorSettings(ModelSettings):
    """How the cost of monitoring is measured.

    Attributes:
        batch_size: training batch size, in place of each model's own; the larger it is, the less a measurement weighs.
        every: steps between measurements, as in `ConditionMonitor`.
        samples: samples in the probe batch, all of which are measured for each head.
        variant: the variant that trains.
    """

    rounds: int = 12
    every: int = 100
    samples: int = 4
    variant: str = "preconditioned"

    def check(self) -> None:
        super().check()
        find_variants([self.variant])


@dataclass(frozen=True)
class MonitorRow:
    """The cost of monitoring one model.

    Attributes:
        model, shape: the model that was measured.
        heads: the number of heads that are measured, in all layers.
        share: time of a measurement over that of ``every`` training steps, median of the rounds.
        p20, p80: percentiles of that share.
        step_milliseconds, measurement_milliseconds: medians of the rounds.
        step_peak_bytes, measurement_peak_bytes: the most that each allocates beyond what exists before.
        rounds_step, rounds_measurement: milliseconds of each round.
    """

    model: str
    shape: str
    heads: int
    share: float
    p20: float
    p80: float
    step_milliseconds: float
    measurement_milliseconds: float
    step_peak_bytes: int
    measurement_peak_bytes: int
    rounds_step: list[float] = field(default_factory=list)
    rounds_measurement: list[float] = field(default_factory=list)


def run_monitor(models: Sequence[StepModel], settings: MonitorSettings, folder: Path) -> Iterator[MonitorRow]:
    """Measures the models that ``folder``/monitor.csv does not hold yet, and yields every model's row in turn."""
    settings.check()
    torch.set_num_threads(settings.threads)
    keep_freed_memory()
    groups = {model.name: partial(measure_monitor, model, settings) for model in models}
    found = measure_missing(folder / "monitor.csv", MonitorRow, settings, groups, attrgetter("model"))
    return (row for (row,) in found)


def measure_monitor(model: StepModel, settings: MonitorSettings) -> list[MonitorRow]:
    """One row for one model: its training steps and the monitor's measurements take turns."""
    device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
    model = model.of_size(settings.batch_size, settings.layers)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        (variant,) = find_variants([settings.variant])
        trained = trainee(model, variant, model.batch(model.batch_size), device, dtype)
        probe = trained.place(model.batch(settings.samples)[0])
        monitor = ConditionMonitor(trained.network, probe, every=settings.every, samples=settings.samples, keep=0)
        heads = len(monitor.measure(0))
        both: list[Callable[[], object]] = [trained.step, partial(monitor.measure, 0)]
        steps, measurements = interleave([partial(seconds_of, work, device) for work in both], settings.rounds, _WARMUP)
        peaks = [peak_bytes(work, device) for work in both]
    share = paired_ratio(measurements, [seconds * settings.every for seconds in steps])
    rounds = [[1000 * seconds for seconds in times] for times in (steps, measurements)]
    medians = [statistics.median(milliseconds) for milliseconds in rounds]
    of_both = (medians[0], medians[1], peaks[0], peaks[1], rounds[0], rounds[1])
    return [MonitorRow(model.name, model.shape, heads, share.median, share.p20, share.p80, *of_both)]
