"""Measures attention on tensors: all contestants are judged on the same inputs, then timed in turns, with memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from conditioned_attention.bench.cases import Attend, Case, Inputs
from conditioned_attention.bench.contestants import PLAIN, Contestant, contestants
from conditioned_attention.bench.heap import keep_freed_memory
from conditioned_attention.bench.judge import judge
from conditioned_attention.bench.results import measure_missing, time_columns
from conditioned_attention.bench.settings import Settings
from conditioned_attention.profiling.clock import Stopwatch, interleave
from conditioned_attention.profiling.memory import held_bytes, peak_bytes

Mode = Literal["forward", "backward", "both"]

_WARMUP = 2

# How many forwards run before the clock of their backwards starts.  A GPU that is still busy with a forward would hide
# launches of the backward, the more the longer the forward takes, so the clock starts after it.  The time of a single
# backward would then be mostly that of its launches, so several are timed together.
_GRAPHS = {"cpu": 1, "cuda": 8}


@dataclass(frozen=True)
class OperatorSettings(Settings):
    """How attention is measured.

    Attributes:
        modes: what to time: forward without gradients; backward alone, with its forward pass outside the clock; or
            both, with autograd recording.
        rounds: rounds of measurement; in each, every contestant has one turn.
        threads: PyTorch threads.
        device: device to measure on.
        dtype: dtype of all inputs.
        batch_size: batch size, in place of each case's own and in its unit (for Swin: windows).
        contestants: ``"usual"``; or ``"gpu"``, with each of PyTorch's backends separately, and without RMSNorm.
        compiled: include contestants that use torch.compile; on a CPU this needs a C++ compiler.
        sample_milliseconds: each sample repeats the call so often that plain attention takes about this long.
    """

    modes: tuple[Mode, ...] = ("forward", "backward", "both")
    rounds: int = 30
    threads: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: int | None = None
    contestants: Literal["usual", "gpu"] = "usual"
    compiled: bool = True
    sample_milliseconds: float = 20.0

    def check(self) -> None:
        super().check()
        if not 0 < self.sample_milliseconds < math.inf:
            raise ValueError(f"sample_milliseconds must be positive and finite, got {self.sample_milliseconds}")
        if not self.modes or len(set(self.modes)) < len(self.modes):
            raise ValueError(f"modes must be at least one and all different, got {self.modes}")


@dataclass(frozen=True)
class OperatorRow:
    """The measurements of one contestant in one mode of one case.

    Attributes:
        case, shape, mode, contestant: what was measured.
        status, note: as in `Verdict`; a contestant that was not measured has no times.
        ratio, p20, p80: time over plain attention's, median and percentiles of the rounds' ratios.
        milliseconds: of one call, median of the rounds.
        repetitions: calls per sample.
        output_error, gradient_error: as in `Verdict`.
        held_bytes, held_ratio: bytes of the different storages held for backward through an output projection, inputs
            and weights not counted, and their ratio to plain attention's.
        extra_floats_a_row: 4-byte numbers held beyond plain attention, for each row of each head.
        peak_bytes, peak_ratio: the most that forward and backward through the projection had allocated at a time.
        rounds_milliseconds: of one call, each round; rows of one case and mode are paired by position.
    """

    case: str
    shape: str
    mode: str
    contestant: str
    status: str
    note: str
    ratio: float | None = None
    p20: float | None = None
    p80: float | None = None
    milliseconds: float | None = None
    repetitions: int | None = None
    output_error: float | None = None
    gradient_error: float | None = None
    held_bytes: int | None = None
    held_ratio: float | None = None
    extra_floats_a_row: float | None = None
    peak_bytes: int | None = None
    peak_ratio: float | None = None
    rounds_milliseconds: list[float] = field(default_factory=list)


def run_operator(cases: Sequence[Case], settings: OperatorSettings, folder: Path) -> Iterator[list[OperatorRow]]:
    """Measures the cases that ``folder``/operator.csv does not hold yet, and yields every case's rows in turn."""
    settings.check()
    torch.set_num_threads(settings.threads)
    keep_freed_memory()
    size = settings.batch_size
    sized = [replace(case, query=(size or case.query[0], *case.query[1:])) for case in cases]
    groups = {case.name: partial(measure_case, case, settings) for case in sized}
    return measure_missing(folder / "operator.csv", OperatorRow, settings, groups, attrgetter("case"))


