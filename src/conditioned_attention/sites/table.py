"""The table of known attention classes, and the walk over a model that finds them.

A class is known by its exact type, never by the name of an attribute: a subclass may do anything in its forward.
Each library has a file of its own beside this one, imported only when a model holds a module of that library, with
four functions: ``recognise`` a module, ``install`` a transform at a site, ``uninstall`` it, and ``reaches_heads``,
which says whether an installed one still acts.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from conditioned_attention.preconditioner import TRANSFORM, HeadTransform

# Mechanism of a module that was built with its transform: nothing to convert, and nothing to restore.
BUILT_IN = "built in"

# top-level package of an attention class -> the file that knows it; None takes any class, so it comes last
_LIBRARIES: tuple[tuple[str | None, str], ...] = (
    ("timm", "conditioned_attention.sites.timm"),
    ("torch", "conditioned_attention.sites.torch_nn"),  # the base classes of every module are of this package
    (None, "conditioned_attention.sites.transformers"),
)

_LOOKS_LIKE_ATTENTION = re.compile(r"attention|attn|mhsa", re.IGNORECASE)


@dataclass(frozen=True)
class Site:
    """One attention module of a model.

    Attributes:
        name: where it is, as in ``model.named_modules()``.
        module: the module itself.
        mechanism: how its heads are reached: ``"class swap"``, ``"interface"``, ``"built in"``; empty if they cannot
            be.
        reason: why they cannot be reached, or why there is nothing to do; else empty.
        library: the file of this package that knows the class.
        parents: the modules that contain it, outermost first.
    """

    name: str
    module: nn.Module
    mechanism: str
    reason: str = ""
    library: str = ""
    parents: tuple[nn.Module, ...] = field(default=(), repr=False)

    @property
    def reachable(self) -> bool:
        return bool(self.mechanism)


def find_sites(model: nn.Module) -> list[Site]:
    """Every attention module of ``model``: those the table knows, and those that only look like attention.

    A module that is used in several places is found once.  Modules of unknown classes whose name says attention are
    listed as unreachable with the reason, unless they merely contain or belong to a known one.
    """
    sites: list[Site] = []
    seen: set[int] = set()
    _walk(model, "", (), sites, seen)
    known = {id(p) for site in sites if site.library for p in (*site.parents, site.module)}
    inside = [site.name + "." for site in sites if site.library]
    return [
        site
        for site in sites
        if site.library or (id(site.module) not in known and not any(site.name.startswith(name) for name in inside))
    ]


def _walk(module: nn.Module, name: str, parents: tuple[nn.Module, ...], sites: list[Site], seen: set[int]) -> None:
    if id(module) in seen:
        return
    seen.add(id(module))
    site = _recognise(name, module, parents)
    if site is not None:
        sites.append(site)
    for child_name, child in module.named_children():
        _walk(child, _join(name, child_name, module), (*parents, module), sites, seen)


def _join(name: str, child: str, parent: nn.Module) -> str:
    """The child's path, in which wrappers (torch.compile's, DistributedDataParallel's) leave no trace."""
    wrapped = child == "_orig_mod" or isinstance(parent, (nn.parallel.DistributedDataParallel, nn.DataParallel))
    if wrapped:
        return name
    return f"{name}.{child}" if name else child


def _recognise(name: str, module: nn.Module, parents: tuple[nn.Module, ...]) -> Site | None:
    packages = {cls.__module__.partition(".")[0] for cls in type(module).__mro__}
    for package, library in _LIBRARIES:
        if package is not None and package not in packages:
            continue
        found: tuple[str, str] | None = importlib.import_module(library).recognise(module)
        if found is not None:
            mechanism, reason = found
            return Site(name, module, mechanism, reason, library, parents)
    if _LOOKS_LIKE_ATTENTION.search(type(module).__name__) and _has_weights_of_its_own(module):
        return Site(name, module, "", f"{_class_name(module)} is not in the table of known attention classes")
    return None


def _has_weights_of_its_own(module: nn.Module) -> bool:
    """True for a module with projections, False for an empty shell or a container of blocks."""
    if next(module.parameters(recurse=False), None) is not None:
        return True
    return any(next(child.parameters(recurse=False), None) is not None for child in module.children())


def _class_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def transform_of(module: nn.Module) -> HeadTransform | None:
    """The transform that was left on an attention module, or None."""
    return module.__dict__.get(TRANSFORM)


def active_transform(site: Site) -> HeadTransform | None:
    """The transform that the module's heads really pass through.

    Not the one left on it, if somebody has changed the attention implementation of a Hugging Face model since.
    """
    transform = transform_of(site.module)
    if transform is None or not importlib.import_module(site.library).reaches_heads(site.module):
        return None
    return transform


def install(sites: Sequence[Site], transform: HeadTransform | Callable[[Site], HeadTransform]) -> Callable[[], None]:
    """Puts a transform on every site, which must be reachable; the function returned takes all of it back.

    Nothing is changed if one of the sites cannot take it.
    """
    undo: list[Callable[[], Any]] = []

    def undo_all() -> None:
        while undo:
            undo.pop()()

    try:
        for site in sites:
            chosen = transform if isinstance(transform, HeadTransform) else transform(site)
            undo.append(importlib.import_module(site.library).install(site, chosen))
    except BaseException:
        undo_all()
        raise
    return undo_all


def uninstall(sites: Sequence[Site]) -> list[Site]:
    """Takes the transforms off every site of a model; returns those that had one to take off.

    Raises ValueError, before anything is changed, where a module's class is no longer the one it was switched to.
    """
    for site in sites:
        if _class_changed(site):
            raise ValueError(
                f"{site.name or 'the model'} has become a {type(site.module).__qualname__} since it was converted "
                "(torch.nn.utils.parametrize and fully_shard change classes): undo that before restore"
            )
    return [site for site in sites if site.library and importlib.import_module(site.library).uninstall(site)]


def _class_changed(site: Site) -> bool:
    """Whether somebody has put a class of their own over the one that a conversion switched to."""
    swapped = getattr(importlib.import_module(site.library), "SWAPPED", None) if site.library else None
    return swapped is not None and isinstance(site.module, swapped) and type(site.module) is not swapped
