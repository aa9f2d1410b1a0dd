"""The viscous Burgers equation on the circle: Gaussian initial functions and their pseudo-spectral solutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from conditioned_attention.experiments.data.fingerprint import checksum, checksum_of_bytes
from conditioned_attention.experiments.data.made import kept_or_made

VISCOSITY = 0.1
GRID = 512  # points of the solver's grid; a model sees every n-th of them
_STEP = 1e-3
_VERSION = 1  # of the numbers: raise it with every change that alters them
_TOGETHER = 128  # functions solved at a time, few enough to stay in the processor's cache


class FieldPairs(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of functions on a grid, before and after: (S, n) each, float32; `__getitems__` returns whole batches.

    ``origin`` is plain data that say how the functions were made.  The fingerprint has it in place of their values,
    because solvers round differently on other machines.
    """

    def __init__(self, before: Tensor, after: Tensor, origin: Mapping[str, Any] | None = None) -> None:
        if before.dim() != 2 or before.shape != after.shape:
            raise ValueError(f"functions before and after must both be (S, n), got {before.shape} and {after.shape}")
        self.before, self.after = before, after
        self.origin = dict(origin or {"checksum": checksum_of_bytes(before.contiguous().numpy())})

    def __len__(self) -> int:
        return len(self.before)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.before[index], self.after[index]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        rows = torch.as_tensor(indices)
        return self.before[rows], self.after[rows]

    def subset(self, rows: Sequence[int]) -> FieldPairs:
        """The functions in these rows, in this order."""
        return FieldPairs(*self.__getitems__(rows), {**self.origin, "rows": checksum(rows)})

    def fingerprint(self) -> dict[str, Any]:
        """The number of functions, and how they were made."""
        return {"items": len(self), **self.origin}


def burgers_pairs(first: int, count: int, points: int, cache_dir: Path | None = None) -> FieldPairs:
    """u(·, 0) and u(·, 1) for the functions number ``first`` to ``first + count - 1``, on a grid of ``points``.

    They are computed on 512 points at the first call, which takes a few seconds per thousand, and kept in a file.

    Args:
        first, count: which functions; each depends on its number alone.
        points: of the grid that the functions are returned on; a divisor of 512.
        cache_dir: folder for the file, which may be deleted at any time; default
            `conditioned_attention.experiments.data.scan.default_cache_dir`.

    Raises:
        ValueError: there would be no function, or ``points`` is not a divisor of 512.
        OSError: ``cache_dir`` cannot be written.
    """
    if count < 1 or first < 0:
        raise ValueError(f"first must be at least 0 and count at least 1, got {first} and {count}")
    if points < 2 or GRID % points:
        raise ValueError(f"points must be a divisor of {GRID} and at least 2, got {points}")
    made = {"version": _VERSION, "viscosity": VISCOSITY, "grid": GRID, "step": _STEP, "first": first}
    pairs = kept_or_made("burgers", _Pairs, made, count, 1, cache_dir, lambda: _solved(first, count))
    before, after = (torch.from_numpy(np.ascontiguousarray(functions[:, :: GRID // points])) for functions in pairs)
    return FieldPairs(before, after, {**made, "points": points})


class _Pairs(NamedTuple):
    """Functions before and after, (S, 512) each, float32."""

    before: np.ndarray
    after: np.ndarray


def _solved(first: int, count: int) -> _Pairs:
    before = initial_functions(range(first, first + count))
    return _Pairs(before.astype(np.float32), solve(before).astype(np.float32))


def initial_functions(numbers: Sequence[int], grid: int = GRID) -> np.ndarray:
    """Gaussian functions (S, grid), float64, on the circle of length 1, with mean 0 and covariance 625 (−Δ + 25)⁻².

    As in Li et al. 2021 (arXiv 2010.08895), section 5.1.  In Fourier space the coefficients are independent, and mode k
    has the standard deviation 25 / ((2πk)² + 25).  Each function depends on its number alone, and is the same on every
    grid as far as the grid can represent it: modes above 255 are 0.
    """
    modes = np.arange(GRID // 2)
    deviation = 25 / ((2 * np.pi * modes) ** 2 + 25)
    coefficients = np.zeros((len(numbers), grid // 2 + 1), dtype=complex)
    kept = min(GRID // 2, grid // 2)
    for row, number in enumerate(numbers):
        real, imaginary = np.random.Generator(np.random.Philox(key=number)).standard_normal((2, GRID // 2))
        drawn = deviation * (real + 1j * imaginary) / np.sqrt(2)
        drawn[0] = deviation[0] * real[0]
        coefficients[row, :kept] = drawn[:kept]
    return np.fft.irfft(coefficients, n=grid, norm="forward")


def solve(before: np.ndarray, time: float = 1.0, step: float = _STEP) -> np.ndarray:
    """Solves ``u_t + u u_x = 0.1 u_xx`` on the circle of length 1, from u(·, 0) to u(·, time).

    Pseudo-spectral: derivatives are taken in Fourier space and products on the grid, and the highest third of the modes
    is left out (the 2/3 rule).  The viscous term is solved exactly by an integrating factor, the rest by fourth-order
    Runge–Kutta.

    Args:
        before: u(·, 0) at x = 0, 1/n, …, (S, n), float64.
        time: the time to solve for.
        step: length of a time step; ``time`` is divided into equal steps of about this length.

    Returns:
        (S, n), float64.
    """
    parts = [before[i : i + _TOGETHER] for i in range(0, len(before), _TOGETHER)]
    return np.concatenate([_solve(part, time, max(1, round(time / step))) for part in parts])


def _solve(before: np.ndarray, time: float, steps: int) -> np.ndarray:
    grid, step = before.shape[1], time / steps
    modes = np.arange(grid // 2 + 1)
    wavenumbers = 2 * np.pi * modes
    derivative = np.where(modes < grid / 3, -0.5j * wavenumbers, 0)  # of −u²/2
    half = np.exp(-VISCOSITY * wavenumbers**2 * step / 2)
    whole = half**2

    def slope(u: np.ndarray) -> np.ndarray:
        return derivative * np.fft.rfft(np.fft.irfft(u, n=grid) ** 2)

    u = np.where(modes < grid / 3, np.fft.rfft(before), 0)
    for _ in range(steps):
        a = slope(u)
        b = slope(half * (u + step / 2 * a))
        c = slope(half * u + step / 2 * b)
        d = slope(whole * u + step * half * c)
        u = whole * u + step / 6 * (whole * a + 2 * half * (b + c) + d)
    return np.fft.irfft(u, n=grid)
