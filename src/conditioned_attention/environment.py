"""What this machine and this Python have: for results that say where they were measured, and errors that help."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch

from conditioned_attention import __version__
from conditioned_attention.functional import IMPLEMENTATIONS, explain

_PACKAGES = (
    "timm",
    "transformers",
    "accelerate",
    "torchvision",
    "triton",
    "numpy",
    "scipy",
    "scikit-learn",
    "matplotlib",
)


def environment() -> dict[str, Any]:
    """Versions, devices, threads, and the attention implementations that can run here; plain data."""
    return {
        "conditioned-attention": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "packages": {name: _version(name) for name in _PACKAGES},
        "problems": [problem for problem in [torchvision_misfit()] if problem],
        "machine": _machine(),
        "default_threads": torch.get_num_threads(),
        "devices": _devices(),
        "implementations": {name: _availability(name) for name in IMPLEMENTATIONS},
        "platform": f"{platform.system()} {platform.machine()}",
    }


@cache
def short_environment() -> dict[str, Any]:
    """What tells machines apart whose runs are put together: a few entries of `environment`."""
    everything = environment()
    return {key: everything[key] for key in ("machine", "devices", "torch", "conditioned-attention")}


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around the import of an optional library: where it is missing, the error says which extra brings it.

    Raises:
        ModuleNotFoundError: the library is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"this needs: pip install 'conditioned-attention[{extra}]' ({error})") from error


def check_torchvision() -> None:
    """Called before timm or transformers are imported, which import torchvision wherever it is installed.

    Raises:
        RuntimeError: the torchvision that is installed does not fit torch; with the command that mends it.
    """
    if (problem := torchvision_misfit()) is not None:
        raise RuntimeError(problem)


@cache
def torchvision_misfit() -> str | None:
    """Why the torchvision that is installed does not run beside this torch, in one line with the command that mends it;
    None if it does, or if there is none."""
    if _version("torchvision") == "not installed":
        return None
    try:
        import_module("torchvision")
    except (ImportError, OSError, RuntimeError) as error:  # its operators are compiled for one version and one device
        release = torch.__version__.partition("+")[0]
        fitting = f"0.{int(release.split('.')[1]) + 15}"  # torch 2.N goes with torchvision 0.(N + 15)
        return (
            f"torchvision {_version('torchvision')} does not fit torch {torch.__version__} "
            f"({str(error).splitlines()[0]}); install a pair that was built together: "
            f"pip install --force-reinstall torch=={release} 'torchvision=={fitting}.*'"
        )
    return None


def _availability(implementation: str) -> str:
    """ "available", or why not even small attention runs here."""
    query = torch.zeros(1, 1, 16, 16, device="cuda" if torch.cuda.is_available() else "cpu")
    try:
        explain(query, query, query, impl=implementation)
    except ValueError as error:
        return str(error)
    return "available"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _machine() -> str:
    """Processor, cores and memory in words; no names of hosts or users."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    parts = [names[0] if names else platform.processor() or platform.machine(), f"{os.cpu_count()} cores"]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        parts.append(f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB")
    return ", ".join(parts)


def _devices() -> list[str]:
    found = ["cpu"]
    if torch.cuda.is_available():
        found += [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found
