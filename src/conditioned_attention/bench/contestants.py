"""The contestants: plain attention, what a user would write, the nearest control, and our implementations."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from conditioned_attention.bench.cases import Attend, Case, Inputs
from conditioned_attention.functional import IMPLEMENTATIONS, explain, preconditioned_attention
from conditioned_attention.reference import preconditioned_attention as reference_attention

PLAIN = "plain"


# PyTorch's kernels behind `scaled_dot_product_attention`, and their names in its warnings.
BACKENDS = {
    "flash": (SDPBackend.FLASH_ATTENTION, "Flash"),
    "cuDNN": (SDPBackend.CUDNN_ATTENTION, "CuDNN"),
    "efficient": (SDPBackend.EFFICIENT_ATTENTION, "Memory"),
}

_ALL_BUT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

# `F.rms_norm`'s own default depends on the dtype, and then float64 would compute something else.
_EPS = 1e-6


@dataclass(frozen=True)
class Contestant:
    """One way to compute attention on a case's inputs.

    Attributes:
        name: its name in tables.
        attend: (query, key, value, mask) -> (B, H, N, E).
        oracle: what it is compared with, called in float64.
        note: makes its remark in the tables; it gets the inputs, because the choice of ``auto`` depends on them.
        surroundings: makes the context in which it runs, entered outside the clock; a ValueError from it is a refusal.
    """

    name: str
    attend: Attend
    oracle: Attend
    note: Callable[[Inputs], str] = lambda inputs: ""
    surroundings: Callable[[], AbstractContextManager[None]] = nullcontext


def contestants(case: Case, compiled: bool, gpu: bool = False) -> list[Contestant]:
    """All contestants in a case, plain attention first; every implementation in `functional` is one.

    On a GPU there is also each of `BACKENDS` by itself, but no RMSNorm, and only the three lines are compiled.  There
    ``lean`` runs with cuDNN's attention switched off, whose operators it does not support: otherwise it would be
    refused wherever PyTorch picks cuDNN.
    """
    plain: Attend = partial(F.scaled_dot_product_attention, **case.options)
    reference: Attend = partial(reference_attention, **case.options)
    three_lines: Attend = partial(_three_lines, plain)
    rms_norm: Attend = partial(_rms_norm, plain)
    ours = {name: partial(preconditioned_attention, **case.options, impl=name) for name in (*IMPLEMENTATIONS, "auto")}
    surroundings: Any = {"lean": partial(sdpa_kernel, _ALL_BUT_CUDNN)} if gpu else {}
    backends = [Contestant(name, plain, plain, surroundings=partial(_only, name)) for name in BACKENDS if gpu]
    found = [
        Contestant(PLAIN, plain, plain),
        *backends,
        Contestant("three lines", three_lines, reference),
        *([] if gpu else [Contestant("rms_norm", rms_norm, rms_norm)]),
        *(
            Contestant(name, ours[name], reference, surroundings=surroundings.get(name, nullcontext))
            for name in IMPLEMENTATIONS
        ),
        Contestant("auto", ours["auto"], reference, partial(_picked, case)),
    ]
    if compiled:
        several = [("three lines", three_lines, reference)]
        if not gpu:
            several = [(PLAIN, plain, plain), *several, ("ours", ours["auto"], reference)]
        compile_ = partial(torch.compile, fullgraph=True, dynamic=False)
        found += [Contestant(f"{name}, compiled", compile_(attend), oracle) for name, attend, oracle in several]
    return found


@contextmanager
def _only(name: str) -> Iterator[None]:
    """Allows only one of PyTorch's backends; raises ValueError with PyTorch's reasons if it cannot run."""
    backend, called = BACKENDS[name]
    with warnings.catch_warnings(record=True) as said, sdpa_kernel(backend):
        warnings.simplefilter("always")
        try:
            yield
        except RuntimeError as error:
            if "No available kernel" not in str(error) and "No viable backend" not in str(error):
                raise
            reasons = _reasons(called, [str(warning.message) for warning in said])
            raise ValueError(reasons or str(error)) from error


def _reasons(called: str, said: Sequence[str]) -> str:
    """PyTorch's reasons against one backend: the warnings after the line that names it, up to the next name."""
    found, mine = [], False
    for message in (message.partition(" (Triggered internally")[0] for message in said):
        if message.endswith("kernel not used because:"):
            mine = message.startswith(called)
        elif mine:
            found.append(message)
    return "; ".join(found)


def _three_lines(plain: Attend, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    output = plain(query, key, value, mask)
    norm: Tensor = output.detach().norm(dim=-1, keepdim=True)
    return output / norm.clamp_min(_EPS)


def _rms_norm(plain: Attend, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    output = plain(query, key, value, mask)
    return F.rms_norm(output, output.shape[-1:], eps=_EPS)


def _picked(case: Case, inputs: Inputs) -> str:
    return f"runs {explain(*inputs.arguments, **case.options).impl}"
