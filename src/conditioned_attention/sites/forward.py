"""Finds what runs when a module is called: the forward of its class, or one that was put on the instance.

``module.forward = …`` leaves an entry in the instance's ``__dict__``, which Python finds before the class's function.
accelerate's hooks are kept there, and after their removal the plain method stays there; other such entries come from
torch.compile of the method, from decorators, and from libraries that replace attention functions.  A change of the
module's class does not affect them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType
from typing import Any, TypeGuard

import torch
import torch.fx
from torch import nn

from conditioned_attention.sites.site import HOOK_KEY

_REACHED = "_heads_reached"  # attribute of a converted module
_COMPILED = "_torchdynamo_orig_callable"  # attribute of a compiled function: the original function
_DEEPEST = 8  # how many nested wrappers are looked into

# Classes of these packages are known by what their own forward does.
_LIBRARIES = ("timm", "torch", "torchvision", "transformers")


def forward_of(module: nn.Module) -> Any:
    """What runs when the module is called; the same object as long as it is not replaced."""
    return module.__dict__.get("forward") or type(module).forward


def end_of(module: nn.Module, forward: Any) -> Any:
    """The function of the module's method that a forward on the instance wraps; the forward itself if it wraps none."""
    *_, last = _layers(module, forward)
    return last.__func__ if _is_bound(module, last) else forward


def replaced(module: nn.Module, cls: type[nn.Module]) -> str:
    """Why the forward that runs is not the one that the tables know for this class; empty if it is."""
    own: Any = cls.forward
    forward = module.__dict__.get("forward")
    if forward is not None and end_of(module, forward) is not own:
        return f"its forward has been replaced by {name_of(forward)}, which may compute something else"
    definer = next(base for base in cls.__mro__ if "forward" in vars(base))
    package = definer.__module__.partition(".")[0]
    if package in _LIBRARIES and _package(own) not in (package, "torch"):
        return (
            f"the forward of {cls.__qualname__} has been replaced by {name_of(own)}, which may compute something else"
        )
    return ""


def rebind(module: nn.Module, before: type, after: type) -> None:
    """Replaces the methods of a class that are stored in the instance's ``__dict__`` by those of another class."""
    for name, value in list(module.__dict__.items()):
        module.__dict__[name] = _rebound(module, value, before, after)
    forward = module.__dict__.get("forward")
    if isinstance(forward, partial) and "__wrapped__" in vars(forward):  # of accelerate, for its signature
        vars(forward)["__wrapped__"] = _rebound(module, vars(forward)["__wrapped__"], before, after)


def can_rebind(module: nn.Module, cls: type) -> bool:
    """Whether the forward on the instance calls that of the class only by way of the instance's ``__dict__``."""
    forward = module.__dict__["forward"]
    method: Any = module.__dict__.get("_old_forward") if _is_of_accelerate(forward) else forward
    return _is_bound(module, method) and method.__func__ is getattr(cls, "forward", None)


def name_of(forward: Any) -> str:
    """Where a forward comes from, for a message."""
    named = forward
    while isinstance(named, (partial, MethodType)):
        named = named.func if isinstance(named, partial) else named.__func__
    if hasattr(forward, _COMPILED):
        return "torch.compile of a method"
    name = getattr(named, "__qualname__", None)
    code = getattr(named, "__code__", None)  # functools.wraps does not change it
    if code is not None and code.co_name not in (name or ""):
        name = code.co_qualname if hasattr(code, "co_qualname") else code.co_name
    where = getattr(named, "__globals__", {}).get("__name__", type(forward).__module__)
    return f"{where}.{name or type(forward).__qualname__}"


class Reached:
    """Kept on a converted module: the forward under which its heads last passed its transform.  Copies start empty."""

    def __init__(self) -> None:
        self.under: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Reached, ()


