"""Checks a contestant's output and gradients against float64 before anything is timed.

A contestant runs on the same inputs on which it is timed.  If all of them would be too large in float64, some heads of
some batches are compared (`part_of`), and the others are only checked to be finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from conditioned_attention.bench.cases import Attend, Inputs
from conditioned_attention.bench.contestants import PLAIN, Contestant
from conditioned_attention.bench.part import BUDGET, Part, part_of

# A contestant may err ten times as much as plain attention.  The suite's bound is 2 (gradients 3); here the point is
# not to time a program that computes something else, which is off by far more than rounding.
_FACTOR = 10.0
_ROUNDINGS = 8


@dataclass(frozen=True)
class Verdict:
    """Whether a contestant may be timed.

    Attributes:
        status: ``"measured"``, ``"refused"`` (it raised ValueError), ``"wrong"`` (its numbers are not the oracle's) or
            ``"failed"`` (it raised anything else).
        note: why it may not be timed, or the contestant's own remark.
        output_error, gradient_error: largest error over the largest entry of the oracle's tensor; of the gradients
            (query's, key's, value's, a learned bias's) the worst.
    """

    status: str
    note: str = ""
    output_error: float | None = None
    gradient_error: float | None = None


def judge(contestants: Sequence[Contestant], inputs: Inputs, budget: int = BUDGET) -> dict[str, Verdict]:
    """Judges every contestant on the inputs that it will be timed on; plain attention, the first, sets the bounds.

    Inputs whose attention weights take more than ``budget`` bytes in float64 are compared in part.  Raises RuntimeError
    if plain attention itself is wrong, because there is then nothing to compare with.
    """
    part = part_of(inputs, budget)
    compared = inputs if part is None else part.inputs(inputs)
    truths: dict[Attend, list[Tensor]] = {}  # several contestants share an oracle
    verdicts: dict[str, Verdict] = {}
    bounds = (0.05, 0.05)  # plain attention's own: above half precision's rounding, below any real mistake
    for contestant in contestants:
        oracle = contestant.oracle
        if oracle not in truths:
            truths[oracle] = _results(oracle, compared.double())
        verdicts[contestant.name] = verdict = _judge_one(contestant, inputs, part, truths[oracle], bounds)
        if contestant.name == PLAIN:
            if verdict.status != "measured" or verdict.output_error is None or verdict.gradient_error is None:
                raise RuntimeError(f"plain attention cannot be measured here ({verdict.status}): {verdict.note}")
            rounding = _ROUNDINGS * torch.finfo(inputs.query.dtype).eps
            bounds = (_FACTOR * verdict.output_error + rounding, _FACTOR * verdict.gradient_error + rounding)
    return verdicts


def _judge_one(
    contestant: Contestant, inputs: Inputs, part: Part | None, truth: list[Tensor], bounds: tuple[float, float]
) -> Verdict:
    try:
        with contestant.surroundings():
            with torch.no_grad():  # a compiled one has another graph without gradients, and that may fail too
                contestant.attend(*inputs.arguments)
            found = _results(contestant.attend, inputs)
            note = contestant.note(inputs)
    except ValueError as error:
        return Verdict("refused", first_line(error))
    except Exception as error:  # a compiler may raise anything; the other contestants are measured all the same
        if not answers(inputs.query.device):
            raise RuntimeError(f"{contestant.name} broke the device: {first_line(error)}") from error
        return Verdict("failed", f"{type(error).__name__}: {first_line(error)}")
    errors = [_error(mine, true, part) for mine, true in zip(found, truth)]
    output_error, gradient_error = errors[0], max(errors[1:])
    if not (output_error <= bounds[0] and gradient_error <= bounds[1]):  # "not", so that NaN is wrong
        note = f"output off by {output_error:.1e} (at most {bounds[0]:.1e}), "
        note += f"gradients by {gradient_error:.1e} ({bounds[1]:.1e})"
        return Verdict("wrong", note, output_error, gradient_error)
    return Verdict("measured", note, output_error, gradient_error)


def _results(attend: Attend, inputs: Inputs) -> list[Tensor]:
    """The output of one call, then its gradients."""
    output = attend(*inputs.arguments)
    if output.shape != inputs.upstream.shape:
        raise RuntimeError(f"output has shape {tuple(output.shape)}, expected {tuple(inputs.upstream.shape)}")
    return [output.detach(), *torch.autograd.grad(output, inputs.leaves, inputs.upstream)]


def _error(mine: Tensor, true: Tensor, part: Part | None) -> float:
    if not mine.isfinite().all():
        return float("inf")
    compared = mine if part is None else part.cut(mine)
    error = (compared.double() - true).abs().max() / true.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return float(error)


def answers(device: torch.device) -> bool:
    """Whether a device still computes: after a fault in one kernel CUDA refuses all later work of the process."""
    try:
        return bool(torch.ones(1, device=device).add(1).item() == 2)
    except RuntimeError:
        return False


def first_line(error: Exception) -> str:
    """The first line of an error's text; empty if it has none."""
    return (str(error).strip().splitlines() or [""])[0]
