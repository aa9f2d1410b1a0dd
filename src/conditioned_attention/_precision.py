"""Converts tensors to float64 on any device."""

from __future__ import annotations

from torch import Tensor


def exact(tensor: Tensor) -> Tensor:
    """The same numbers in float64; on the CPU if their device has no float64, such as Apple's mps."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
