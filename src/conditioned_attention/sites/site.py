"""One attention module of a model, and the ways in which its heads can be reached."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from torch import nn

from conditioned_attention.preconditioner import TRANSFORM, HeadTransform

# The keys of registered hooks count up from 0, again in every process; a negative key therefore stays free after
# unpickling.  (-1 is taken by modules.py.)
HOOK_KEY = -2


class NoAttention(str):
    """The reason why a module is attention in name only: without heads softmax(q kᵀ) v there is nothing to convert."""

    __slots__ = ()


class Mechanism(ABC):
    """A way to put a `HeadTransform` between the heads of an attention module and its output projection.

    Instances are small immutable values; whatever belongs to one module is kept on that module.
    """

    name: ClassVar[str]
    guarded: ClassVar[bool] = True  # torch.compile notices the change and compiles again
    opt_in: str = ""  # why a module is converted only if it is asked for by name; empty if it always is

    def install(self, site: Site, transform: HeadTransform) -> Callable[[], object]:
        """Puts the transform on the module; the returned function restores what was there before."""
        before = transform_of(site.module)
        self.put(site, transform)
        return partial(self.uninstall, site) if before is None else partial(self.put, site, before)

    @abstractmethod
    def put(self, site: Site, transform: HeadTransform) -> None:
        """Puts the transform on the module, in place of another if there is one."""

    @abstractmethod
    def uninstall(self, site: Site) -> bool:
        """Makes the module plain again; returns whether there was a transform to remove."""

    def remark(self, module: nn.Module) -> str:
        """What a report should say about a module that is reached this way; usually nothing."""
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
        name: its name, as in ``model.named_modules()``.
        module: the module itself.
        mechanism: how its heads are reached; None if they cannot be.
        reason: why they cannot be reached, or why there is nothing to do; otherwise empty.
        known: whether its class is in a table, and does not merely look like attention by its name.
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
        """False for a module that is attention in name only."""
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
    """Whether the module, or its Hugging Face config, says that it is causal: tokens do not see later ones.

    Other modules may be causal too, through the masks that they are called with.
    """
    marks = (("is_causal", module), ("is_decoder", module), ("is_decoder", getattr(module, "config", None)))
    return any(getattr(where, name, False) is True for name, where in marks)


def transform_of(module: nn.Module) -> HeadTransform | None:
    """The transform that was put on an attention module, whether or not it still acts; or None."""
    return module.__dict__.get(TRANSFORM)


def active_transform(site: Site) -> HeadTransform | None:
    """The transform that the module's heads really pass through, or None.

    It is None if the attention implementation of a Hugging Face model was changed after its conversion, although the
    transform is still on the module.
    """
    acts = site.mechanism is not None and site.mechanism.acts(site.module)
    found = transform_of(site.module) if acts else None
    return None if found is None else found.settings


# Where torch derives a class from a module's own and puts it in its place; what the module computes stays the same.
_DERIVED = ("torch.distributed.fsdp", "torch.nn.utils.parametrize")


# Attributes of a class that `summed` derives: the class it is derived from, and a function that derives such a class
# from any other.
PLAIN, DERIVE = "_summed_plain", "_summed_derive"


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The module's class, below those that ``fully_shard`` and ``torch.nn.utils.parametrize`` have derived from it.

    The class of this library that makes its weights read as W + C is left out in the same way.
    """
    cls = type(module)
    while PLAIN in vars(cls) or (cls.__module__.startswith(_DERIVED) and len(cls.__bases__) <= 2):
        cls = cls.__bases__[-1]
    return cls


def bare_class(module: nn.Module) -> type[nn.Module]:
    """The module's class, or the one below if it is the class of this library that makes weights read as W + C."""
    plain: type[nn.Module] = vars(type(module)).get(PLAIN, type(module))
    return plain


def set_class(module: nn.Module, cls: type[nn.Module]) -> None:
    """Gives a module another class; if its weights read as W + C before, they still do."""
    derive = vars(type(module)).get(DERIVE)
    module.__class__ = cls if derive is None else derive(cls)


def class_name(cls: type) -> str:
    """The name under which the tables know a class."""
    return f"{cls.__module__}.{cls.__qualname__}"
