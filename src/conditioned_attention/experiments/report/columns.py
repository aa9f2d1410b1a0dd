"""Reads long logs line by line into arrays, so that millions of lines need memory only for their numbers.

Shapes: S steps, L layers, H heads.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conditioned_attention.experiments.evidence.stored import HeadRow
from conditioned_attention.storage.json_lines import JsonLines

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Columns:
    """Columns of a log; the numbers of a text column are positions in ``words``."""

    values: dict[str, Numbers]
    words: list[str]

    def __getitem__(self, name: str) -> Numbers:
        return self.values[name]

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))


def read_columns(path: Path, names: Sequence[str], schema: Any, *, null: float = math.nan) -> Columns:
    """Reads the named columns of a JSON Lines file; they are empty if there is no file.

    A value that a line does not have is NaN.

    Args:
        path: path of the log.
        names: names of the columns.
        schema: schema of its rows, see `storage.schema`.
        null: what a JSON null stands for: NaN, or inf in the logs of condition numbers.
    """
    numbers, words = array("d"), dict[str, int]()
    for row in JsonLines(path, schema):
        numbers.extend(_number(row.get(name, math.nan), null, words) for name in names)
    table = np.frombuffer(numbers).reshape(-1, len(names)) if numbers else np.empty((0, len(names)))
    return Columns({name: table[:, i] for i, name in enumerate(names)}, list(words))


def _number(value: Any, null: float, words: dict[str, int]) -> float:
    if isinstance(value, str):
        return words.setdefault(value, len(words))
    return null if value is None else float(value)


@dataclass(frozen=True)
class Heads:
    """κ and log μ of every head of one run, at every measurement.

    Attributes:
        steps: the optimizer steps of the measurements (S,), ascending.
        modules: the L attention modules, in the order of the forward pass.
        before, after: κ (S, L, H) of head outputs without and with C; inf at the numerical floor, NaN where a layer
            has fewer heads, or no entry of the output was finite.
        used, log_mu: κ and log μ (S, L, H) of what the model uses: after C where it is conditioned.
        resolution: the lowest κ that counts as the numerical floor; NaN for logs without it.
    """

    steps: Numbers
    modules: list[str]
    before: NDArray[np.float32]
    after: NDArray[np.float32]
    used: NDArray[np.float32]
    log_mu: NDArray[np.float32]
    resolution: float

    @property
    def conditioned(self) -> bool:
        """Whether the model uses the output after C in any head."""
        return not np.array_equal(self.used, self.before, equal_nan=True)


def common_steps(runs: Sequence[Heads]) -> tuple[Numbers, list[NDArray[np.intp]]]:
    """The steps at which all runs were measured, and their positions in each run."""
    steps = runs[0].steps
    for heads in runs[1:]:
        steps = np.intersect1d(steps, heads.steps)
    return steps, [np.searchsorted(heads.steps, steps) for heads in runs]


_HEAD = ("kappa_before", "kappa_after", "log_mu_before", "log_mu_after", "conditioned", "not_finite")


def read_heads(path: Path) -> Heads | None:
    """Reads the records of ``conditions.jsonl``; None if there are none."""
    names = ("step", "layer", "head", "module", "resolution", *_HEAD)
    table = read_columns(path, names, HeadRow, null=math.inf)
    if not len(table):
        return None
    steps, step = np.unique(table["step"], return_inverse=True)
    layers, layer = np.unique(table["layer"], return_inverse=True)
    head = table["head"].astype(int)

    def cube(values: Numbers) -> NDArray[np.float32]:
        filled = np.full((len(steps), len(layers), head.max() + 1), np.nan, np.float32)
        filled[step, layer, head] = np.where(table["not_finite"] == 1, np.nan, values)
        return filled

    modules = [table.words[int(table["module"][layer == i][0])] for i in range(len(layers))]
    conditioned = table["conditioned"] == 1
    known = table["resolution"][np.isfinite(table["resolution"])]
    return Heads(
        steps=steps,
        modules=modules,
        before=cube(table["kappa_before"]),
        after=cube(table["kappa_after"]),
        used=cube(np.where(conditioned, table["kappa_after"], table["kappa_before"])),
        log_mu=cube(np.where(conditioned, table["log_mu_after"], table["log_mu_before"])),
        resolution=float(known.min()) if len(known) else math.nan,
    )


def average_kappa(heads: Heads) -> Numbers:
    """Average κ by step as in figure 3 of arXiv 2603.27153: the mean over the heads of a layer, then over layers.

    Heads at the numerical floor are left out; the average is inf if no head is left.
    """
    finite = np.isfinite(heads.used)
    count = finite.sum(2)
    means = np.where(finite, heads.used, 0).sum(2, dtype=np.float64) / np.maximum(count, 1)
    layers = (count > 0).sum(1)
    mean: Numbers = np.where(layers > 0, means.sum(1) / np.maximum(layers, 1), np.inf)
    return mean
