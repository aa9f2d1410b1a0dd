"""Describes the machine and its packages, for helpful errors and for results that say where they were measured."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
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
    "timm", "transformers", "accelerate", "torchvision", "triton", "numpy", "scipy", "scikit-learn", "matplotlib",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Versions, devices, threads, and the attention implementations that can run here; plain data."""
    return {
        "conditioned-attention": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "packages": {name: _version(name) for name in _PACKAGES},
        "machine": _machine(),
        "default_threads": torch.get_num_threads(),
        "devices": _devices(),
        "implementations": {name: _availability(name) for name in IMPLEMENTATIONS},
        "platform": f"{platform.system()} {platform.machine()}",
    }


@cache
def short_environment() -> dict[str, Any]:
    """What tells machines apart whose runs are put together: a few entries of `environment`."""
    return {
        "machine": _machine(),
        "devices": _devices(),
        "torch": torch.__version__,
        "conditioned-attention": __version__,
    }


def command() -> str:
    """What started this program, for records of runs: a command of ours as it was typed, of others the name alone.

    >>> import sys; from unittest import mock
    >>> with mock.patch.object(sys, "argv", ["/opt/bin/conditioned-attention", "compare", "digits"]):
    ...     command()
    'conditioned-attention compare digits'
    """
    program = Path(sys.argv[0])
    if program.stem == "conditioned-attention" or program.parent.name == "conditioned_attention":
        return shlex.join(["conditioned-attention", *sys.argv[1:]])
    return f"python {program.name}" if program.suffix == ".py" else "python"


def cores() -> int:
    """How many this process may use, which a scheduler or a container may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def world_size() -> int:
    """How many processes the launcher has started, by its own word; ValueError if that is no number."""
    word = os.environ.get("WORLD_SIZE", "1")
    if not word.isdecimal() or word == "0":
        raise ValueError(f"WORLD_SIZE={word!r} in the environment: a launcher sets a number of processes, 1 or more")
    return int(word)


def is_main() -> bool:
    """Whether this is the launcher's main process, which keeps the files and does the talking.

    A RANK that no launcher of several processes has set means nothing: this is the only one then.
    """
    return world_size() == 1 or os.environ.get("RANK", "0") == "0"


@contextmanager
def needs(extra: str, what: str = "this") -> Iterator[None]:
    """Around the import of an optional library: an error says what needs it, and which extra brings it.

    Raises:
        ModuleNotFoundError: the library is not installed.
        ImportError: timm or transformers, beside a torchvision that does not fit torch.
    """
    if extra in ("timm", "transformers"):
        check_torchvision()
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{what} needs: pip install 'conditioned-attention[{extra}]' ({error})") from error


def check_torchvision() -> None:
    """Called before timm or transformers are imported, which import torchvision wherever it is installed.

    Raises ImportError, with the command that mends it, if that torchvision does not fit torch.
    """
    if (problem := torchvision_misfit()) is not None:
        raise ImportError(problem)


@cache
def torchvision_misfit() -> str | None:
    """Why the torchvision that is installed does not run beside this torch, in one line with the command that mends it;
    None if it does, or if there is none."""
    if _version("torchvision") == "not installed":
        return None
    try:
        import_module("torchvision")
    except Exception as error:  # its operators are compiled for one version and one device, and fail in many ways
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        words = (
            f"torchvision {_version('torchvision')} does not fit torch {torch.__version__} ({reason}); install a pair"
        )
        return f"{words} that was built together: pip install --force-reinstall {_pair(torch.__version__)}"
    return None


def _pair(version: str) -> str:
    """What pip is asked for beside a torch of that version: torch 2.N goes with torchvision 0.(N + 15).

    A torch without CUDA stays one: the package index has no such build for Linux, PyTorch's own has.

    >>> _pair("2.14.1+cu130"), _pair("2.15.0a0+git1234")
    ("torch==2.14.1 'torchvision==0.29.*'", '--pre torch torchvision')
    """
    release = re.fullmatch(r"(2\.(\d+)\.\d+)(\+.*)?", version)
    if not release:
        return "--pre torch torchvision"
    pair = f"torch=={release[1]} 'torchvision==0.{int(release[2]) + 15}.*'"
    return f"{pair} --index-url https://download.pytorch.org/whl/cpu" if release[3] == "+cpu" else pair


def _availability(implementation: str) -> str:
    """ "available", or why not even small attention runs here."""
    query = torch.zeros(1, 1, 16, 16, device="cuda" if torch.cuda.is_available() else "cpu")
    try:
        explain(query, query, query, impl=implementation)
    except ValueError as error:
        return str(error)
    return "available"


@cache
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
