"""Walks over a model and finds its attention modules, each with the way to its heads.

A class is recognised by its exact type, never by the name of an attribute: a subclass may do anything in its forward.
Each library has a file of its own with one function, ``recognise``, which is imported only when a model contains a
module of that library.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import nn

from conditioned_attention.preconditioner import HeadTransform
from conditioned_attention.sites import learned, registered
from conditioned_attention.sites.corrected import correct
from conditioned_attention.sites.effect import check_effect
from conditioned_attention.sites.hook import Hook, hook_of
from conditioned_attention.sites.learned import OnModule
from conditioned_attention.sites.projections import Projections
from conditioned_attention.sites.site import Mechanism, Site, class_name, plain_class, transform_of
from conditioned_attention.sites.swap import swap_of
from conditioned_attention.sites.versions import unsupported
from conditioned_attention.spectral import Spectral

# top-level package of an attention class -> the file that knows it
_LIBRARIES = {
    "conditioned_attention": "conditioned_attention.sites.swap",
    "timm": "conditioned_attention.sites.timm.heads",
    "torchvision": "conditioned_attention.sites.torchvision.heads",
    "torch": "conditioned_attention.sites.torch_nn.heads",  # the base classes of every module are of this package
}
# Classes of any other package may call transformers' interface; those that are made of these alone do not.
_ON_THE_INTERFACE = "conditioned_attention.sites.transformers.heads"
_NOT_ON_THE_INTERFACE = {"timm", "torchvision", "torch", "builtins"}

# the same for W_Q, W_K and W_V: tables by class and, for classes that are not in them, the file's `recognise`, if any
_PROJECTIONS = {
    "timm": "conditioned_attention.sites.timm.projections",
    "torchvision": "conditioned_attention.sites.torch_nn.projections",
    "torch": "conditioned_attention.sites.torch_nn.projections",
    "conditioned_attention": "conditioned_attention.sites.torch_nn.projections",
    "transformers": "conditioned_attention.sites.transformers.projections",
}

_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)
_OF_JIT = "torch.jit has traced or scripted it: convert the model, and do that then"
_LOOKS_LIKE_ATTENTION = re.compile(r"attention|attn|mhsa", re.IGNORECASE)


def find_sites(model: nn.Module) -> list[Site]:
    """Every attention module of ``model``: those the table knows, and those that only look like attention.

    A module that is used in several places is found once.  Modules of unknown classes with attention in their name are
    listed as unreachable with the reason, unless they merely contain or belong to a known one.
    """
    sites: list[Site] = []
    seen: set[int] = set()
    _walk(model, "", (), sites, seen)
    sites = _without_shared(sites)
    known = {id(p) for site in sites if site.known for p in (*site.parents, site.module)}
    inside = [site.name + "." for site in sites if site.known]
    return [
        site
        for site in sites
        if site.known or (id(site.module) not in known and not any(site.name.startswith(name) for name in inside))
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


def _without_shared(sites: list[Site]) -> list[Site]:
    """The sites, with those made unreachable whose heads go into the same module as those of another.

    A hook before that module would mistake the heads of one attention module for those of the other.
    """
    users: dict[int, list[Site]] = {}
    for site in sites:
        if isinstance(site.mechanism, Hook) and (target := site.mechanism.target(site.module)) is not None:
            users.setdefault(id(target), []).append(site)
    refused: dict[int, str] = {}
    for sharing in users.values():
        for site in sharing if len(sharing) > 1 else ():
            if transform_of(site.module) is None:  # one that is converted already stays, so that it can be undone
                others = ", ".join(other.name for other in sharing if other is not site)
                refused[id(site.module)] = f"the module behind its heads is that of {others} too"
    return [
        replace(site, mechanism=None, reason=refused[id(site.module)]) if id(site.module) in refused else site
        for site in sites
    ]


def _join(name: str, child: str, parent: nn.Module) -> str:
    """The child's path, in which wrappers (torch.compile's, DistributedDataParallel's) leave no trace."""
    if child == "_orig_mod" or isinstance(parent, _WRAPPERS):
        return name
    return f"{name}.{child}".lstrip(".")


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of torch.compile and DistributedDataParallel."""
    while True:
        if isinstance(model, _WRAPPERS):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):  # torch.compile
            model = inner
        else:
            return model


def _recognise(name: str, module: nn.Module, parents: tuple[nn.Module, ...]) -> Site | None:
    found = _look_up(module)
    if isinstance(found, str):
        return Site(name, module, None, found, True, parents)
    if found is not None:
        return Site(name, module, found, found.remark(module), True, parents)
    if _LOOKS_LIKE_ATTENTION.search(type(module).__name__) and _has_weights_of_its_own(module):
        reason = f"{class_name(type(module))} is not in the table of known attention classes; see register_attention"
        return Site(name, module, None, reason, False, parents)
    return None


def _look_up(module: nn.Module) -> Mechanism | str | None:
    """The way to a module's heads, or the reason why there is none; None if it is no attention module."""
    if isinstance(module, torch.jit.ScriptModule):  # its forward is a program; asking its class for it is an error
        return _OF_JIT if _LOOKS_LIKE_ATTENTION.search(str(getattr(module, "original_name", ""))) else None
    already = swap_of(type(module)) or hook_of(module)
    if already is not None:
        return already
    packages = {cls.__module__.partition(".")[0] for cls in type(module).__mro__}
    libraries = [library for package, library in _LIBRARIES.items() if package in packages]
    if not packages <= _NOT_ON_THE_INTERFACE:
        libraries.append(_ON_THE_INTERFACE)
    for recognise in (registered.recognise, *(importlib.import_module(library).recognise for library in libraries)):
        found: Mechanism | str | None = recognise(module)
        if found is not None:
            reasons = (unsupported(package) for package in sorted(packages))
            return next((reason for reason in reasons if reason), found)
    return None


