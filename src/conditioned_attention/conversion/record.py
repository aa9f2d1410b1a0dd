"""The record of what was done to a model, as data that JSON can hold: made from the model as it is, and read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from conditioned_attention import controls, d_optimal  # noqa: F401 - their transforms are to be known by their kind
from conditioned_attention._warnings import warn
from conditioned_attention.conversion.check import Settings, check_module
from conditioned_attention.conversion.names import all_names
from conditioned_attention.preconditioner import HeadTransform
from conditioned_attention.sites import (
    Site,
    active_transform,
    clip,  # noqa: F401 - the same
    find_sites,
    transform_of,
)
from conditioned_attention.sites.corrected import spectral_of
from conditioned_attention.spectral import Spectral

FORMAT = 1


def conditioning(model: nn.Module) -> dict[str, Any]:
    """Records what was done to a model, as data that JSON can hold; `apply_conditioning` does it again.

    Args:
        model: a module, converted or not.

    Returns:
        ``{"format": 1, "transforms": [{"kind": ..., its options, "modules": [names]}]}``; no transforms for a plain
        model.  Names are those of the model without wrappers inside (activation checkpointing, FSDP, adapters).

    Save the record beside a plain ``state_dict``, or let ``precondition(model, guard=True)`` put it inside.  Hugging
    Face checkpoints already hold it, in config.json, if the whole model was given to `precondition` (a part that is not
    a model of its own has no config to hold it).  A module that was converted and no longer runs conditioned is left
    out, with a warning.

    Raises:
        TypeError: ``model`` is not a module.

    >>> import torch
    >>> from conditioned_attention import conditioning, precondition
    >>> layer = torch.nn.TransformerEncoderLayer(32, 4, 64)
    >>> report = precondition(layer)
    >>> conditioning(layer)["transforms"]
    [{'kind': 'row_norm', 'rows': 'output', 'gradient': 'stopped', 'eps': 1e-06, 'modules': ['self_attn']}]
    """
    check_module(model)
    modules: dict[Settings, list[str]] = {}
    for name, site in all_names(model, find_sites(model)).items():
        for settings in settings_of(site):
            modules.setdefault(settings, []).append(name)
    entries = [{"kind": t.kind, **asdict(t), "modules": names} for t, names in modules.items()]  # type: ignore[arg-type]
    return {"format": FORMAT, "transforms": entries}


def settings_of(site: Site) -> list[Settings]:
    """What was done to one module, as far as it still acts."""
    spectral, transform = spectral_of(site.module), active_transform(site)
    if transform is None and transform_of(site.module) is not None:
        warn(
            f"{site.name} was converted, but its attention implementation has been changed since, so it runs "
            "unconditioned; call precondition(model) again, or restore(model)"
        )
    return [settings for settings in (spectral, transform) if settings is not None]


def entries_of(data: Any) -> Sequence[Mapping[str, Any]]:
    """The entries of a record.  Raises ValueError for anything that is not a record of this format."""
    entries = data.get("transforms") if isinstance(data, Mapping) and data.get("format") == FORMAT else None
    if not isinstance(entries, list) or not all(_is_entry(entry) for entry in entries):
        raise ValueError(f"this is not what conditioning() of this version returns (format {FORMAT}): {data!r:.200}")
    return entries


def _is_entry(entry: Any) -> bool:
    kind, names = (entry.get("kind"), entry.get("modules")) if isinstance(entry, Mapping) else (None, None)
    return isinstance(kind, str) and isinstance(names, list) and all(isinstance(name, str) for name in names)


def settings_in(entry: Mapping[str, Any]) -> Settings:
    """The settings that an entry describes.  Raises ValueError for an unknown kind or option."""
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
