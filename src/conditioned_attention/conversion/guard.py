"""The guard: buffers that make a plain state_dict say how it was conditioned.

Every conditioned attention module of a guarded model has such a buffer, and its *name* says what was done to the
module: ``blocks.0.attn.conditioned_attention__call_apply_conditioning_before_load_state_dict__row_5fnorm_20…``.  Its
value means nothing.  Averaging state_dicts or buffers therefore cannot damage the record, a model on the meta device
has it, it moves with the module, and everything that loads a checkpoint by keys compares it, including
torch.distributed.checkpoint.  A plain model refuses a guarded checkpoint under ``strict=True`` (unexpected keys, which
say what to do), a guarded model refuses a plain checkpoint, and models that were conditioned differently refuse each
other's checkpoints.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from conditioned_attention.conversion.check import Settings
from conditioned_attention.conversion.names import all_names, bare_name, plain_name
from conditioned_attention.conversion.record import FORMAT, settings_of
from conditioned_attention.sites import find_sites
from conditioned_attention.sites.site import HOOK_KEY

# An identifier; with the settings and the module's path it is short enough for a file name, as some offloading needs.
GUARD = "conditioned_attention__call_apply_conditioning_before_load_state_dict__"

# What a module says in a state_dict: the settings, in the words of `_word`
_Said = dict[str, set[str]]


def put_guard(model: nn.Module) -> None:
    """Guards the model from now on: its state_dict says how it is conditioned, and what it loads is compared."""
    if not is_guarded(model):
        # Registered, because torch wraps it; then moved to a key of ours: torch counts from 0 again in each process, so
        # that the next hook after unpickling would take this one's place.
        handle = model.register_load_state_dict_pre_hook(_compare)
        hooks = model._load_state_dict_pre_hooks
        hooks[HOOK_KEY] = hooks.pop(handle.id)
    refresh_guards(model)


def take_guard(model: nn.Module) -> None:
    """Makes the model no longer guarded."""
    model._load_state_dict_pre_hooks.pop(HOOK_KEY, None)


def is_guarded(module: nn.Module) -> bool:
    """Whether the module, as a whole, was given a guard."""
    return HOOK_KEY in module._load_state_dict_pre_hooks


def refresh_guards(model: nn.Module) -> None:
    """Gives the modules of guarded models the buffers that describe their present state, and removes all others."""
    inside = {id(m) for root in model.modules() if is_guarded(root) for m in root.modules()}
    if not inside and not any(guards_on(module) for module in model.modules()):
        return  # before the model's attention is looked for, which takes longer
    wanted: dict[int, set[str]] = {}
    for site in find_sites(model):
        if id(site.module) in inside or guards_on(site.module):
            wanted[id(site.module)] = {GUARD + _word(settings) for settings in settings_of(site)}
    for module in model.modules():
        present, names = {*guards_on(module)}, wanted.get(id(module), set())
        for name in present - names:
            delattr(module, name)
        for name in sorted(names - present):
            module.register_buffer(name, torch.zeros(1, device=_device(module)))


def guards_on(module: nn.Module) -> list[str]:
    """The names of the guard's buffers on a module."""
    return [name for name, _ in module._buffers.items() if name.startswith(GUARD)]  # what torch.jit has, too


def _device(module: nn.Module) -> torch.device | None:
    return next((tensor.device for tensor in (*module.parameters(), *module.buffers())), None)


def record_in(state_dict: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record that the guards in a state_dict hold, in the form of `conditioning`; None if there are none."""
    modules: dict[str, list[str]] = {}
    for name, words in _said_in(state_dict).items():
        for word in sorted(words):
            modules.setdefault(word, []).append(name)
    entries = [{**_entry(word), "modules": names} for word, names in modules.items()]
    return {"format": FORMAT, "transforms": entries} if entries else None


def _said_in(state_dict: Mapping[str, Any], prefix: str = "") -> _Said:
    """The words of the guards of every module below a prefix, by the module's name."""
    said: _Said = {}
    for key in state_dict:
        owner, _, last = key.removeprefix(prefix).rpartition(".")
        if key.startswith(prefix) and last.startswith(GUARD):
            said.setdefault(plain_name(owner), set()).add(last.removeprefix(GUARD))
    return said


def _compare(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: Any,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """A hook before a guarded module loads a state_dict: an error if it was conditioned differently, or not at all."""
    refresh_guards(module)
    sites = all_names(module, find_sites(module))
    ours = {bare_name(name): {_word(settings) for settings in settings_of(site)} for name, site in sites.items()}
    said = {bare_name(name): words for name, words in _said_in(state_dict, prefix).items()}
    brought = {bare_name(name) for name, site in sites.items() if _brings(state_dict, prefix, site.module, module)}
    if any(said.get(name, ours.get(name, set())) != ours.get(name, set()) for name in {*said, *ours}):
        errors.append(
            "this checkpoint was conditioned differently from the model that loads it: call restore(model), then "
            f"apply_conditioning(model, state_dict), then load it.  Its record: {record_in(state_dict)}"
        )
    elif any(words and name in brought and name not in said for name, words in ours.items()):
        errors.append(
            "this checkpoint does not say that it was conditioned, and the model that loads it is. If it comes from a "
            "plain model: load it before precondition(model), or restore(model) first"
        )


def _brings(state_dict: Mapping[str, Any], prefix: str, attention: nn.Module, model: nn.Module) -> bool:
    """Whether a state_dict has weights of an attention module, and not those of its adapters alone."""
    ours = {id(parameter) for parameter in attention.parameters()} - _of_adapters(attention)
    names = (name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in ours)
    return any(prefix + plain in state_dict for name in names for plain in (name, _without_wrappers(name)))


def _without_wrappers(name: str) -> str:
    """The name as torch's own wrappers write it in a state_dict."""
    return name.replace("_checkpoint_wrapped_module.", "").replace("_fsdp_wrapped_module.", "")


def _of_adapters(attention: nn.Module) -> set[int]:
    """The parameters that PEFT's layers have beside those of the layer that they wrap."""
    layers = [layer for layer in attention.modules() if isinstance(getattr(layer, "base_layer", None), nn.Module)]
    own = {id(p) for layer in layers for p in layer.parameters()}
    return own - {id(p) for layer in layers for p in layer.base_layer.parameters()}  # type: ignore[union-attr]


def _word(settings: Settings) -> str:
    """What was done, as an identifier: ``row_5fnorm_20eps_3d1e_2d06…``."""
    options = " ".join(f"{key}={_spelled(value)}" for key, value in sorted(asdict(settings).items()))  # type: ignore[arg-type]
    return re.sub(r"[^a-zA-Z0-9]", lambda found: f"_{ord(found[0]):02x}", f"{settings.kind} {options}".strip())


def _entry(word: str) -> dict[str, Any]:
    """The entry of a record for such a word, without its modules; raises ValueError for an unknown spelling."""
    try:
        kind, *options = re.sub(r"_(..)", lambda found: chr(int(found[1], 16)), word).split(" ")
        pairs = [option.split("=", 1) for option in options]
        return {"kind": kind, **{key: _read(value) for key, value in pairs}}
    except ValueError as error:
        raise ValueError(f"this version does not know a guard of this spelling: {GUARD}{word}") from error


def _spelled(value: Any) -> str:
    plain = isinstance(value, str) and value.isidentifier() and _read(value) == value
    return value if plain else json.dumps(value, separators=(",", ":")).replace(" ", r"\u0020")


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