def find_projections(attention: nn.Module) -> Projections | str:
    """The weights that make an attention module's queries, keys and values; the reason if they are not known."""
    if isinstance(attention, torch.jit.ScriptModule):
        return _OF_JIT
    swap = swap_of(type(attention))
    cls = plain_class(attention) if swap is None else swap.plain
    package = cls.__module__.partition(".")[0]
    own = registered.projections_of(attention)
    if own is not None:
        return f"{cls.__qualname__} {own}" if isinstance(own, str) else own
    if package in _PROJECTIONS:
        library = importlib.import_module(_PROJECTIONS[package])
        found = library.FOUND.get(class_name(cls), getattr(library, "recognise", None))
        projections: Projections | str | None = found(attention) if callable(found) else found
        if projections is not None:
            about = f"{cls.__qualname__} {projections}" if isinstance(projections, str) else projections
            return unsupported(package) or about
    return f"the projections of {class_name(cls)} are not in the table: register_attention(…, projections=…)"


def _has_weights_of_its_own(module: nn.Module) -> bool:
    """True for a module with projections, False for an empty shell or a container of blocks."""
    return any(next(m.parameters(recurse=False), None) is not None for m in (module, *module.children()))


def install(sites: Sequence[Site], transform: HeadTransform | Callable[[Site], HeadTransform]) -> Callable[[], None]:
    """Puts a transform on every site; the returned function undoes all of it.

    Raises ValueError, and changes nothing, if one of the sites cannot take it.
    """
    chosen = [(site, transform if isinstance(transform, HeadTransform) else transform(site)) for site in sites]
    for site, its_transform in chosen:
        reason = against(site, its_transform)
        if reason:
            raise ValueError(f"{site.name or 'the model'} cannot be converted: {reason}")
    with ExitStack() as undo:
        for site, its_transform in chosen:
            assert site.mechanism is not None
            if isinstance(its_transform, OnModule):
                projections = find_projections(site.module)
                assert isinstance(projections, Projections)
                undo.callback(its_transform.end, site.module)
                its_transform = learned.bind(site.module, its_transform, projections)
            undo.callback(site.mechanism.install(site, its_transform))
        return undo.pop_all().close


def correct_sites(sites: Sequence[Site], settings: Callable[[Site], Spectral], *, loading: bool = False) -> None:
    """Corrects the projections of every site.

    Raises ValueError, and changes nothing, if those of one site are not known or cannot be corrected.  With
    ``loading``, corrections that would have to be computed are left for a state_dict to bring.
    """
    plans = [(site, find_projections(site.module), settings(site)) for site in sites]
    for site, projections, _ in plans:
        reason = projections if isinstance(projections, str) else projections.against(site.module)
        if reason:
            raise ValueError(f"{site.name or 'the model'} cannot be corrected: {reason}")
    with ExitStack() as undo:
        for site, projections, spectral in plans:
            assert isinstance(projections, Projections)
            undo.callback(correct(site.module, projections, spectral, loading=loading))
            if not loading and not spectral.folded:
                check_effect(site.module)
        undo.pop_all()
    reset_compiled()


def uninstall(sites: Sequence[Site]) -> list[Site]:
    """Removes the transforms from all sites of a model; returns the sites that had one.

    Raises ValueError, before anything is changed, if a module cannot be made plain in its present state.
    """
    for site in sites:
        reason = site.mechanism.stuck(site.module) if site.mechanism is not None else ""
        if reason:
            raise ValueError(f"{site.name or 'the model'} cannot be restored: {reason}")
    return [site for site in sites if _uninstall(site)]


def _uninstall(site: Site) -> bool:
    transform = transform_of(site.module)
    if site.mechanism is None or not site.mechanism.uninstall(site):
        return False
    if transform is not None and isinstance(transform.settings, OnModule):
        transform.settings.end(site.module)
    return True


def against(site: Site, transform: HeadTransform) -> str:
    """Why a transform cannot be put on a site; empty if it can."""
    reason = site.against(transform)
    if reason or not isinstance(transform, OnModule) or site.mechanism is None:
        return reason
    return learned.against(site.module, site.mechanism, transform, find_projections(site.module))


def forget_compiled(sites: Sequence[Site]) -> None:
    """Makes torch.compile compile again if it would otherwise go on with code from before these sites changed.

    It cannot forget a single model, so everything that the process has compiled is compiled again at its next call.
    """
    if any(site.mechanism is not None and not site.mechanism.guarded for site in sites):
        reset_compiled()


def reset_compiled() -> None:
    """Makes torch.compile compile everything again."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
