"""What the settings of all benchmarks have in common."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch

from conditioned_attention.choices import Choices


@dataclass(frozen=True)
class Settings(Choices):
    """How something is measured; integer fields are counts, and ``device`` says where it runs."""

    def check(self) -> None:
        """Raises ValueError for what cannot be measured: a count below 1, or a CUDA device where there is none."""
        check_counts(**{f.name: getattr(self, f.name) for f in fields(self) if f.type in ("int", "int | None")})
        if getattr(self, "device", "cpu") == "cuda" and not torch.cuda.is_available():
            raise ValueError("device='cuda', but this torch sees no CUDA device")


@dataclass(frozen=True)
class ModelSettings(Settings):
    """How a model in training is measured.

    Attributes:
        rounds: rounds of measurement; in each, every contestant has one turn.
        threads: PyTorch threads.
        device: device to measure on.
        dtype: dtype of parameters and data.
        batch_size: batch size, in place of each model's own.
        layers: number of blocks, in place of each model's own.
    """

    rounds: int = 20
    threads: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch_size: int | None = None
    layers: int | None = None


def check_counts(**counts: int | None) -> None:
    """Raises ValueError, with the names of the counts, if any is below 1; None stands for a count that is not set."""
    if min(count for count in counts.values() if count is not None) < 1:
        *first, last = counts
        *numbers, number = counts.values()
        names, values = ", ".join(first), ", ".join(map(str, numbers))
        raise ValueError(f"{names} and {last} must be at least 1, got {values} and {number}")
