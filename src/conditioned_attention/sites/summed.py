"""Makes a module's weight read as W + C for code that computes with it, and as W for everything else.

The module becomes an instance of a class derived from its own, with a property of the weight's name.  The property
adds C again at every read, so that a call changes nothing that threads share.  It depends on the reader what it gives:
the forward of the module itself, and that of the attention module that it belongs to, get W + C, whether the
projection is called or its weight is read; optimizers, state_dict, adapters that are merged, and the user get the
parameter.  Compiled code contains forwards only, and always gets W + C.

Once the correction is taken off, the derived class computes what the plain one does.  So it can be left in place if
something else (``fully_shard``) has derived another class from it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from conditioned_attention.sites.adapters import keeps_weights
from conditioned_attention.sites.correction import Correction
from conditioned_attention.sites.projections import held, not_to_add_to
from conditioned_attention.sites.site import DERIVE, PLAIN, bare_class

_CORRECTIONS = "_corrections"  # attribute of the module: the `Correction` of each weight, by its name
_CALL = nn.Module._call_impl.__code__


class _Thread(threading.local):
    """The state of one thread, by the id of the module that owns the weights."""

    def __init__(self) -> None:
        self.sums: dict[int, dict[str, Tensor]] = {}  # W + C while a module's forward runs, so that it is added once
        self.shown: dict[int, bool] = {}  # whether W + C or W is to be seen now


_thread = _Thread()


def add(owner: nn.Module, correction: Correction) -> None:
    """Makes the module compute with W + C for this weight from now on."""
    parameter = correction.projection.parameter
    corrections = owner.__dict__.setdefault(_CORRECTIONS, {})
    if corrections.setdefault(parameter, correction) != correction:
        raise ValueError(
            f"two attention modules want different corrections of the {type(owner).__qualname__} they share"
        )
    owner.__class__ = _summed(bare_class(owner), tuple(corrections))  # type: ignore[arg-type]


def take_off(owner: nn.Module, parameter: str) -> None:
    """Makes the module compute with W again."""
    corrections = owner.__dict__.get(_CORRECTIONS, {})
    corrections.pop(parameter, None)
    if not corrections:
        owner.__dict__.pop(_CORRECTIONS, None)
        owner.__class__ = bare_class(owner)


def is_added(owner: nn.Module, correction: Correction) -> bool:
    """Whether the correction is on the module, and its class is still one that applies it."""
    ours = any(PLAIN in vars(cls) for cls in type(owner).__mro__)
    return ours and owner.__dict__.get(_CORRECTIONS, {}).get(correction.projection.parameter) == correction


@contextmanager
def seen(owners: Iterable[nn.Module], *, corrected: bool) -> Iterator[None]:
    """Within the block these modules show W + C, or W if not ``corrected``, to every reader in this thread."""
    before, _thread.shown = _thread.shown, {**_thread.shown, **{id(owner): corrected for owner in owners}}
    try:
        yield
    finally:
        _thread.shown = before


@cache
def _summed(plain: type[nn.Module], parameters: tuple[str, ...]) -> type[nn.Module]:
    """The class derived from ``plain``, with the same name, because tables and the printed model go by that."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for correction in self.__dict__.get(_CORRECTIONS, {}).values():
            _must_be_held(self, correction)
        if torch.compiler.is_compiling():
            return plain.forward(self, *args, **kwargs)
        before = _thread.sums.get(id(self))
        _thread.sums[id(self)] = {}
        try:
            return plain.forward(self, *args, **kwargs)
        finally:
            if before is None:
                del _thread.sums[id(self)]
            else:
                _thread.sums[id(self)] = before

    def reduce(self: nn.Module, protocol: Any) -> Any:
        reduced: Any = plain.__reduce_ex__(self, protocol)
        # otherwise it is of a class that fully_shard has derived from this one
        return (_new, (plain, parameters), *reduced[2:]) if type(self) is derived else reduced

    names = {"__module__": plain.__module__, "__qualname__": plain.__qualname__, "__doc__": plain.__doc__}
    marks = {PLAIN: plain, DERIVE: partial(_summed, parameters=parameters)}
    properties = {parameter: _property(parameter) for parameter in parameters}
    content = {**names, **marks, **properties, "forward": forward, "__reduce_ex__": reduce}
    derived = type(plain.__name__, (plain,), content)
    return derived


def _new(plain: type[nn.Module], parameters: tuple[str, ...]) -> nn.Module:
    """An empty instance, for pickle and copy to fill."""
    return object.__new__(_summed(plain, parameters))  # type: ignore[arg-type]  # it says that classes have no hash


def _must_be_held(owner: nn.Module, correction: Correction) -> None:
    """Raises RuntimeError if a property hides ours, such as torch.nn.utils.parametrize puts there."""
    if held(owner, correction.projection.parameter) is None:
        raise RuntimeError(f"{correction.projection.replaced(owner)}: call fold(model) before that is done to it")


def _property(parameter: str) -> property:
    def get(owner: nn.Module) -> Tensor | None:
        return _read(owner, parameter)

    def put(owner: nn.Module, value: Any) -> None:  # for what is not a parameter: nn.Module registers those
        owner.__dict__[parameter] = value

    def delete(owner: nn.Module) -> None:
        if parameter not in owner.__dict__:
            raise AttributeError(parameter)
        del owner.__dict__[parameter]

    return property(get, put, delete)


def _read(owner: nn.Module, parameter: str) -> Tensor | None:
    weight = held(owner, parameter)
    if weight is None and parameter not in owner._parameters:
        raise AttributeError(f"{type(owner).__name__!r} object has no attribute {parameter!r}")
    correction: Correction | None = owner.__dict__.get(_CORRECTIONS, {}).get(parameter)
    if weight is None or correction is None:
        return weight
    if torch.compiler.is_compiling():
        return weight + correction.of(owner)
    shown = _thread.shown.get(id(owner))
    if shown is None:
        shown = id(owner) in _thread.sums or _computes(sys._getframe(2), owner, correction)
    return _sum(owner, weight, correction) if shown else weight


def _sum(owner: nn.Module, weight: Tensor, correction: Correction) -> Tensor:
    """W + C, computed once per call of the owner's forward."""
    parameter, sums = correction.projection.parameter, _thread.sums.get(id(owner), {})
    if parameter not in sums:
        if reason := not_to_add_to(weight):
            name = correction.projection.name
            raise RuntimeError(f"{name}, which is corrected, {reason}: call fold(model) before that is done to it")
        if parameter in owner._parameters:
            weight = nn.Module.__getattr__(owner, parameter)  # type: ignore[assignment]  # a proxy, under torch.fx
        sums[parameter] = weight + correction.of(owner)
    return sums[parameter]


def _computes(frame: FrameType | None, owner: nn.Module, correction: Correction) -> bool:
    """Whether a weight is being read in a call of the module that owns it, or of its attention module.

    This is found from the call stack, which belongs to this thread alone.
    """
    while frame is not None and not keeps_weights(frame):
        code = frame.f_code
        if (code is _CALL or code.co_name == "forward") and code.co_argcount:
            called = frame.f_locals.get(code.co_varnames[0])
            if called is owner or isinstance(called, correction.attention):
                return True
        frame = frame.f_back
    return False
