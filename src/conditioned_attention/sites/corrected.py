"""Lets an attention module compute with W + C, C fixed, while the parameter stays W.

While the module runs, each of its projections shows W + C under the name of its weight, by an entry in its
``__dict__``, which Python looks up before the registered parameters.  So it does not matter whether the module calls
the projection or reads the weight, and parameters, state_dict keys and classes stay what they are.  The gradient
reaches W; weight decay, which acts on the parameter, acts on W alone.

A property of the class comes before that entry, and a hook may overwrite it.  Where something else has taken the place
of the parameter (torch.nn.utils.parametrize, weight norm, quantize_dynamic), the module raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from conditioned_attention.sites.hook import put_around, take_around
from conditioned_attention.sites.projections import Projection, Projections, Rows, as_matrix, whole
from conditioned_attention.sites.site import HOOK_KEY
from conditioned_attention.spectral import Spectral, polar_correction

SPECTRAL = "_spectral"  # attribute of an attention module: how it is corrected.  Plain data: no key of the state_dict
_KEY = HOOK_KEY - 1
_OPEN = "_spectral_open"  # on it while a state_dict has not brought the corrections yet
_SHOWN = "_spectral_shown"  # on it while it runs: what is shown, where, and in place of what
_SUFFIX = "_correction"  # of the buffer beside a weight whose correction cannot be computed again


def spectral_of(attention: nn.Module) -> Spectral | None:
    """How an attention module is corrected, or None."""
    return attention.__dict__.get(SPECTRAL)


def corrections_of(attention: nn.Module) -> Corrections:
    """What a corrected module computes with."""
    show: Any = attention._forward_pre_hooks[_KEY]
    corrections: Corrections = show.corrections
    return corrections


def correct(
    attention: nn.Module, projections: Projections, spectral: Spectral, *, loading: bool = False
) -> Callable[[], object]:
    """From now on the module computes with W + C; the function returned takes that back.

    With ``loading`` a correction that has to be computed is left open, for a state_dict that brings it.
    """
    corrections = corrections_for(attention, projections, spectral)
    if spectral.correction == "polar":
        for projection in corrections.projections.weights:
            correction = corrections.polar(attention, projection, spectral)
            if loading:
                correction.fill_(torch.nan)
                attention.__dict__[_OPEN] = True
            projection.owner(attention).register_buffer(projection.parameter + _SUFFIX, correction)
    attention.__dict__[SPECTRAL] = spectral
    if not spectral.folded:
        put_around(attention, _KEY, _Show(corrections), _hide_after)

    return partial(uncorrect, attention, projections)


def uncorrect(attention: nn.Module, projections: Projections | None = None) -> bool:
    """The module computes with W again; whether there was a correction to take off."""
    if attention.__dict__.pop(SPECTRAL, None) is None:
        return False
    attention.__dict__.pop(_OPEN, None)
    _hide(attention)  # an interrupt, which is no Exception, passes by the hook that does
    show: Any = attention._forward_pre_hooks.get(_KEY)
    take_around(attention, _KEY)
    for projection in (projections or show.corrections.projections).weights:
        projection.owner(attention)._buffers.pop(projection.parameter + _SUFFIX, None)
    return True


@torch.no_grad()
def fold_into(attention: nn.Module, projections: Projections, *, folded: bool) -> None:
    """Adds C to the weights themselves and takes the hooks off, or subtracts it and puts them on; in float32."""
    spectral: Spectral = attention.__dict__[SPECTRAL]
    corrections = corrections_for(attention, projections, spectral)
    _hide(attention)
    for projection in corrections.projections.weights:
        weight = projection.weight(attention)
        assert weight is not None
        exact = torch.promote_types(weight.dtype, torch.float32)
        correction = corrections.of(attention, projection, spectral).to(exact)
        weight.copy_(weight.to(exact) + (correction if folded else -correction))
    attention.__dict__[SPECTRAL] = replace(spectral, folded=folded)
    if folded:
        take_around(attention, _KEY)
    else:
        put_around(attention, _KEY, _Show(corrections), _hide_after)


def largest_correction(attention: nn.Module, projection: Projection, spectral: Spectral) -> float:
    """The largest entry of C for one weight."""
    if spectral.correction == "identity":
        return spectral.strength
    kept = projection.owner(attention)._buffers[projection.parameter + _SUFFIX]
    assert kept is not None
    return float(kept.abs().max())


@contextmanager
def shown(attention: nn.Module) -> Iterator[None]:
    """Within the block projections show what the module computes with: W + C if it is corrected, and W if not."""
    show: Any = attention._forward_pre_hooks.get(_KEY)
    if show is None:  # not corrected, or C is part of W
        yield
        return
    show(attention, ())
    try:
        yield
    finally:
        _hide_after(attention, (), None)


@dataclass(frozen=True)
class Corrections:
    """C for the projections of an attention module, from its settings.

    Attributes:
        projections: where those of W_Q, W_K and W_V are that are corrected.
        widths: the rows of one head, for each role.
    """

    projections: Projections
    widths: Mapping[str, int] = field(hash=False)

    def of(self, attention: nn.Module, projection: Projection, spectral: Spectral) -> Tensor:
        """C for one weight, as it is now: in its shape, its dtype and on its devices."""
        owner = projection.owner(attention)
        kept = owner._buffers.get(projection.parameter + _SUFFIX)
        correction = self.identity(attention, projection, spectral) if spectral.correction == "identity" else kept
        assert correction is not None
        return _like(correction, getattr(owner, projection.parameter))

    @torch.no_grad()
    def identity(self, attention: nn.Module, projection: Projection, spectral: Spectral) -> Tensor:
        """λ I_k for every role in a weight, in the weight's shape."""
        owner = projection.owner(attention)
        weight = getattr(owner, projection.parameter)
        correction = torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device)
        matrix = as_matrix(owner, correction)
        for role, rows in _corrected_rows(attention, projection, spectral):
            for place in _diagonals(matrix, rows, self.widths[role] if spectral.per_head else None):
                correction.as_strided(*place).fill_(spectral.strength)
        return correction

    @torch.no_grad()
    def polar(self, attention: nn.Module, projection: Projection, spectral: Spectral) -> Tensor:
        """λ σ_max(W) · U Vᵀ for every role in a weight, in the weight's shape."""
        owner = projection.owner(attention)
        weight = whole(getattr(owner, projection.parameter))
        correction = torch.zeros_like(weight, memory_format=torch.contiguous_format)
        source, target = as_matrix(owner, weight), as_matrix(owner, correction)
        for role, rows in _corrected_rows(attention, projection, spectral):
            indices = rows.indices()
            width = self.widths[role] if spectral.per_head else rows.count
            blocks = source[indices].unflatten(0, (-1, width))
            target[indices] = polar_correction(blocks, spectral.strength).flatten(0, 1)
        return correction


