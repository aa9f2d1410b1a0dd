"""What the settings of every benchmark must be."""

from __future__ import annotations

import torch


def check_counts(**counts: int | None) -> None:
    """Raises ValueError, with their names, if any is below 1; None stands for what was not asked for."""
    if min(count for count in counts.values() if count is not None) < 1:
        *first, last = counts
        *numbers, number = counts.values()
        names, values = ", ".join(first), ", ".join(map(str, numbers))
        raise ValueError(f"{names} and {last} must be at least 1, got {values} and {number}")


def check_device(device: str) -> None:
    """Raises ValueError for ``"cuda"`` where there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda', but this torch sees no CUDA device")
