"""Class swap: an attention module becomes an instance of a subclass whose forward passes the heads on to C.

No module is ever built as such a subclass.  Instances of the library's own class are switched to it and back, which
keeps parameters, hooks, state_dict keys and ``isinstance``; it pickles by name, and compiles like any other class.

A method that was put on the instance is switched along if possible (`rebind`).  A wrapper around the conditioned
method cannot be switched; once the module is restored, it computes what the plain class does.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar, TypeVar

from torch import nn

from conditioned_attention.preconditioner import TRANSFORM, HeadTransform
from conditioned_attention.sites.forward import (
    can_rebind,
    demand,
    demand_no_more,
    end_of,
    name_of,
    reached,
    rebind,
    replaced,
)
from conditioned_attention.sites.site import Mechanism, Site, bare_class, class_name, plain_class, set_class

_SWAP = "_class_swap"
_swaps: dict[type, Swap] = {}  # by the plain class

M = TypeVar("M", bound=type[nn.Module])


@dataclass(frozen=True)
class Swap(Mechanism):
    """Instances of ``plain`` become ``conditioned``, which reads its transform from ``__dict__[TRANSFORM]``.

    ``weights`` says whether the conditioned forward can give the attention weights to the transform, ``norms`` whether
    it can give it the norms of their rows where those suffice, ``queries`` whether it lets the transform change queries
    and keys.
    """

    plain: type[nn.Module]
    conditioned: type[nn.Module]
    weights: bool = True
    queries: bool = True
    norms: bool = False

    name: ClassVar[str] = "class swap"

    def put(self, site: Site, transform: HeadTransform) -> None:
        site.module.__dict__[TRANSFORM] = transform
        if not isinstance(site.module, self.conditioned):
            # Python lets an object change its class for one of the same layout; nothing in the object is touched.
            set_class(site.module, self.conditioned)
            rebind(site.module, self.plain, self.conditioned)
            demand(site.module, "its conditioned attention was not reached")

    def uninstall(self, site: Site) -> bool:
        module = site.module
        if not isinstance(module, self.conditioned):
            return False
        del module.__dict__[TRANSFORM]
        set_class(module, self.plain)
        rebind(module, self.conditioned, self.plain)
        demand_no_more(module)
        return True

    def acts(self, module: nn.Module) -> bool:
        return isinstance(module, self.conditioned)

    def refusal(self, site: Site, transform: HeadTransform) -> str:
        if bare_class(site.module) is not self.plain and not isinstance(site.module, self.conditioned):
            return f"it has become a {type(site.module).__qualname__}: convert before fully_shard or parametrize"
        if reason := self._passed_by(site.module):
            return reason
        given = self.weights or (self.norms and transform.norms_suffice)
        if transform.needs_weights and not given:
            return f"{self.plain.__qualname__} does not give its attention weights to {transform}"
        if transform.changes_queries and not self.queries:
            return f"{self.plain.__qualname__} does not give its queries and keys to {transform}"
        return ""

    def _passed_by(self, module: nn.Module) -> str:
        """Why the conditioned forward would not run; empty if it will."""
        forward = module.__dict__.get("forward")
        if forward is not None and end_of(module, forward) is self.conditioned.forward:
            return ""
        reason = replaced(module, self.plain)
        if reason or forward is None or can_rebind(module, self.plain):
            return reason
        return f"its forward has become {name_of(forward)}: convert first, and put that around it then"

    def stuck(self, module: nn.Module) -> str:
        if isinstance(module, self.conditioned) and bare_class(module) is not self.conditioned:
            return (
                f"it has become a {type(module).__qualname__} since it was converted "
                "(torch.nn.utils.parametrize and fully_shard change classes): undo that before restore"
            )
        return ""


def swapped_for(
    plain: type[nn.Module],
    mechanism: type[Swap] = Swap,
    *,
    weights: bool = True,
    queries: bool = True,
    norms: bool = False,
) -> Callable[[M], M]:
    """Decorates the subclass that instances of ``plain`` are switched to."""

    def decorate(conditioned: M) -> M:
        _swaps[plain] = mechanism(plain, conditioned, weights, queries, norms)
        for name in _written_again(plain, conditioned):
            setattr(conditioned, name, _either(getattr(conditioned, name), getattr(plain, name)))
        setattr(conditioned, _SWAP, _swaps[plain])
        return conditioned

    return decorate


def _written_again(plain: type, conditioned: type) -> set[str]:
    """The names of the methods of a class that its conditioned subclass defines again."""
    above = conditioned.__mro__[: conditioned.__mro__.index(plain)]
    names = {name for cls in above for name, value in vars(cls).items() if inspect.isfunction(value)}
    return {name for name in names if hasattr(plain, name) and not name.startswith("__")}


def _either(conditioned: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """The conditioned method, which acts as the plain one once the module is restored: a wrapper may still hold it."""

    @wraps(conditioned)
    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.__dict__.get(TRANSFORM) is None:
            return plain(self, *args, **kwargs)
        reached(self)
        return conditioned(self, *args, **kwargs)

    return method


def swap_of(cls: type) -> Swap | None:
    """The class swap whose conditioned class is ``cls``, or a class that it is derived from; None if there is none."""
    return getattr(cls, _SWAP, None)


def recognise(module: nn.Module) -> Mechanism | str | None:
    """The class swap of an attention class of this project's own networks, which declare it in the same file.

    Nothing of `experiments` needs to be imported for it: a model that contains such a class was built there.
    """
    return _swaps.get(plain_class(module))


def swap_in(module: str, plain: type) -> Swap:
    """The class swap from a class to its counterpart in a module of ``sites/``, which is imported only now."""
    importlib.import_module(f"conditioned_attention.sites.{module}")
    return _swaps[plain]


def derived_reason(cls: type, names: Container[str]) -> str | None:
    """The reason to refuse a class that is derived from one with one of these names; None if it is not."""
    bases = [base for base in cls.__mro__[1:] if class_name(base) in names]
    return subclass_reason(cls, bases[0]) if bases else None


def subclass_reason(cls: type, known: type) -> str:
    """The reason to refuse a class that is derived from a known one."""
    return (
        f"{class_name(cls)} is a subclass of {known.__qualname__} and may compute something else "
        "(if it does not: register_attention)"
    )
