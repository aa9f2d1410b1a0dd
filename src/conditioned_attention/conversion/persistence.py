"""What a checkpoint must remember: weights do not tell whether they were trained with C."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from torch import nn

from conditioned_attention import controls, d_optimal  # noqa: F401 - their transforms are to be known by their kind
from conditioned_attention._warnings import warn
from conditioned_attention.conversion.check import Settings, already, check_module
from conditioned_attention.conversion.guard import check_room, is_guarded, put_guard, records_in, take_guard
from conditioned_attention.preconditioner import HeadTransform
from conditioned_attention.sites import (
    MARKER,
    Site,
    active_transform,
    clip,  # noqa: F401 - the same
    correct_sites,
    find_sites,
    forget_compiled,
    install,
    is_conditioned,
    settled,
    transform_of,
)
from conditioned_attention.sites.corrected import spectral_of
from conditioned_attention.spectral import Spectral

# Key in a Hugging Face config.json
CONFIG_KEY = "conditioned_attention"

_FORMAT = 1


def conditioning(model: nn.Module) -> dict[str, Any]:
    """What was done to a model, as data that JSON can hold; `apply_conditioning` does it again.

    Args:
        model: a module, converted or not.

    Returns:
        ``{"format": 1, "transforms": [{"kind": ..., its options, "modules": [names]}]}``; no transforms for a plain
        model.

    Save it beside a plain ``state_dict``, or let ``precondition(model, guard=True)`` put it inside.  Hugging Face
    checkpoints hold it already, in config.json, if the whole model was given to `precondition` (a part that is no model
    of its own has no config to remember it in).  A module that was converted and no longer runs conditioned is left
    out, with a warning.

    Raises:
        TypeError: ``model`` is not a module.
    """
    check_module(model)
    modules: dict[Settings, list[str]] = {}
    for site in find_sites(model):
        if (spectral := spectral_of(site.module)) is not None:
            modules.setdefault(spectral, []).append(site.name)
        transform = active_transform(site)
        if transform is not None:
            modules.setdefault(transform, []).append(site.name)
        elif transform_of(site.module) is not None:
            warn(
                f"{site.name} was converted, but its attention implementation has been changed since, so it runs "
                "unconditioned; call precondition(model) again, or restore(model)"
            )
    entries = [{"kind": t.kind, **asdict(t), "modules": names} for t, names in modules.items()]  # type: ignore[arg-type]
    return {"format": _FORMAT, "transforms": entries}


def apply_conditioning(model: nn.Module, data: Mapping[str, Any] | None = None) -> None:
    """Does to a freshly loaded model what `conditioning` recorded.

    Args:
        model: a plain model of the same architecture, or one that is already conditioned this way.
        data: what `conditioning` returned; or a ``state_dict`` of a model that was converted with ``guard=True``, which
            the model can load afterwards.  Default: what the model's Hugging Face config remembers.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: no data; data of another format; a state_dict without a guard; a recorded module that the model
            does not have or that cannot be converted; a module that is already conditioned otherwise.  The model is
            then unchanged.

    >>> import json
    >>> from transformers import BertConfig, BertModel
    >>> from conditioned_attention import apply_conditioning, conditioning, precondition
    >>> config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
    >>> trained, loaded = BertModel(config), BertModel(config)
    >>> _ = precondition(trained)
    >>> apply_conditioning(loaded, json.loads(json.dumps(conditioning(trained))))
    >>> conditioning(loaded) == conditioning(trained)
    True
    """
    check_module(model)
    guards = _guards(data) if isinstance(data, Mapping) and "format" not in data else {}
    if guards:
        plans: list[tuple[nn.Module, Mapping[str, Any]]] = [(_part(model, name), guards[name]) for name in guards]
    else:
        plans = [(model, data)] if data is not None else _remembered(model)
    if not plans:
        raise ValueError(f"no data given, and no config in the model remembers a {CONFIG_KEY!r} entry")
    for name in guards:
        check_room(_part(model, name))
    with settled(model), ExitStack() as undo:
        planned = [pair for part, part_data in plans for pair in _plan(part, part_data)]
        heads = {site: done for site, done in planned if isinstance(done, HeadTransform)}
        corrections = {site: done for site, done in planned if isinstance(done, Spectral)}
        undo.callback(install([*heads], heads.__getitem__))
        new = [site for site in corrections if spectral_of(site.module) is None]
        correct_sites(new, corrections.__getitem__, loading=True)
        undo.pop_all()
    forget_compiled([*heads])
    for name in guards:
        put_guard(_part(model, name), guards[name])
    remember(model)


def _guards(state_dict: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = dict(records_in(state_dict))
    if not found:
        raise ValueError(
            f"data is neither what conditioning() of this version returns (format {_FORMAT}) nor the state_dict of a "
            f"model that was converted with guard=True; it has the keys {[*state_dict][:5]}"
        )
    return found


def _part(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"the state_dict was conditioned at {name!r}, which the model does not have") from error


def _plan(model: nn.Module, data: Mapping[str, Any]) -> list[tuple[Site, Settings]]:
    """What the record wants done to the model, which nothing has been done to yet."""
    sites = find_sites(model)
    planned: dict[tuple[str, bool], tuple[Site, Settings]] = {}
    for entry in _entries(data):
        settings = _settings(entry)
        for site in _by_name(model, sites, entry["modules"]):
            key = site.name, isinstance(settings, Spectral)
            present: Settings | None = spectral_of(site.module) if key[1] else active_transform(site)
            if key in planned:
                present = planned[key][1]
            if present not in (None, settings):
                raise ValueError(already(site, present))
            planned[key] = site, settings
    for site in sites:
        for present in (active_transform(site), spectral_of(site.module)):
            if present is not None and (site.name, isinstance(present, Spectral)) not in planned:
                raise ValueError(already(site, present))
    return list(planned.values())


def _remembered(model: nn.Module) -> list[tuple[nn.Module, Mapping[str, Any]]]:
    """The outermost modules whose configs remember a conversion, with what they remember."""
    parts = _outermost(model, lambda part: CONFIG_KEY in vars(part.config))
    return [(part, getattr(part.config, CONFIG_KEY)) for part in parts]


def remember(model: nn.Module) -> None:
    """Writes what was done into guards, and into the config of every outermost Hugging Face model; or removes it."""
    for part in [part for part in model.modules() if is_guarded(part)]:
        data = conditioning(part)
        if data["transforms"]:
            put_guard(part, data)
        else:
            take_guard(part)
    for pretrained in _outermost(model, lambda part: hasattr(part, "save_pretrained")):
        config, data = pretrained.config, conditioning(pretrained)
        if data["transforms"]:
            setattr(config, CONFIG_KEY, data)
            config.attn_implementation = MARKER  # for config.json: it is popped again when that is loaded
        elif CONFIG_KEY in vars(config) and not is_conditioned(getattr(config, "_attn_implementation", None)):
            # (By that name another model still runs conditioned, which was built from the same config object.)
            delattr(config, CONFIG_KEY)
            vars(config).pop("attn_implementation", None)


def _outermost(module: Any, wanted: Callable[[Any], bool]) -> list[Any]:
    """The outermost modules with a config of their own that are wanted."""
    if getattr(module, "config", None) is not None and not _borrows_config(module) and wanted(module):
        return [module]
    return [found for child in module.children() for found in _outermost(child, wanted)]


def _borrows_config(module: nn.Module) -> bool:
    """Whether it shows the config of a Hugging Face model inside, as the wrappers of PEFT do.

    Names in that config are those of the model inside, which is saved and loaded without the wrapper.
    """
    return type(module).__module__.partition(".")[0] == "peft"


def _entries(data: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    entries = data.get("transforms") if isinstance(data, Mapping) and data.get("format") == _FORMAT else None
    if not isinstance(entries, list) or not all(_is_entry(entry) for entry in entries):
        raise ValueError(f"this is not what conditioning() of this version returns (format {_FORMAT}): {data!r:.200}")
    return entries


def _is_entry(entry: Any) -> bool:
    kind, names = (entry.get("kind"), entry.get("modules")) if isinstance(entry, Mapping) else (None, None)
    return isinstance(kind, str) and isinstance(names, list) and all(isinstance(name, str) for name in names)


def _settings(entry: Mapping[str, Any]) -> Settings:
    options = {key: value for key, value in entry.items() if key not in ("kind", "modules")}
    kinds: dict[str, type[Settings]] = {**HeadTransform.kinds, Spectral.kind: Spectral}
    cls = kinds.get(entry["kind"])
    if cls is None:
        raise ValueError(f"kind={entry['kind']!r} is unknown; valid are {tuple(kinds)}")
    try:
        return cls(**options)
    except TypeError as error:
        raise ValueError(
            f"options of {entry['kind']!r} that this version does not know: {options} ({error})"
        ) from error


def _by_name(model: nn.Module, sites: Sequence[Site], names: Sequence[str]) -> list[Site]:
    """The sites of these names; a name may lack or carry the base-model prefix of a Hugging Face model."""
    found = {site.name: site for site in sites}
    prefix = getattr(model, "base_model_prefix", "") + "."
    chosen = []
    for name in names:
        site = found.get(name) or found.get(prefix + name) or found.get(name.removeprefix(prefix))
        if site is None:
            raise ValueError(
                f"the model has no attention module {name!r}; it has: {', '.join(found) or 'none'} (classes of your "
                "own have to be registered first, with register_attention)"
            )
        chosen.append(site)
    return chosen
