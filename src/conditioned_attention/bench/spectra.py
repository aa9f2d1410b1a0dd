"""Measures time and error of singular values, decomposed or estimated, on matrices whose κ is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from pathlib import Path

import torch
from torch import Tensor

from conditioned_attention.bench.results import measure_missing, time_columns
from conditioned_attention.bench.settings import Settings
from conditioned_attention.measure.numbers.randomised import estimate_condition
from conditioned_attention.measure.numbers.spectra import spectrum
from conditioned_attention.profiling.clock import interleave, seconds_of

# matrices, rows, columns: heads of the digits ViT, a ViT-B at 224 pixels, GPT-2 at 512 and 1,024 tokens, weights
SHAPES = ((2304, 17, 16), (256, 197, 64), (128, 512, 64), (64, 1024, 64), (4, 768, 768), (1, 2048, 2048))
_DECADES = (2, 4, 6)
_LARGE = 1024  # columns from which on a matrix is estimated as well


@dataclass(frozen=True)
class SpectraSettings(Settings):
    """How the computation of singular values is measured.

    Attributes:
        rounds: rounds of measurement; in each, every way of computing them has one turn.
        threads: PyTorch threads.
    """

    rounds: int = 7
    threads: int = 1


@dataclass(frozen=True)
class SpectraRow:
    """One route on matrices of one shape and κ.

    Attributes:
        shape: matrices × rows × columns.
        kappa: the κ of the matrices, by construction.
        route: ``svd`` or ``randomised``; version 0.1 had ``gram`` as well, the eigenvalues of AᵀA.
        ratio, p20, p80: time over that of ``svd``, median and percentiles of the rounds' ratios.
        milliseconds: per matrix, median of the rounds.
        error: the largest relative error of κ.
        rounds_milliseconds: of each round, for all matrices.
    """

    shape: str
    kappa: float
    route: str
    ratio: float
    p20: float
    p80: float
    milliseconds: float
    error: float
    rounds_milliseconds: list[float] = field(default_factory=list)


def run_spectra(settings: SpectraSettings, folder: Path) -> Iterator[list[SpectraRow]]:
    """Measures what ``folder``/spectra.csv does not hold yet, and yields the rows of every shape and κ in turn."""
    settings.check()
    torch.set_num_threads(settings.threads)
    groups = {
        (_name(shape), 10.0**decades): partial(measure_spectra, shape, 10.0**decades, settings.rounds)
        for shape in SHAPES
        for decades in _DECADES
    }
    return measure_missing(folder / "spectra.csv", SpectraRow, settings, groups, attrgetter("shape", "kappa"))


def _name(shape: tuple[int, int, int]) -> str:
    return "×".join(map(str, shape))


def measure_spectra(shape: tuple[int, int, int], kappa: float, rounds: int) -> list[SpectraRow]:
    """One row per route, ``svd`` first."""
    matrices = with_kappa(shape, kappa)
    routes: dict[str, Callable[[], Tensor]] = {"svd": lambda: spectrum(matrices).kappa}
    if shape[2] >= _LARGE:
        routes["randomised"] = lambda: torch.tensor([estimate_condition(m).kappa for m in matrices])
    device = torch.device("cpu")
    times = interleave([partial(seconds_of, route, device) for route in routes.values()], rounds, warmup=1)
    rows = []
    for (route, compute), mine in zip(routes.items(), times):
        numbers = time_columns(mine, times[0])
        numbers["milliseconds"] /= shape[0]
        error = float((compute() / kappa - 1).abs().max())
        rows.append(SpectraRow(_name(shape), kappa, route, error=error, **numbers))
    return rows


def with_kappa(shape: tuple[int, int, int], kappa: float) -> Tensor:
    """Matrices in float64 with log-spaced singular values from 1 down to 1/κ, and random directions."""
    count, n, d = shape
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(1, n, d, dtype=torch.float64, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(1, d, d, dtype=torch.float64, generator=generator))
    turned = torch.randn(count, d, generator=generator, dtype=torch.float64).sign()  # each matrix has its own
    values = torch.logspace(0, -math.log10(kappa), min(n, d), dtype=torch.float64)
    made: Tensor = (left * turned[:, None, :] * values) @ right.mT
    return made
