"""Checks whether a machine has what the Triton kernels need."""

from __future__ import annotations

import importlib.util
import os
from functools import cache

import torch

_OLDEST = (8, 0)  # compute capability


def refuses_machine(device: torch.device) -> str | None:
    """Why the Triton kernels cannot run on tensors on this device; None if they can."""
    if device.type == "cpu" and not interpreted():
        return "the Triton kernels are for CUDA, and the tensors are on a CPU"
    if device.type not in ("cuda", "cpu"):
        return f"the Triton kernels are for CUDA, and the tensors are on {device.type}"
    if not has_triton():
        return "Triton is not installed"
    if torch.version.hip is not None:
        return "the Triton kernels were not tried on ROCm"
    if device.type == "cuda" and _too_old(device.index):
        return f"the Triton kernels need compute capability {_OLDEST[0]}.{_OLDEST[1]} or later"
    if device.type == "cuda":
        return _cannot_launch()
    return None


def has_triton() -> bool:
    """Whether Triton is installed."""
    return _is_installed("triton")


@cache  # asked at each call, and takes a search of the disk if the answer is no
def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _too_old(index: int | None) -> bool:
    """Whether this is a GPU without tensor cores for bfloat16."""
    return torch.cuda.is_available() and _capability(index) < _OLDEST


@cache
def _capability(index: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


@cache
def _cannot_launch() -> str | None:
    """Why Triton cannot talk to the CUDA driver; None if it can.  Triton first compiles the program that does this."""
    if not torch.cuda.is_available():
        return None
    from triton.runtime.driver import driver

    try:
        _ = driver.active
    except Exception as error:  # no compiler, no headers, no library of the driver: each raises something else
        return f"Triton cannot launch kernels, for which it needs a C compiler and Python's headers: {error}"
    return None


# torch.compile evaluates these once (torch.compiler.assume_constant_result does the same, but imports torch._dynamo).
has_triton._dynamo_marked_constant = True  # type: ignore[attr-defined]
_too_old._dynamo_marked_constant = True  # type: ignore[attr-defined]
_cannot_launch._dynamo_marked_constant = True  # type: ignore[attr-defined]


def interpreted() -> bool:
    """Whether Triton interprets its kernels in Python, on a CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least ``size`` and at least 16, the smallest size that Triton multiplies."""
    return max(16, 1 << (size - 1).bit_length())
