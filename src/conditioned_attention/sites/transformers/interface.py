"""Interface: every attention class of Hugging Face transformers that calls its kernel through `AttentionInterface`.

A config names the attention function that its modules call.  A conditioned module has its config's name changed from
``sdpa`` to ``conditioned_sdpa`` (``eager`` to ``conditioned_eager``): a function that calls the original one and
then applies the module's own transform, or nothing where the module has none.  The same name is registered for the
masks; without that transformers would silently build no mask at all.  If the name is changed back, a hook on every
conditioned module raises, instead of running plain attention.

Shapes: B batch, H heads, N queries, M keys, D head width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import FunctionType
from typing import Any, ClassVar
from weakref import WeakKeyDictionary, WeakSet, finalize, ref

import torch
from torch import Tensor, nn

from conditioned_attention.functional import behind
from conditioned_attention.preconditioner import TRANSFORM, HeadTransform, RowNorm, check_rows
from conditioned_attention.sites.forward import (
    demand,
    demand_no_more,
    end_of,
    forward_of,
    name_of,
    reached,
    replaced,
)
from conditioned_attention.sites.hook import put_first
from conditioned_attention.sites.site import HOOK_KEY, Mechanism, Site, plain_class, transform_of
from conditioned_attention.sites.transformers import bytecode, source
from conditioned_attention.sites.transformers.attentions import give_back, hold
from conditioned_attention.sites.transformers.marker import MARKER, NAME, PREFIX, is_conditioned
from conditioned_attention.sites.transformers.packed import PACKED
from conditioned_attention.sites.transformers.sdpa import attend_like_sdpa, causal, look_up, stands_in_for
from conditioned_attention.sites.transformers.source import Reading

_WITH_WEIGHTS = ("sdpa", "eager")  # those whose masks can be given to an eager function
_FLASH = ("flash_attention_2", "flash_attention_3", "flash_attention_4")
_BASES = (*_WITH_WEIGHTS, *_FLASH, "flex_attention", PACKED)

_TABLE = "ALL_ATTENTION_FUNCTIONS"  # of transformers, imported into every model file that uses it
_REGISTRATION = "_head_registration"
_FORWARD = "_head_forward"  # of a conditioned module: the function on the instance that calls the interface

# Files that read "eager" only to honour this flag, which the modules carry.
_UPCAST_FLAG = "reorder_and_upcast_attn"


def recognise(module: nn.Module) -> Mechanism | str | None:
    """The way to the heads of a module that calls the interface, or the reason why there is none; None if it does not.

    It is recognised by what its forward calls, not by its class.
    """
    forward = _calls_the_interface(module)
    if forward is None and "forward" in module.__dict__:
        forward = _calls_the_interface(module, type(module).forward)
    if forward is None:
        return None
    reading = _read(forward)
    name = _implementation(module)
    if name is None:
        return "it has no config that names an attention implementation"
    if name == MARKER:
        return "its checkpoint was trained with conditioned attention: call apply_conditioning(model) first"
    base = name.removeprefix(PREFIX)
    if base not in _BASES:
        return f"it runs {name!r}; conditioning works over {', '.join(_BASES)}: call set_attn_implementation"
    upcast_alone = base == PACKED and getattr(module, _UPCAST_FLAG, None) is False
    if base not in _WITH_WEIGHTS and reading.own.words & {*_WITH_WEIGHTS} and not upcast_alone:
        return f"its forward turns from {base} to another implementation: call set_attn_implementation"
    if _reads_the_name(module, reading, base):
        return "its model file branches on the implementation's name, so another name would change what it does"
    return Interface()


class Interface(Mechanism):
    """Reaches the heads by another implementation name in the config, and keeps the transform on the module."""

    name: ClassVar[str] = "interface"

    def install(self, site: Site, transform: HeadTransform) -> Callable[[], object]:
        renamed = [config for config in _configs(site) if getattr(config, NAME) in _BASES]
        take_back = super().install(site, transform)

        def undo() -> None:
            take_back()
            for config in renamed:  # also if an earlier transform stays, which no longer acted under another name
                _make_plain(config, site)

        return undo

    def put(self, site: Site, transform: HeadTransform) -> None:
        for config in _configs(site):
            if getattr(config, NAME) in _BASES:
                setattr(config, NAME, PREFIX + getattr(config, NAME))
                hold(config, site.parents)
            _users(config, site).add(site.module)
        site.module.__dict__[TRANSFORM] = transform
        _register()
        site.module.__dict__[_REGISTRATION] = _Registered(site.module, _configs(site))
        forward = _calls_the_interface(site.module)
        if forward is not None and forward is not _function(type(site.module).forward):
            site.module.__dict__[_FORWARD] = forward
        demand(site.module, "no attention function of transformers was called")
        put_first(site.module._forward_pre_hooks, _raise_if_renamed)

    def uninstall(self, site: Site) -> bool:
        """Makes the module plain again, and the names in its configs too if no other module needs them."""
        if site.module.__dict__.pop(TRANSFORM, None) is None:
            return False
        for name in (_REGISTRATION, _FORWARD):
            site.module.__dict__.pop(name, None)
        demand_no_more(site.module)
        site.module._forward_pre_hooks.pop(HOOK_KEY, None)
        for config in _configs(site):
            users = _users(config, site)
            users.discard(site.module)
            if not users:
                _make_plain(config, site)
        return True

    def acts(self, module: nn.Module) -> bool:
        """False after somebody called ``set_attn_implementation``."""
        return is_conditioned(_implementation(module))

    def refusal(self, site: Site, transform: HeadTransform) -> str:
        if _calls_the_interface(site.module) is None:
            reason = replaced(site.module, plain_class(site.module))
            return reason or f"{name_of(forward_of(site.module))} does not call the attention interface any more"
        if not transform.needs_weights:
            return ""
        base = (_implementation(site.module) or "").removeprefix(PREFIX)
        if base not in _WITH_WEIGHTS:
            return f"{base} never builds the attention weights: take rows='output', or call set_attn_implementation"
        if _eager_function(site.module) is None:
            return f"{type(site.module).__qualname__} has no eager function to take the weights from"
        return ""


def _raise_if_renamed(module: nn.Module, args: tuple[Any, ...]) -> None:
    """A hook before a conditioned module: raises RuntimeError under another name, where it would silently run plain."""
    name = _implementation(module)
    if not is_conditioned(name):
        raise RuntimeError(
            f"this {type(module).__qualname__} was converted, but its attention implementation has been changed to "
            f"{name!r} since, which would run unconditioned: call precondition(model) again, or restore(model)"
        )


def _make_plain(config: Any, site: Site) -> None:
    setattr(config, NAME, getattr(config, NAME).removeprefix(PREFIX))
    give_back(config, site.parents)


# Models built from one config object share it.  Which conditioned modules read a config is kept here and not on the
# config, which is copied and saved; configs cannot be hashed, so the key is their id for as long as they live.
_conditioned_modules: dict[int, WeakSet[nn.Module]] = {}


def _users(config: Any, site: Site) -> WeakSet[nn.Module]:
    if id(config) in _conditioned_modules:
        return _conditioned_modules[id(config)]
    # In a model that an earlier version has pickled, there are conditioned modules that were never entered here.
    readers = (part for part in (*site.parents, site.module) if getattr(part, "config", None) is config)
    inside = (module for part in readers for module in part.modules() if _REGISTRATION in module.__dict__)
    return _add_users(config, inside)


def _add_users(config: Any, modules: Iterable[nn.Module]) -> WeakSet[nn.Module]:
    if id(config) not in _conditioned_modules:
        _conditioned_modules[id(config)] = WeakSet()
        finalize(config, _conditioned_modules.pop, id(config), None)
    _conditioned_modules[id(config)].update(modules)
    return _conditioned_modules[id(config)]


def _configs(site: Site) -> list[Any]:
    """The configs that the module and the models around it read: for the function, and for the masks."""
    configs = {id(c): c for m in (*site.parents, site.module) if (c := getattr(m, "config", None)) is not None}
    return [config for config in configs.values() if isinstance(getattr(config, NAME, None), str)]


def _implementation(module: nn.Module) -> str | None:
    name = getattr(getattr(module, "config", None), NAME, None)
    return name if isinstance(name, str) else None


def _calls_the_interface(module: nn.Module, forward: Any = None) -> FunctionType | None:
    """The function that runs when the module is called, or ``forward``, if it mentions transformers' table; or None."""
    function = _function(end_of(module, forward_of(module)) if forward is None else forward)
    return function if function is not None and _TABLE in _read(function).own.names else None


