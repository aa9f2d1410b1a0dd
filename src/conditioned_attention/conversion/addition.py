"""Computes what `fold` adds to weights in memory: C once, however many modules share the weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from conditioned_attention.sites import Site
from conditioned_attention.sites.corrected import spectral_of
from conditioned_attention.sites.correction import Correction, corrections_for
from conditioned_attention.sites.projections import Projections


@dataclass(frozen=True)
class Addition:
    """C for one weight.

    Attributes:
        name: the attention module.
        owner: the module that has the weight.
        correction: computes C.
    """

    name: str
    owner: nn.Module
    correction: Correction

    @property
    def weight(self) -> Tensor:
        return self.correction.weight(self.owner)

    @torch.no_grad()
    def carry_out(self, sign: int) -> None:
        """Adds C to the weight, or subtracts it; in float32, or float64 for such weights."""
        weight = self.weight
        exact = torch.promote_types(weight.dtype, torch.float32)
        weight.copy_(weight.to(exact) + sign * self.correction.of(self.owner).to(exact))


def find_additions(model: nn.Module, plans: Sequence[tuple[Site, Projections]]) -> list[Addition]:
    """One addition for every weight of these attention modules; a weight that several of them share counts once.

    Raises ValueError if they want different corrections for it, or if another module of the model has it too.
    """
    found: list[Addition] = []
    for addition in _all(plans):
        same = next((other for other in found if _shared(other.weight, addition.weight)), None)
        if same is None:
            found.append(addition)
        elif not _equal(same, addition):
            raise ValueError(
                f"{same.name} and {addition.name} share memory of their weights, and their corrections of it differ: "
                f"{_untie(addition.correction.projection.parameter)}"
            )
    owners = {(id(addition.owner), addition.correction.projection.parameter) for addition in _all(plans)}
    for name, module in model.named_modules():
        for parameter, weight in module._parameters.items():
            if weight is None or (id(module), parameter) in owners:
                continue
            if (ours := next((a for a in found if _shared(a.weight, weight)), None)) is not None:
                raise ValueError(
                    f"the weight of {ours.name} is {f'{name}.{parameter}'.lstrip('.')} as well, which has no C and "
                    f"would get it: {_untie(parameter)}"
                )
    return found


def _all(plans: Sequence[tuple[Site, Projections]]) -> Iterator[Addition]:
    for site, projections in plans:
        spectral = spectral_of(site.module)
        assert spectral is not None
        for owner, correction in corrections_for(site.module, projections, spectral):
            yield Addition(site.name, owner, correction)


def _equal(one: Addition, other: Addition) -> bool:
    """Whether both would add the same C to the same weight."""
    a, b = one.weight, other.weight
    if a.shape != b.shape or a.stride() != b.stride() or _local(a).data_ptr() != _local(b).data_ptr():
        return False
    return torch.equal(_local(one.correction.of(one.owner)), _local(other.correction.of(other.owner)))


def _shared(a: Tensor, b: Tensor) -> bool:
    """Whether two weights are one, or have memory in common."""
    if a is b:
        return True
    (start, end), (other_start, other_end) = _range(_local(a)), _range(_local(b))
    return start < other_end and other_start < end


def _range(weight: Tensor) -> tuple[int, int]:
    """The address range of a weight's memory, without the end; (0, 0) if it has no memory."""
    if weight.is_meta or weight.numel() == 0:
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride()))
    return weight.data_ptr(), weight.data_ptr() + (last + 1) * weight.element_size()


def _local(weight: Tensor) -> Tensor:
    """This process's part of a weight that is spread over devices."""
    return weight.to_local() if hasattr(weight, "to_local") else weight


def _untie(parameter: str) -> str:
    return (
        f"give each of them a parameter of its own, as by module.{parameter} = nn.Parameter(module.{parameter}.clone())"
    )
