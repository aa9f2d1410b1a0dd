"""Who competes: plain attention, what a user would write, the nearest control, and ours."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from conditioned_attention.bench.cases import Attend, Case, Inputs
from conditioned_attention.functional import IMPLEMENTATIONS, explain, preconditioned_attention
from conditioned_attention.reference import preconditioned_attention as reference_attention

PLAIN = "plain"


class _Backend(NamedTuple):
    """One of PyTorch's kernels behind `scaled_dot_product_attention`, and what its warnings call it."""

    backend: SDPBackend
    called: str


BACKENDS = {
    "flash": _Backend(SDPBackend.FLASH_ATTENTION, "Flash"),
    "cuDNN": _Backend(SDPBackend.CUDNN_ATTENTION, "CuDNN"),
    "efficient": _Backend(SDPBackend.EFFICIENT_ATTENTION, "Memory"),
}

# `F.rms_norm`'s own default depends on the dtype, and then float64 would compute something else.
_EPS = 1e-6


@dataclass(frozen=True)
class Contestant:
    """One way to compute attention on a case's inputs.

    Attributes:
        name: as in tables.
        attend: (query, key, value, mask) -> (B, H, N, E).
        oracle: the same in float64, which it is judged by.
        note: what the tables say beside it; it reads the inputs, since ``auto`` picks by them.
        surroundings: what it runs in, entered outside the clock; ValueError from there is a refusal.
    """

    name: str
    attend: Attend
    oracle: Attend
    note: Callable[[Inputs], str] = lambda inputs: ""
    surroundings: Callable[[], AbstractContextManager[None]] = nullcontext


def contestants(case: Case, compiled: bool) -> list[Contestant]:
    """Everyone who can take part in a case, plain attention first.

    An implementation added to `functional` takes part by itself.
    """
    plain, reference, rms_norm = partial(_plain, case), partial(_reference, case), partial(_rms_norm, case)
    three_lines, auto = partial(_three_lines, case), partial(_ours, case, "auto")
    found = [
        Contestant(PLAIN, plain, plain),
        Contestant("three lines", three_lines, reference),
        Contestant("rms_norm", rms_norm, rms_norm),
        *(Contestant(name, partial(_ours, case, name), reference) for name in IMPLEMENTATIONS),
        Contestant("auto", auto, reference, partial(_picked, case)),
    ]
    if compiled:
        compile_ = partial(torch.compile, fullgraph=True, dynamic=False)
        found += [
            Contestant("plain, compiled", compile_(plain), plain),
            Contestant("three lines, compiled", compile_(three_lines), reference),
            Contestant("ours, compiled", compile_(auto), reference),
        ]
    return found


def gpu_contestants(case: Case, compiled: bool) -> list[Contestant]:
    """Everyone who can take part on a GPU: `BACKENDS` by themselves too, and of the compiled ones the three lines.

    ``lean`` has cuDNN's attention switched off, whose operators it does not take: otherwise it would be refused
    wherever that is PyTorch's own pick.
    """
    plain, reference = partial(_plain, case), partial(_reference, case)
    three_lines, auto = partial(_three_lines, case), partial(_ours, case, "auto")
    ours = [Contestant(name, partial(_ours, case, name), reference) for name in IMPLEMENTATIONS]
    found = [
        Contestant(PLAIN, plain, plain),
        *(Contestant(name, plain, plain, surroundings=partial(_only, name)) for name in BACKENDS),
        Contestant("three lines", three_lines, reference),
        *(replace(one, surroundings=_without_cudnn) if one.name == "lean" else one for one in ours),
        Contestant("auto", auto, reference, partial(_picked, case)),
    ]
    if compiled:
        attend = torch.compile(three_lines, fullgraph=True, dynamic=False)
        found.append(Contestant("three lines, compiled", attend, reference))
    return found


@contextmanager
def _only(name: str) -> Iterator[None]:
    """One of PyTorch's backends and no other; raises ValueError with its reasons where it cannot run."""
    with warnings.catch_warnings(record=True) as said, sdpa_kernel(BACKENDS[name].backend):
        warnings.simplefilter("always")
        try:
            yield
        except RuntimeError as error:
            if "No available kernel" not in str(error) and "No viable backend" not in str(error):
                raise
            reasons = _reasons(BACKENDS[name].called, [str(warning.message) for warning in said])
            raise ValueError(reasons or str(error)) from error


def _reasons(called: str, said: Sequence[str]) -> str:
    """What PyTorch's warnings have against one backend: those after the line that names it, up to the next name."""
    found, mine = [], False
    for message in (message.partition(" (Triggered internally")[0] for message in said):
        if message.endswith("kernel not used because:"):
            mine = message.startswith(called)
        elif mine:
            found.append(message)
    return "; ".join(found)


@contextmanager
def _without_cudnn() -> Iterator[None]:
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        yield


def _plain(case: Case, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, mask, **case.options)


def _three_lines(case: Case, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    output = F.scaled_dot_product_attention(query, key, value, mask, **case.options)
    norm: Tensor = output.detach().norm(dim=-1, keepdim=True)
    return output / norm.clamp_min(_EPS)


def _rms_norm(case: Case, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    output = F.scaled_dot_product_attention(query, key, value, mask, **case.options)
    return F.rms_norm(output, output.shape[-1:], eps=_EPS)


def _ours(case: Case, impl: str, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    return preconditioned_attention(query, key, value, mask, **case.options, impl=impl)


def _reference(case: Case, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    return reference_attention(query, key, value, mask, **case.options)


def _picked(case: Case, inputs: Inputs) -> str:
    return f"runs {explain(*inputs.arguments, **case.options).impl}"
