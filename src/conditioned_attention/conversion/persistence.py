"""What a checkpoint must remember: weights do not tell whether they were trained with C."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from conditioned_attention.controls import HeadRMSNorm
from conditioned_attention.preconditioner import HeadTransform, RowNorm
from conditioned_attention.sites import Site, find_sites, install, transform_of

# Key in a Hugging Face config.json
CONFIG_KEY = "conditioned_attention"

_FORMAT = 1
_KINDS = {cls.kind: cls for cls in (RowNorm, HeadRMSNorm)}


def conditioning(model: nn.Module) -> dict[str, Any]:
    """What was done to a model, as data that JSON can hold; `apply_conditioning` does it again.

    Args:
        model: a module, converted or not.

    Returns:
        ``{"format": 1, "transforms": [{"kind": ..., its options, "modules": [names]}]}``; no transforms for a plain
        model.

    Save it beside a plain ``state_dict``.  Hugging Face checkpoints hold it already, in config.json.
    """
    modules: dict[HeadTransform, list[str]] = {}
    for site in find_sites(model):
        transform = transform_of(site.module)
        if transform is not None:
            modules.setdefault(transform, []).append(site.name)
    entries = [{"kind": t.kind, **asdict(t), "modules": names} for t, names in modules.items()]  # type: ignore[call-overload]
    return {"format": _FORMAT, "transforms": entries}


def apply_conditioning(model: nn.Module, data: Mapping[str, Any] | None = None) -> None:
    """Does to a freshly loaded model what `conditioning` recorded.

    Args:
        model: a plain model of the same architecture, or one that is already conditioned this way.
        data: what `conditioning` returned.  Default: what the model's Hugging Face config remembers.

    Raises:
        ValueError: no data; data of another format; a recorded module that the model does not have or that cannot
            be converted; a module that is already conditioned otherwise.  The model is then unchanged.

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
    if data is None:
        data = getattr(getattr(model, "config", None), CONFIG_KEY, None)
        if data is None:
            raise ValueError(f"no data given, and the model has no config that remembers a {CONFIG_KEY!r} entry")
    sites = find_sites(model)
    planned: dict[str, HeadTransform] = {}
    for entry in _entries(data):
        transform = _transform(entry)
        for site in _by_name(model, sites, entry["modules"]):
            present = transform_of(site.module)
            if present not in (None, transform):
                raise ValueError(f"{site.name} is already converted, with {present}; call restore(model) first")
            planned[site.name] = transform
    install([site for site in sites if site.name in planned], lambda site: planned[site.name])
    remember(model)


def remember(model: nn.Module) -> None:
    """Writes what was done into the config of every outermost Hugging Face model, or removes it."""
    for pretrained in _outermost_pretrained(model):
        data = conditioning(pretrained)
        if data["transforms"]:
            setattr(pretrained.config, CONFIG_KEY, data)
        elif CONFIG_KEY in vars(pretrained.config):
            delattr(pretrained.config, CONFIG_KEY)


def _outermost_pretrained(module: nn.Module) -> list[Any]:
    if hasattr(module, "save_pretrained") and hasattr(module, "config"):
        return [module]
    return [found for child in module.children() for found in _outermost_pretrained(child)]


def _entries(data: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    if not isinstance(data, Mapping) or data.get("format") != _FORMAT or not isinstance(data.get("transforms"), list):
        raise ValueError(f"this is not what conditioning() of this version returns (format {_FORMAT}): {data!r:.200}")
    entries: list[Mapping[str, Any]] = data["transforms"]
    return entries


def _transform(entry: Mapping[str, Any]) -> HeadTransform:
    options = {key: value for key, value in entry.items() if key not in ("kind", "modules")}
    cls = _KINDS.get(entry.get("kind", ""))
    if cls is None:
        raise ValueError(f"kind={entry.get('kind')!r} is unknown; valid are {tuple(_KINDS)}")
    try:
        return cls(**options)
    except TypeError as error:
        raise ValueError(f"options of {entry['kind']!r} that this version does not know: {options}") from error


def _by_name(model: nn.Module, sites: Sequence[Site], names: Sequence[str]) -> list[Site]:
    """The sites of these names; a name may lack or carry the base-model prefix of a Hugging Face model."""
    found = {site.name: site for site in sites}
    prefix = getattr(model, "base_model_prefix", "") + "."
    chosen = []
    for name in names:
        site = found.get(name) or found.get(prefix + name) or found.get(name.removeprefix(prefix))
        if site is None:
            raise ValueError(f"the model has no attention module {name!r}; it has: {', '.join(found) or 'none'}")
        if not site.reachable:
            raise ValueError(f"{site.name} cannot be converted: {site.reason}")
        chosen.append(site)
    return chosen