def corrections_for(attention: nn.Module, projections: Projections, spectral: Spectral) -> Corrections:
    """C for the weights of an attention module that hold a role to correct."""
    return Corrections(projections.of(spectral.roles), projections.head_widths(attention))


def _corrected_rows(attention: nn.Module, projection: Projection, spectral: Spectral) -> list[tuple[str, Rows]]:
    return [(role, rows) for role, rows in projection.rows(attention).items() if role in spectral.roles]


@dataclass(frozen=True)
class _Show:
    """A hook before the attention module: its projections show W + C until `_hide_after`."""

    corrections: Corrections

    def __call__(self, attention: nn.Module, args: tuple[Any, ...]) -> None:
        spectral = attention.__dict__[SPECTRAL]
        if _OPEN in attention.__dict__:
            self._close(attention)
        attention.__dict__[_SHOWN] = shown = []
        for projection in self.corrections.projections.weights:
            owner, weight = projection.owner(attention), projection.weight(attention)
            if weight is None:
                raise _replaced(attention, projection)
            corrected = weight + self.corrections.of(attention, projection, spectral)
            # Where nn.Module's __getattr__ is not asked: an instance's own __dict__ comes before _parameters.
            owner.__dict__[projection.parameter] = corrected
            shown.append((projection, weight, corrected))

    def _close(self, attention: nn.Module) -> None:
        """Raises RuntimeError unless the corrections have come."""
        for projection in self.corrections.projections.weights:
            kept = projection.owner(attention)._buffers[projection.parameter + _SUFFIX]
            if torch.compiler.is_compiling() or kept is None or kept.isnan().any():
                raise RuntimeError(
                    f"the correction {projection.parameter + _SUFFIX!r} of {projection.path!r} is not there yet: after "
                    "apply_conditioning(model), load the checkpoint's state_dict into the model"
                    + (", and run it once before torch.compile" if torch.compiler.is_compiling() else "")
                )
        del attention.__dict__[_OPEN]


def _hide_after(attention: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """A hook behind the attention module: its projections show W again."""
    lost = _hide(attention)
    if lost:
        raise _replaced(attention, lost[0])


def _hide(attention: nn.Module) -> list[Projection]:
    """The projections show W again; those are returned that something else has come over meanwhile."""
    lost = []
    for projection, weight, corrected in attention.__dict__.pop(_SHOWN, ()):
        owner = projection.owner(attention)
        if owner.__dict__.get(projection.parameter) is not corrected:
            lost.append(projection)
        elif projection.parameter in owner._parameters:
            del owner.__dict__[projection.parameter]
        else:
            owner.__dict__[projection.parameter] = weight
    return lost


def _replaced(attention: nn.Module, projection: Projection) -> RuntimeError:
    return RuntimeError(
        f"this {type(attention).__qualname__} was given to spectral_condition, and since then "
        f"{projection.replaced(attention)}. Undo that, or call restore(model); to have it with C, call fold(model) "
        "before it"
    )


def _diagonals(matrix: Tensor, rows: Rows, width: int | None) -> list[tuple[Any, Any, int]]:
    """Sizes, strides and offsets of the entries that are 1 in I_k.

    One identity over all rows of a role, or one for every ``width`` rows.
    """
    along, across = matrix.stride()
    start = rows.start * along  # the matrix is fresh memory: it begins at its beginning
    columns = matrix.shape[1]
    if width is not None:
        shape = (rows.groups, rows.size // width, min(width, columns))
        return [(shape, (rows.step * along, width * along, along + across), start)]
    step = rows.step * along + rows.size * across
    whole, rest = divmod(min(rows.count, columns), rows.size)
    found: list[tuple[Any, Any, int]] = [((whole, rows.size), (step, along + across), start)]
    if rest:
        found.append(((rest,), (along + across,), start + whole * step))
    return found


def _like(correction: Tensor, weight: Tensor) -> Tensor:
    """The correction in the dtype of the weight, and spread over the same devices under tensor parallelism."""
    mesh = getattr(weight, "device_mesh", None)
    if mesh is None:
        return correction.to(weight.dtype)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(weight, DTensor)
    return distribute_tensor(correction.to(weight.dtype), mesh, weight.placements, src_data_rank=None)
