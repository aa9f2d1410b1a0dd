"""Measures time as ratios within one run: contestants take turns, and the ratio of each round is what counts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch


class Stopwatch:
    """Adds up the time between ``start`` and ``stop``; on CUDA by events, so that nothing has to wait in between.

    Consecutive calls then take as long as the longer of the host's launches and the device's work, as in training.
    This requires an idle device at ``start``: call ``wait`` before, or ``seconds`` of an earlier watch.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._began: Any = None
        self._ran: list[tuple[Any, Any]] = []

    def wait(self) -> None:
        """Waits until the device has finished its work; a CPU always has."""
        if self._cuda:
            torch.cuda.synchronize()

    def start(self) -> None:
        self._began = self._now()

    def stop(self) -> None:
        self._ran.append((self._began, self._now()))

    def seconds(self) -> float:
        """The sum so far; on CUDA this waits for the device."""
        self.wait()
        if self._cuda:
            return float(sum(began.elapsed_time(ended) for began, ended in self._ran)) / 1000
        return float(sum(ended - began for began, ended in self._ran))

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """The seconds that one call takes."""
    watch = Stopwatch(device)
    watch.start()
    work()
    watch.stop()
    return watch.seconds()


def turn_order(turn: int, contestants: int) -> list[int]:
    """The order of a round: each contestant is at each place equally often, and its predecessors vary.

    The zigzag 0, n-1, 1, n-2, … shifted by one per round is a Latin square in which, for an even number of contestants,
    everyone follows everyone else once in n rounds, so what one leaves in the caches does not always affect the same
    next one.

    >>> [turn_order(turn, 4) for turn in range(2)]
    [[0, 3, 1, 2], [1, 0, 2, 3]]
    """
    zigzag = (-(place + 1) // 2 if place % 2 else place // 2 for place in range(contestants))
    return [(step + turn) % contestants for step in zigzag]


def interleave(samples: Sequence[Callable[[], float]], rounds: int, warmup: int = 0) -> list[list[float]]:
    """Runs contestants in turns; returns each one's seconds in each round, without the first ``warmup`` rounds."""
    times: list[list[float]] = [[] for _ in samples]
    for turn in range(warmup + rounds):
        for i in turn_order(turn, len(samples)):
            times[i].append(samples[i]())
    return [values[warmup:] for values in times]


class PairedRatio(NamedTuple):
    """The rounds' ratios to the baseline: their median, and the 20th and 80th percentile."""

    median: float
    p20: float
    p80: float


def paired_ratio(times: Sequence[float], base: Sequence[float]) -> PairedRatio:
    """Divides ``times`` by ``base`` round by round, since a machine that slows down slows both.

    >>> paired_ratio([2.0, 6.0, 3.0], [1.0, 2.0, 3.0])
    PairedRatio(median=2.0, p20=1.0, p80=3.0)
    """
    ratios = sorted(mine / other for mine, other in zip(times, base))
    return PairedRatio(statistics.median(ratios), ratios[len(ratios) // 5], ratios[-1 - len(ratios) // 5])
