"""What runs when a module is called: the forward of its class, or one that somebody has put on the instance.

``module.forward = …`` leaves an entry in the instance's ``__dict__``, which Python finds before the class's function:
accelerate's hooks stand there, and stay as the plain method after they have been taken off; so do torch.compile of the
method, decorators, and functions of libraries that exchange attention.  A change of class does not reach them.
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
_COMPILED = "_torchdynamo_orig_callable"  # of what torch.compile makes of a function: that function
_DEEPEST = 8  # wrappers around wrappers that are looked into

# Classes of these packages are known by what their own forward does.
_LIBRARIES = ("timm", "torch", "torchvision", "transformers")


def forward_of(module: nn.Module) -> Any:
    """What runs when the module is called; one and the same object as long as nobody replaces it."""
    return module.__dict__.get("forward") or type(module).forward


def end_of(module: nn.Module, forward: Any) -> Any:
    """The function that a forward on the instance comes down to, if it holds a method of this module; else itself."""
    *_, last = _layers(module, forward)
    return last.__func__ if _is_bound(module, last) else forward


def replaced(module: nn.Module, cls: type[nn.Module]) -> str:
    """Why what runs is not the forward that the tables know of this class; empty if it is."""
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
    """Lets the methods of a class that stand in the instance's ``__dict__`` be those of another class."""
    for name, value in list(module.__dict__.items()):
        module.__dict__[name] = _rebound(module, value, before, after)
    forward = module.__dict__.get("forward")
    if isinstance(forward, partial) and "__wrapped__" in vars(forward):  # of accelerate, for its signature
        vars(forward)["__wrapped__"] = _rebound(module, vars(forward)["__wrapped__"], before, after)


def can_rebind(module: nn.Module, cls: type) -> bool:
    """Whether the forward on the instance calls the class's by way of its ``__dict__`` alone."""
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
    code = getattr(named, "__code__", None)  # functools.wraps leaves it what it was
    if code is not None and code.co_name not in (name or ""):
        name = code.co_qualname if hasattr(code, "co_qualname") else code.co_name
    where = getattr(named, "__globals__", {}).get("__name__", type(forward).__module__)
    return f"{where}.{name or type(forward).__qualname__}"


class Reached:
    """On a converted module: under which forward its heads have come by the transform.  Copies begin anew."""

    def __init__(self) -> None:
        self.under: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Reached, ()


@dataclass(frozen=True)
class MustReach:
    """Stands behind a converted module, whose heads have to have come by under the forward that it has now.

    Once under every forward: whoever puts another one on the module later is noticed at the next call.
    """

    missing: str
    advice: str

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if torch.compiler.is_compiling() or module.__dict__[_REACHED].under is forward_of(module):
            return
        compiled = any(hasattr(layer, _COMPILED) for layer in _layers(module, forward_of(module)))
        if compiled or _has_proxy(output):  # leaves no trace; a trace of torch.fx calls the module later
            return
        raise RuntimeError(
            f"{self.missing} in the forward of this {type(module).__qualname__}, {name_of(forward_of(module))}; so it "
            f"runs plain, although it was converted: {self.advice}, or call restore(model)"
        )


def demand(module: nn.Module, missing: str, advice: str = "take that forward off") -> None:
    """From now on the module raises where its heads do not come by."""
    module.__dict__[_REACHED] = Reached()
    module._forward_hooks[HOOK_KEY] = MustReach(missing, advice)


def demand_no_more(module: nn.Module) -> None:
    """Undoes `demand`."""
    module.__dict__.pop(_REACHED, None)
    module._forward_hooks.pop(HOOK_KEY, None)


def reached(module: nn.Module) -> None:
    """The heads of a converted module come by its transform."""
    if not torch.compiler.is_compiling() and _REACHED in module.__dict__:
        module.__dict__[_REACHED].under = forward_of(module)


def _layers(module: nn.Module, forward: Any) -> Iterator[Any]:
    """A forward, what it is wrapped around, and so on, as far as that leads to a method of this module."""
    yield forward
    yield from _path(module, forward, _DEEPEST) or ()


def _path(module: nn.Module, forward: Any, depth: int) -> list[Any] | None:
    """From what a forward holds to the method of this module; None if it holds none."""
    if depth == 0 or _is_bound(module, forward):
        return [] if _is_bound(module, forward) else None
    for inner in _held(module, forward):
        further = _path(module, inner, depth - 1)
        if further is not None:
            return [inner, *further]
    return None


def _held(module: nn.Module, forward: Any) -> Iterator[Any]:
    """What a function may call: by accelerate's hooks, torch.compile, arguments bound early, and its closure."""
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
    """Where a function was written, whatever functools.wraps has written over it."""
    own: Any = function if inspect.isfunction(function) else None
    return "" if own is None else own.__globals__.get("__name__", "").partition(".")[0]


def _has_proxy(output: Any) -> bool:
    inside = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else [output]
    return any(isinstance(each, torch.fx.Proxy) for each in inside)
