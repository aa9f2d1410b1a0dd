"""One attention module of a model, and the ways in which its heads can be reached."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from torch import nn

from conditioned_attention.preconditioner import TRANSFORM, HeadTransform

# Hooks that are registered count up from 0, in every process anew; below 0 a place among them stays free after
# unpickling.  (-1 is taken by modules.py.)
HOOK_KEY = -2


class NoAttention(str):
    """The reason why a module that calls itself attention has no heads softmax(q kᵀ) v: nothing there is left out."""

    __slots__ = ()


class Mechanism(ABC):
    """A way to put a `HeadTransform` between the heads of an attention module and its output projection.

    Instances are small immutable values; whatever belongs to one module is kept on that module.
    """

    name: ClassVar[str]
    guarded: ClassVar[bool] = True  # torch.compile notices the change and compiles again
    opt_in: str = ""  # why a module is converted only if it is asked for by name; empty if it always is

    def install(self, site: Site, transform: HeadTransform) -> Callable[[], object]:
        """Puts the transform on the module; the function returned takes it back to what was before."""
        before = transform_of(site.module)
        self.put(site, transform)
        return partial(self.uninstall, site) if before is None else partial(self.put, site, before)

    @abstractmethod
    def put(self, site: Site, transform: HeadTransform) -> None:
        """Puts the transform on the module, in place of another if there is one."""

    @abstractmethod
    def uninstall(self, site: Site) -> bool:
        """Makes the module plain again; whether there was a transform to take off."""

    def remark(self, module: nn.Module) -> str:
        """What a report should say about a module that is reached this way; mostly nothing."""
        return ""

    def acts(self, module: nn.Module) -> bool:
        """Whether a transform left on the module still reaches its heads."""
        return True

    def refusal(self, site: Site, transform: HeadTransform) -> str:
        """Why this transform cannot be put there; empty if it can."""
        return ""

    def stuck(self, module: nn.Module) -> str:
        """Why the module cannot be made plain now; empty if it can."""
        return ""


@dataclass(frozen=True)
class Site:
    """One attention module of a model.

    Attributes:
        name: where it is, as in ``model.named_modules()``.
        module: the module itself.
        mechanism: how its heads are reached; None if they cannot be.
        reason: why they cannot be reached, or why there is nothing to do; else empty.
        known: whether its class is in a table, and does not merely look like attention.
        parents: the modules that contain it, outermost first.
    """

    name: str
    module: nn.Module
    mechanism: Mechanism | None
    reason: str = ""
    known: bool = True
    parents: tuple[nn.Module, ...] = field(default=(), repr=False)

    @property
    def reachable(self) -> bool:
        return self.mechanism is not None

    @property
    def attention(self) -> bool:
        """False for what only calls itself so."""
        return not isinstance(self.reason, NoAttention)

    @property
    def opt_in(self) -> str:
        """Why the module is converted only if it is asked for by name; empty if it always is."""
        return "" if self.mechanism is None else self.mechanism.opt_in

    def against(self, transform: HeadTransform) -> str:
        """Why the transform cannot be put here; empty if it can."""
        if self.mechanism is None:
            return self.reason
        if transform.mixes_rows and _says_causal(self.module):
            return f"it is causal, and {transform} would let later tokens change earlier ones"
        return self.mechanism.refusal(self, transform)


def _says_causal(module: nn.Module) -> bool:
    """Whether the module, or its Hugging Face config, says that its queries know nothing of later ones.

    Others may be causal too, by the masks that they are called with.
    """
    marks = (("is_causal", module), ("is_decoder", module), ("is_decoder", getattr(module, "config", None)))
    return any(getattr(where, name, False) is True for name, where in marks)


def transform_of(module: nn.Module) -> HeadTransform | None:
    """The transform that was left on an attention module, or None."""
    return module.__dict__.get(TRANSFORM)


def active_transform(site: Site) -> HeadTransform | None:
    """The transform that the module's heads really pass through.

    Not the one left on it, if somebody has changed the attention implementation of a Hugging Face model since.
    """
    acts = site.mechanism is not None and site.mechanism.acts(site.module)
    found = transform_of(site.module) if acts else None
    return None if found is None else found.settings


# Where torch derives a class from a module's own to put in its place; what it computes stays what it was.
_DERIVED = ("torch.distributed.fsdp", "torch.nn.utils.parametrize")


# In the class that `summed` derives from another: the other, and what derives its like from any class.
PLAIN, DERIVE = "_summed_plain", "_summed_derive"


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The module's class, without those that ``fully_shard`` and ``torch.nn.utils.parametrize`` have put over it.

    And without ours that makes its weights read as W + C.
    """
    cls = type(module)
    while PLAIN in vars(cls) or (cls.__module__.startswith(_DERIVED) and len(cls.__bases__) <= 2):
        cls = cls.__bases__[-1]
    return cls


def bare_class(module: nn.Module) -> type[nn.Module]:
    """The module's class, without ours that makes its weights read as W + C if that is the outermost."""
    plain: type[nn.Module] = vars(type(module)).get(PLAIN, type(module))
    return plain


def set_class(module: nn.Module, cls: type[nn.Module]) -> None:
    """Gives a module another class; its weights read as W + C afterwards as they did before."""
    derive = vars(type(module)).get(DERIVE)
    module.__class__ = cls if derive is None else derive(cls)


def class_name(cls: type) -> str:
    """The name under which the tables know a class."""
    return f"{cls.__module__}.{cls.__qualname__}"
