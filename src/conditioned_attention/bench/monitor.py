"""What watching costs: a measurement of the condition monitor beside the training steps that it stands between."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from conditioned_attention.bench.checks import check_counts, check_device
from conditioned_attention.bench.heap import keep_freed_memory
from conditioned_attention.bench.models import StepModel
from conditioned_attention.bench.results import measure_missing
from conditioned_attention.bench.step import trainee
from conditioned_attention.choices import Choices
from conditioned_attention.experiments.variants.catalogue import find_variants
from conditioned_attention.measure import ConditionMonitor
from conditioned_attention.profiling.clock import interleave, paired_ratio, seconds_of
from conditioned_attention.profiling.memory import peak_bytes

_WARMUP = 1


@dataclass(frozen=True)
class MonitorSettings(Choices):
    """How watching is measured.

    Attributes:
        rounds: turns that a training step and a measurement take.
        threads: threads of torch.
        device: where.
        dtype: of parameters and data.
        batch_size: of training, instead of each model's own; the larger, the less a measurement weighs.
        layers: blocks, instead of each model's own number.
        every: steps between measurements, as in `ConditionMonitor`.
        samples: of the probe batch, and measured of each head.
        variant: what trains.
    """

    rounds: int = 12
    threads: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch_size: int | None = None
    layers: int | None = None
    every: int = 100
    samples: int = 4
    variant: str = "preconditioned"

    def check(self) -> None:
        """Raises ValueError for what cannot be measured."""
        counts = ("rounds", "threads", "batch_size", "layers", "every", "samples")
        check_counts(**{name: getattr(self, name) for name in counts})
        check_device(self.device)
        find_variants([self.variant])


@dataclass(frozen=True)
class MonitorRow:
    """One model.

    Attributes:
        model, shape: which.
        heads: that are measured, in all layers.
        share: time of a measurement over that of ``every`` training steps, median of the rounds.
        p20, p80: percentiles of it.
        step_milliseconds, measurement_milliseconds: medians of the rounds.
        step_peak_bytes, measurement_peak_bytes: the most that each allocates beyond what is there.
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
    groups = {model.name: model for model in models}
    found = measure_missing(
        folder / "monitor.csv",
        MonitorRow,
        settings,
        groups,
        lambda model: [measure_monitor(model, settings)],
        lambda row: row.model,
    )
    return (row for (row,) in found)


def measure_monitor(model: StepModel, settings: MonitorSettings) -> MonitorRow:
    """Steps and measurements in turns, on one model that trains."""
    device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
    model = model.of_size(settings.batch_size, settings.layers)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        (variant,) = find_variants([settings.variant])
        trained = trainee(model, variant, model.batch(model.batch_size), device, dtype)
        probe = trained.place(model.batch(settings.samples)[0])
        monitor = ConditionMonitor(trained.network, probe, every=settings.every, samples=settings.samples, keep=0)
        heads = len(monitor.measure(0))

        def measure() -> None:
            monitor.measure(0)

        steps, measurements = interleave(
            [partial(seconds_of, work, device) for work in (trained.step, measure)], settings.rounds, _WARMUP
        )
        peaks = [peak_bytes(work, device) for work in (trained.step, measure)]
    share = paired_ratio(measurements, [seconds * settings.every for seconds in steps])
    return MonitorRow(
        model=model.name,
        shape=model.shape,
        heads=heads,
        share=share.median,
        p20=share.p20,
        p80=share.p80,
        step_milliseconds=1000 * statistics.median(steps),
        measurement_milliseconds=1000 * statistics.median(measurements),
        step_peak_bytes=peaks[0],
        measurement_peak_bytes=peaks[1],
        rounds_step=[1000 * seconds for seconds in steps],
        rounds_measurement=[1000 * seconds for seconds in measurements],
    )