def _function(forward: Any) -> FunctionType | None:
    """The function inside its decorators, if its file knows transformers' table of attention functions; or None.

    A method that is still bound here belongs to another module, and must not be taken for this module's forward.
    """
    function: Any = inspect.unwrap(forward, stop=inspect.ismethod)
    return function if inspect.isfunction(function) and _TABLE in function.__globals__ else None


def _read(function: FunctionType) -> Reading:
    if function not in _readings:
        _readings[function] = source.read(function) or bytecode.read(function)
    return _readings[function]


_readings: WeakKeyDictionary[FunctionType, Reading] = WeakKeyDictionary()


def _reads_the_name(module: nn.Module, reading: Reading, name: str) -> bool:
    """True if the class's file compares the implementation with its plain name, which a new name would break."""
    if name == "eager" and getattr(module, _UPCAST_FLAG, None) is False:
        return False
    return any("_attn_implementation" in each.names and name in each.judged for each in reading.all)


def _caller(module: Any) -> Any:
    """The function that calls the interface for a module; looked up at each call, in code that torch.compile traces."""
    return module.__dict__.get(_FORWARD) or inspect.unwrap(type(module).forward)


def _eager_function(module: nn.Module) -> Callable[..., Any] | None:
    """The module-level eager function that its forward would fall back to."""
    # Not by reading its file, which torch.compile could not trace.
    function = _caller(module)
    names = [name for name in function.__code__.co_names if name.endswith("eager_attention_forward")]
    return function.__globals__.get(names[0]) if names else None


