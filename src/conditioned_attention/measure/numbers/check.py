"""What every function of matrices asks of its arguments."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def check_floats(name: str, value: Any) -> None:
    """Raises TypeError for anything but a tensor of floating-point numbers."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        what = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {what}")
