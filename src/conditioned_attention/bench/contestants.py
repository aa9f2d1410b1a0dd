"""Who competes: plain attention, what a user would write, the nearest control, and ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from conditioned_attention.bench.cases import Attend, Case, Inputs
from conditioned_attention.functional import IMPLEMENTATIONS, explain, preconditioned_attention
from conditioned_attention.reference import preconditioned_attention as reference_attention

PLAIN = "plain"

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
    """

    name: str
    attend: Attend
    oracle: Attend
    note: Callable[[Inputs], str] = lambda inputs: ""


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