def _base_function(module: nn.Module, name: str) -> Callable[..., Any]:
    function = _eager_function(module) if name == "eager" else _caller(module).__globals__[_TABLE][name]
    if function is None:
        raise ValueError(f"{type(module).__qualname__} has no {name} attention function")
    return function


def _conditioned(
    name: str, module: nn.Module, query: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The attention function ``name`` of transformers, then the module's transform, if it has one.

    transformers returns heads as (B, N, H, D); a transform sees (B, H, N, D).
    """
    transform = transform_of(module)
    if transform is not None:
        reached(module)
        mask = kwargs.get("attention_mask", args[2] if len(args) > 2 else None)
        check_rows(transform, masked=mask is not None)
    if transform is not None and transform.needs_weights:
        return _conditioned_by_weights(name, transform, module, query, *args, **kwargs)
    function = _base_function(module, name)
    if transform is not None and name == "sdpa" and stands_in_for(function, query, kwargs):
        return attend_like_sdpa(transform, module, query, *args, **kwargs)
    if name == PACKED and isinstance(transform, RowNorm) and kwargs.get("cu_seq_lens_q") is not None:
        heads, weights = function(module, query, *args, transform=transform, **kwargs)
        return heads, weights
    if transform is not None and transform.changes_queries:
        query, args, kwargs = _with_queries(transform, query, args, kwargs)
    # Flash attention reads from the config which kernel it is to load.
    caller = _Seen(module, config=_Seen(module.config, _attn_implementation=name)) if name in _FLASH else module
    output, weights = function(caller, query, *args, **kwargs)
    return output if transform is None else behind(transform, output.transpose(1, 2)).transpose(1, 2), weights


def _with_queries(
    transform: HeadTransform, query: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """The arguments of an attention function, with queries and keys replaced by what the transform makes of them."""
    by_name = "key" in kwargs
    query, key = transform.queries(query, kwargs["key"] if by_name else args[0])
    return (query, args, {**kwargs, "key": key}) if by_name else (query, (key, *args[1:]), kwargs)


class _Seen:
    """An object as it looks with other values for some of its attributes."""

    def __init__(self, seen: Any, **others: Any) -> None:
        self._seen = seen
        self.__dict__.update(others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._seen, name)


def _conditioned_by_weights(
    name: str,
    transform: HeadTransform,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The module's eager function, whose weights the transform reads, under the masks that ``name`` was given."""
    query, key = transform.queries(query, key)
    if name == "sdpa":  # its masks are boolean, or None and a flag; eager functions add a number
        n, m = query.shape[2], key.shape[2]
        if attention_mask is None and causal(module, is_causal) and n > 1:
            attention_mask = torch.ones(n, m, dtype=torch.bool, device=query.device).tril()[None, None]
    keep = attention_mask if attention_mask is not None and attention_mask.dtype == torch.bool else None
    if keep is not None:
        lowest = torch.finfo(query.dtype).min
        attention_mask = torch.zeros_like(keep, dtype=query.dtype).masked_fill(~keep, lowest)
    output, weights = _base_function(module, "eager")(module, query, key, value, attention_mask, **kwargs)
    heads = output.transpose(1, 2)
    if keep is not None:  # a query that may attend to nothing is 0 under sdpa, and a uniform average under eager
        nothing = ~keep.any(-1, keepdim=True)
        heads, weights = heads.masked_fill(nothing, 0.0), weights.masked_fill(nothing, 0.0)
    return behind(transform, heads, weights).transpose(1, 2), weights


# Each is made only once: torch.compile would compile again for another one.
_FUNCTIONS = {base: partial(_conditioned, base) for base in _BASES}


class _Registered:
    """Is copied and pickled with a conditioned module; in the copy it registers the functions and the configs again."""

    def __init__(self, module: nn.Module | None = None, configs: Sequence[Any] = ()) -> None:
        self._module, self._configs = module if module is None else ref(module), configs

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _register, (None if self._module is None else self._module(), self._configs)


def _register(module: nn.Module | None = None, configs: Sequence[Any] = ()) -> _Registered:
    """Registers the functions with transformers, also in a process or copy where a conditioned module is remade."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    look_up()
    for base in ALL_MASK_ATTENTION_FUNCTIONS.keys() & set(_BASES):
        AttentionInterface.register(PREFIX + base, _FUNCTIONS[base])
        AttentionMaskInterface.register(PREFIX + base, ALL_MASK_ATTENTION_FUNCTIONS[base])
    if module is not None:
        for config in configs:
            _add_users(config, [module])
    return _Registered(module, configs)
