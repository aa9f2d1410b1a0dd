"""Times block shapes of the Triton kernels beside those in the launcher's table, which is made from the results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from conditioned_attention.attention.fused import launch as fused_launch
from conditioned_attention.attention.fused.launch import Blocks, Inputs, Options
from conditioned_attention.attention.triton.machine import interpreted
from conditioned_attention.bench.cases import GPU_CASES, Case, by_name
from conditioned_attention.bench.judge import first_line
from conditioned_attention.bench.results import measure_missing, time_columns
from conditioned_attention.bench.settings import Settings
from conditioned_attention.profiling.clock import interleave, seconds_of

KERNELS = ("attend", "keys_and_values", "queries")  # in the order of the table's rows
CASES = ("d64_n1024", "d64_n4096_causal", "d128_n1024", "d128_n4096_causal")
_SHAPES = {  # queries, keys, warps, stages
    "attend": ((128, 64, 4, 3), (128, 64, 8, 3), (128, 128, 8, 2), (128, 128, 8, 3), (64, 64, 4, 3), (128, 32, 4, 4)),
    "keys_and_values": (
        (64, 128, 8, 3), (64, 128, 8, 2), (32, 128, 8, 3), (32, 128, 4, 3), (64, 64, 4, 3), (128, 128, 8, 2),
    ),
    "queries": ((128, 64, 8, 3), (128, 64, 4, 3), (128, 32, 4, 4), (128, 128, 8, 2), (64, 64, 4, 3)),
}  # fmt: skip
CANDIDATES = {kernel: tuple(Blocks(*shape) for shape in shapes) for kernel, shapes in _SHAPES.items()}

# Relative error of results against those of the table's own blocks: half precision's rounding, far below a mistake.
_TOLERANCE = 0.05


@dataclass(frozen=True)
class BlocksSettings(Settings):
    """How block shapes are timed.

    Attributes:
        rounds: rounds of measurement; in each, every shape has one turn.
        calls: calls in a row in each turn.
        device: device to measure on; on a CPU the kernels run in Triton's interpreter, which says nothing about speed.
        dtype: dtype of all inputs.
    """

    rounds: int = 7
    calls: int = 20
    device: Literal["cpu", "cuda"] = "cuda"
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"

    def check(self) -> None:
        super().check()
        if self.device == "cpu" and not interpreted():
            raise ValueError("device='cpu' needs TRITON_INTERPRET=1")


@dataclass(frozen=True)
class BlocksRow:
    """One shape of one kernel's blocks in one case.

    Attributes:
        case, kernel: what was timed: ``attend`` in forward, the others in backward, where the rest is as in the table.
        queries, keys, warps, stages: as in `launch.Blocks`.
        status, note: ``"measured"``, ``"failed"`` (mostly for lack of shared memory) or ``"wrong"``, and why.
        ratio, p20, p80: time over that of the table's own shape, median and percentiles of the rounds' ratios.
        milliseconds: of one call, median of the rounds.
    """

    case: str
    kernel: str
    queries: int
    keys: int
    warps: int
    stages: int
    status: str
    note: str = ""
    ratio: float | None = None
    p20: float | None = None
    p80: float | None = None
    milliseconds: float | None = None
    rounds_milliseconds: list[float] = field(default_factory=list)


def run_blocks(cases: Sequence[Case], settings: BlocksSettings, folder: Path) -> Iterator[list[BlocksRow]]:
    """Times what ``folder``/blocks.csv does not hold yet, and yields the rows of every case and kernel in turn."""
    settings.check()
    groups = {
        (case.name, kernel): partial(measure_blocks, case, kernel, CANDIDATES[kernel], settings)
        for case in cases
        for kernel in KERNELS
    }
    return measure_missing(folder / "blocks.csv", BlocksRow, settings, groups, attrgetter("case", "kernel"))


def measure_blocks(case: Case, kernel: str, candidates: Sequence[Blocks], settings: BlocksSettings) -> list[BlocksRow]:
    """One row per shape, the table's own first."""
    device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
    work = _work(case, kernel, device, dtype)
    table = fused_launch._SINGLE if dtype == torch.float32 else fused_launch._HALF
    width = next(up_to for up_to in table if case.query[3] <= up_to)
    own = table[width][KERNELS.index(kernel)]
    shapes = list(dict.fromkeys([own, *candidates]))
    truth, found, samples = work(), {}, {}
    for blocks in shapes:
        instead = partial(_instead, table, width, kernel, blocks)
        found[blocks] = _judge(work, instead, truth)
        if found[blocks][0] == "measured":
            samples[blocks] = partial(_sample, work, instead, settings.calls, device)
    if own not in samples:
        raise RuntimeError(f"{kernel} of {case.name} cannot be measured with the table's own blocks: {found[own][1]}")
    times = dict(zip(samples, interleave(list(samples.values()), settings.rounds, warmup=1)))
    columns = {blocks: time_columns(mine, times[own]) for blocks, mine in times.items()}
    return [BlocksRow(case.name, kernel, *blocks, *found[blocks], **columns.get(blocks, {})) for blocks in shapes]


def _work(case: Case, kernel: str, device: torch.device, dtype: torch.dtype) -> Callable[[], tuple[Tensor, ...]]:
    """A function that launches the kernel and returns its results."""
    drawn = case.inputs(device, dtype)
    inputs = Inputs(*(tensor.detach() for tensor in (drawn.query, drawn.key, drawn.value)))
    options = Options(case.causal, case.query[3] ** -0.5, 0.0, 0, 1e-6, "output", "stopped")
    if kernel == "attend":
        return lambda: fused_launch.forward(inputs, options)
    results = fused_launch.forward(inputs, options)
    return lambda: fused_launch.backward(drawn.upstream, inputs, *results, options, False)[:3]


@contextmanager
def _instead(table: dict[int, Any], width: int, kernel: str, blocks: Blocks) -> Iterator[None]:
    """Puts these blocks for one kernel into the table for the time of the context."""
    before, i = table[width], KERNELS.index(kernel)
    table[width] = (*before[:i], blocks, *before[i + 1 :])
    try:
        yield
    finally:
        table[width] = before


def _judge(
    work: Callable[[], tuple[Tensor, ...]], instead: Callable[[], AbstractContextManager[Any]], truth: Sequence[Tensor]
) -> tuple[str, str]:
    try:
        with instead():
            results = work()
    except Exception as error:  # Triton's own, of which there are many; the other shapes are timed all the same
        return "failed", f"{type(error).__name__}: {first_line(error)}"
    pairs = zip(results, truth)
    errors = [float((mine - true).abs().max() / true.abs().max().clamp_min(1e-6)) for mine, true in pairs]
    if all(error <= _TOLERANCE for error in errors):  # NaN is not
        return "measured", ""
    return "wrong", f"off by {', '.join(f'{error:.1e}' for error in errors)}"


def _sample(
    work: Callable[[], object], instead: Callable[[], AbstractContextManager[Any]], calls: int, device: torch.device
) -> float:
    """Seconds of one call, from so many calls in a row."""

    def all_calls() -> None:
        for _ in range(calls):
            work()

    with instead():
        return seconds_of(all_calls, device) / calls


def find_blocks_cases(names: Sequence[str]) -> list[Case]:
    """The cases with these names, or `CASES` if none are given; raises ValueError for an unknown name."""
    return by_name(names or CASES, GPU_CASES, "case")