@dataclass(frozen=True)
class MustReach:
    """A hook after a converted module: raises unless its heads have passed its transform under its present forward.

    Once for every forward is enough: if another one is put on the module later, that is noticed at the next call.
    """

    missing: str
    advice: str

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if torch.compiler.is_compiling() or module.__dict__[_REACHED].under is forward_of(module):
            return
        compiled = any(hasattr(layer, _COMPILED) for layer in _layers(module, forward_of(module)))
        if compiled or _has_proxy(output):  # compiled code leaves no trace; what torch.fx traces calls the module later
            return
        raise RuntimeError(
            f"{self.missing} in the forward of this {type(module).__qualname__}, {name_of(forward_of(module))}, so it "
            f"would run unconditioned although it was converted: {self.advice}, or call restore(model)"
        )


def demand(module: nn.Module, missing: str, advice: str = "remove that forward") -> None:
    """Makes the module raise from now on if its heads do not pass its transform."""
    module.__dict__[_REACHED] = Reached()
    module._forward_hooks[HOOK_KEY] = MustReach(missing, advice)


def demand_no_more(module: nn.Module) -> None:
    """Undoes `demand`."""
    module.__dict__.pop(_REACHED, None)
    module._forward_hooks.pop(HOOK_KEY, None)


def reached(module: nn.Module) -> None:
    """Notes that the heads of a converted module pass its transform."""
    if not torch.compiler.is_compiling() and _REACHED in module.__dict__:
        module.__dict__[_REACHED].under = forward_of(module)


def _layers(module: nn.Module, forward: Any) -> Iterator[Any]:
    """A forward, what it wraps, and so on, if that leads to a method of this module."""
    yield forward
    yield from _path(module, forward, _DEEPEST) or ()


def _path(module: nn.Module, forward: Any, depth: int) -> list[Any] | None:
    """The functions from what a forward holds down to the method of this module; None if it holds none."""
    if depth == 0 or _is_bound(module, forward):
        return [] if _is_bound(module, forward) else None
    for inner in _held(module, forward):
        further = _path(module, inner, depth - 1)
        if further is not None:
            return [inner, *further]
    return None


def _held(module: nn.Module, forward: Any) -> Iterator[Any]:
    """What a function may call: through accelerate's hooks, torch.compile, ``functools.partial`` or its closure."""
    if _is_of_accelerate(forward):
        held = [module.__dict__.get("_old_forward")]
    elif hasattr(forward, _COMPILED) and not isinstance(forward, MethodType):
        held = [getattr(forward, _COMPILED)]
    elif isinstance(forward, partial):
        held = [forward.func, *forward.args, *forward.keywords.values()]
    else:
        cells = getattr(forward, "__closure__", None) or ()
        held = [cell.cell_contents for cell in cells if not _is_empty(cell)]
    return (each for each in held if isinstance(each, (FunctionType, MethodType, partial)))


def _is_empty(cell: Any) -> bool:
    try:
        return cell.cell_contents is None
    except ValueError:
        return True


def _is_of_accelerate(forward: Any) -> bool:
    return isinstance(forward, partial) and getattr(forward.func, "__module__", None) == "accelerate.hooks"


def _is_bound(module: nn.Module, method: Any) -> TypeGuard[MethodType]:
    return isinstance(method, MethodType) and method.__self__ is module


def _rebound(module: nn.Module, value: Any, before: type, after: type) -> Any:
    if not _is_bound(module, value):
        return value
    name = value.__func__.__name__
    return MethodType(getattr(after, name), module) if value.__func__ is getattr(before, name, None) else value


def _package(function: Any) -> str:
    """The top-level package in which a function was written, even if functools.wraps has changed what it says."""
    own: Any = function if inspect.isfunction(function) else None
    return "" if own is None else own.__globals__.get("__name__", "").partition(".")[0]


def _has_proxy(output: Any) -> bool:
    inside = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else [output]
    return any(isinstance(each, torch.fx.Proxy) for each in inside)
