"""Runs a forward pass that measures a model and leaves no trace in it.

Shapes: B probe samples, H heads, N tokens, D head width.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from conditioned_attention.preconditioner import HeadTransform, RowNorm
from conditioned_attention.sites import Site, active_transform, find_sites, install, transform_of


@dataclass(frozen=True)
class HeadOutputs:
    """What one call of an attention module computed: heads before and after the transform, (B, H, N, D)."""

    module: str
    conditioned: bool
    before: Tensor
    after: Tensor


Take = Callable[[int, HeadOutputs], None]


def head_outputs(model: nn.Module, probe: Any) -> list[HeadOutputs]:
    """Head outputs of every attention call in one forward pass on ``probe``, in order; the model is left as it was."""
    calls: list[HeadOutputs] = []
    watch_heads(model, probe, lambda _, outputs: calls.append(outputs))
    return calls


def watch_heads(
    model: nn.Module,
    probe: Any,
    take: Take,
    *,
    layers: Container[int] | None = None,
    dtype: torch.dtype | None = None,
    stop_after: int | None = None,
) -> int:
    """Hands the head outputs of one forward pass to ``take``, one call at a time, so that no two need to be kept.

    Returns the number of attention calls.

    Args:
        model: the model, which is left as it was: modes, buffers, random states and conversion.
        probe: what the model is called with.
        take: is called with the position of the attention call, from 0, and its outputs.
        layers: the positions that are wanted; None for all.
        dtype: parameters and inputs of lower precision are converted to this one for the pass; None leaves them.
        stop_after: the number of calls after which the forward pass ends, unless something waits for its end: what
            comes after the last attention, mostly a language model's logits, may take as long as the rest and more
            memory.
    """
    sites = [site for site in find_sites(model) if site.reachable]
    record = _Record(take, layers, stop_after if _may_stop(model) else None)
    with ExitStack() as stack:
        stack.enter_context(undisturbed(model))
        if dtype is not None:
            stack.enter_context(at_least(model, dtype))
            probe = _floats_at_least(probe, dtype)
        stack.callback(install(sites, lambda site: _Recording(site, record)))
        stack.enter_context(suppress(_Enough))
        call(model, probe)
    return record.calls


def attention_inputs(model: nn.Module, probe: Any, sites: Sequence[Site]) -> dict[str, Tensor]:
    """The first floating-point tensor that each of these modules gets in a forward pass, (batch, …), by module name.

    For a module that is called several times, it is what it gets last.  The model is left as it was.
    """
    inputs: dict[str, Tensor] = {}
    with ExitStack() as stack:
        stack.enter_context(undisturbed(model))
        for site in sites:
            stack.callback(site.module.register_forward_pre_hook(_noting(site, inputs), with_kwargs=True).remove)
        call(model, probe)
    return inputs


def _noting(site: Site, inputs: dict[str, Tensor]) -> Callable[..., None]:
    def note(attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.is_floating_point())
        if (x := next(tensors, None)) is not None:
            sequence_first = isinstance(attention, nn.MultiheadAttention) and not attention.batch_first
            inputs[site.name] = (x.transpose(0, 1) if sequence_first and x.dim() == 3 else x).detach()

    return note


class _Enough(BaseException):
    """Ends a forward pass; no Exception, which a model might catch."""


def _may_stop(model: nn.Module) -> bool:
    """Whether no module has hooks that wait for the end of its forward, as FSDP2 and offloading have."""
    return not any(
        module._forward_hooks.keys() - module._forward_hooks_always_called.keys() or hasattr(module, "_hf_hook")
        for module in model.modules()
    )


@dataclass
class _Record:
    """What is wanted of the calls in one forward pass, and how many there have been."""

    take: Take
    layers: Container[int] | None
    stop_after: int | None
    calls: int = 0


class Passing(HeadTransform):
    """A transform for observing: it does to the heads what the module did already, which may be nothing."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.inner = None if active_transform(site) is None else transform_of(site.module)

    @property
    def needs_weights(self) -> bool:
        return self.inner is not None and self.inner.needs_weights

    @property
    def norms_suffice(self) -> bool:
        return self.inner is not None and self.inner.norms_suffice

    @property
    def changes_queries(self) -> bool:
        return self.inner is not None and self.inner.changes_queries

    @property
    def mixes_rows(self) -> bool:
        return self.inner is not None and self.inner.mixes_rows

    def queries(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return (query, key) if self.inner is None else self.inner.queries(query, key)

    def __call__(self, output: Tensor, weights: Tensor | None = None) -> Tensor:
        return output if self.inner is None else self.inner(output, weights)


class _Recording(Passing, recorded=False):
    """Passes on what goes in and what comes out."""

    kind = "recording"

    def __init__(self, site: Site, record: _Record) -> None:
        super().__init__(site)
        self.record = record

    def __call__(self, output: Tensor, weights: Tensor | None = None) -> Tensor:
        record, layer = self.record, self.record.calls
        record.calls += 1
        result = super().__call__(output, weights)
        if record.layers is None or layer in record.layers:
            after = RowNorm()(output) if self.inner is None else result
            record.take(layer, HeadOutputs(self.site.name, self.inner is not None, output, after))
        if record.calls == record.stop_after:
            raise _Enough
        return result


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """A context with evaluation mode, no gradient, no autocast and nothing compiled; afterwards everything on the
    modules is as it was.
    """
    # A forward pass may count, cache, rebind or register what it likes, and no list of such habits would be complete.
    # So the object behind every name is noted, and for buffers the numbers too, because they may be written in place.
    attributes = [(module, dict(module.__dict__), dict(module._buffers)) for module in model.modules()]
    buffers = [(buffer, buffer._version, buffer.clone()) for buffer in model.buffers()]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    devices = [device] if device.type == "cuda" else []
    # Accelerate puts an autocasting forward on the instance, over the class's own.
    if "_original_forward" in model.__dict__:
        model.__dict__.pop("forward", None)
    with torch.no_grad(), torch.autocast(device.type, enabled=False), torch.random.fork_rng(devices), _uncompiled():
        model.eval()
        try:
            yield
        finally:
            for module, members, registered in attributes:
                _put_back(module.__dict__, members)
                _put_back(module._buffers, registered)
            for buffer, version, saved in buffers:
                if buffer._version != version:  # writing to others would break a backward pass that waits for them
                    buffer.copy_(saved)


def _uncompiled() -> AbstractContextManager[Any]:
    """A context in which compiled modules run as they were written, instead of missing the change or recompiling."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled yet, and Dynamo is not imported for this
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _put_back(now: dict[str, Any], before: dict[str, Any]) -> None:
    """Restores what every name stood for; only what differs is written."""
    for name in [name for name in now if name not in before]:
        del now[name]
    for name, value in before.items():
        if name not in now or now[name] is not value:
            now[name] = value


def call(model: nn.Module, probe: Any) -> None:
    """Runs the model on a mapping (keywords), a tuple (positional) or one tensor."""
    if isinstance(probe, Mapping):
        model(**probe)
    else:
        model(*(probe if isinstance(probe, (tuple, list)) else (probe,)))


@contextmanager
def at_least(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """A context in which parameters and buffers of lower precision are replaced by copies in this dtype.

    In heads that were rounded to bfloat16, hardly anything is left of the smallest singular value.  Sharded parameters
    (FSDP2) are gathered by their own code, which knows nothing of copies: they are left alone.
    """
    places: list[dict[str, Any]] = [p for m in model.modules() for p in (m._parameters, m._buffers)]
    changed = [
        (members, name, tensor)
        for members in places
        for name, tensor in members.items()
        if type(tensor) in (Tensor, nn.Parameter) and _lower(tensor, dtype)
    ]
    copies: dict[int, Tensor] = {}
    try:
        for members, name, tensor in changed:
            if id(tensor) not in copies:  # tied weights stay tied
                copy = tensor.detach().to(dtype)
                is_parameter = isinstance(tensor, nn.Parameter)
                copies[id(tensor)] = nn.Parameter(copy, requires_grad=False) if is_parameter else copy
            members[name] = copies[id(tensor)]
        yield
    finally:
        for members, name, tensor in changed:
            members[name] = tensor


def _floats_at_least(data: Any, dtype: torch.dtype) -> Any:
    if isinstance(data, Tensor):
        return data.to(dtype) if _lower(data, dtype) else data
    if isinstance(data, Mapping):
        return {name: _floats_at_least(value, dtype) for name, value in data.items()}
    if isinstance(data, (tuple, list)):
        made = [_floats_at_least(value, dtype) for value in data]
        return type(data)(*made) if hasattr(data, "_fields") else type(data)(made)
    return data


def _lower(tensor: Tensor, dtype: torch.dtype) -> bool:
    return tensor.is_floating_point() and tensor.dtype.itemsize < dtype.itemsize