def measure_case(
    case: Case, settings: OperatorSettings, competing: Sequence[Contestant] | None = None
) -> list[OperatorRow]:
    """Measures one case: rows by mode, then contestant; ``competing`` replaces the usual contestants (plain first)."""
    if settings.compiled:
        torch.compiler.reset()  # otherwise the shapes of earlier cases count as recompilations
    device = torch.device(settings.device)
    inputs = case.inputs(device, getattr(torch, settings.dtype))
    if competing is None:
        competing = contestants(case, settings.compiled, gpu=settings.contestants == "gpu")
    verdicts = judge(competing, inputs)
    fit = [contestant for contestant in competing if verdicts[contestant.name].status == "measured"]
    memory = _memory(case, fit, inputs)
    rows = []
    for mode in settings.modes:
        times, repetitions = _times(mode, fit, inputs, settings)
        for name, verdict in verdicts.items():
            numbers: dict[str, Any] = {}
            if name in times:
                numbers = time_columns(times[name], times[PLAIN]) | memory[name] | {"repetitions": repetitions}
            rows.append(OperatorRow(case.name, case.shape, mode, name, **vars(verdict), **numbers))
    return rows


def _times(
    mode: Mode, competing: Sequence[Contestant], inputs: Inputs, settings: OperatorSettings
) -> tuple[dict[str, list[float]], int]:
    """Seconds per call by contestant and round, and the number of calls in a sample, which is the same for all."""
    plain = partial(_sample, mode, competing[0], inputs)
    plain(1)
    fastest = min(plain(1) for _ in range(3))
    repetitions = max(1, math.ceil(settings.sample_milliseconds / (1000 * fastest)))
    samples = [partial(_sample, mode, contestant, inputs, repetitions) for contestant in competing]
    times = interleave(samples, settings.rounds, _WARMUP)
    return dict(zip((contestant.name for contestant in competing), times)), repetitions


def _sample(mode: Mode, contestant: Contestant, inputs: Inputs, repetitions: int) -> float:
    """Seconds of one call, from so many calls in a row on the same inputs: what fits into a cache is in it."""
    watch, attend = Stopwatch(inputs.query.device), contestant.attend
    with torch.set_grad_enabled(mode != "forward"), contestant.surroundings():
        if mode == "backward":
            _repeat_backward(attend, inputs, repetitions, watch, _GRAPHS[inputs.query.device.type])
        else:
            watch.start()
            for _ in range(repetitions):
                output = attend(*inputs.arguments)
                if mode == "both":
                    torch.autograd.grad(output, inputs.leaves, inputs.upstream)
                del output  # otherwise the next one would need memory of its own beside it
            watch.stop()
    return watch.seconds() / repetitions


def _repeat_backward(attend: Attend, inputs: Inputs, repetitions: int, watch: Stopwatch, graphs: int) -> None:
    """Times so many backwards, whose forwards run outside the clock, ``graphs`` of them at a time.

    Every backward has a new graph, because a compiled one cannot be walked twice.
    """
    for done in range(0, repetitions, graphs):
        outputs = [attend(*inputs.arguments) for _ in range(min(graphs, repetitions - done))]
        watch.wait()
        watch.start()
        while outputs:  # each graph is freed with its output, as in training
            torch.autograd.grad(outputs.pop(), inputs.leaves, inputs.upstream)
        watch.stop()


def _memory(case: Case, competing: Sequence[Contestant], inputs: Inputs) -> dict[str, dict[str, Any]]:
    """Held and peak bytes by contestant, measured through the projection that follows attention in a model.

    The projection matters because it keeps its input: a contestant that keeps the output for backward pays nothing for
    it, and one that keeps another tensor of that size pays in full.
    """
    query = inputs.query
    width = case.merge_heads(inputs.upstream).shape[-1]
    weight = torch.zeros(width, width, device=query.device, dtype=query.dtype, requires_grad=True)
    exist = [tensor for tensor in (*inputs.arguments, weight) if tensor is not None]

    def forward(one: Contestant) -> Tensor:
        with one.surroundings():
            return case.merge_heads(one.attend(*inputs.arguments)) @ weight

    def step(one: Contestant) -> None:
        output = forward(one)
        torch.autograd.grad(output, [*inputs.leaves, weight], torch.ones_like(output))

    held = [held_bytes(partial(forward, one), exist) for one in competing]
    peak = [peak_bytes(partial(step, one), query.device) for one in competing]
    rows = math.prod(query.shape[:-1])
    return {
        one.name: {
            "held_bytes": held[i],
            "held_ratio": held[i] / held[0],
            "extra_floats_a_row": (held[i] - held[0]) / (4 * rows),
            "peak_bytes": peak[i],
            "peak_ratio": peak[i] / peak[0],
        }
        for i, one in enumerate(competing)
    }
