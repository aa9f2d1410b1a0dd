"""Settings as plain data: what a folder says was run, so that a later call can tell whether it asks for the same."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

_BEFORE, _PLACE = "before", "place"
_DEFAULT: Any = object()


def added(default: Any, *, before: Any = _DEFAULT) -> Any:
    """Declares a field that earlier versions did not have.

    As long as it has the value that stands for what they did, it is not written, so their folders can be continued.

    Args:
        default: the default of the field.
        before: the value that stands for what earlier versions did, if that is not the default.  A folder without the
            field can then be continued with this value, and is refused with the default.
    """
    return dataclasses.field(default=default, metadata={_BEFORE: default if before is _DEFAULT else before})


def place(default: Any = dataclasses.MISSING) -> Any:
    """Declares a field that says where data are or how they are read; it affects no number and is never written."""
    return dataclasses.field(default=default, metadata={_PLACE: True})


def plain(settings: Any) -> dict[str, Any]:
    """The fields of a dataclass, nested ones too, as JSON would return them, but for what `added` and `place` omit.

    >>> @dataclasses.dataclass
    ... class Settings:
    ...     lr: float = 1e-3
    ...     betas: tuple[float, float] | None = added(None)
    ...     init: str = added("width", before="library")
    >>> plain(Settings(init="library")), plain(Settings(betas=(0.9, 0.98)))
    ({'lr': 0.001}, {'lr': 0.001, 'betas': [0.9, 0.98], 'init': 'width'})
    """
    found = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if _PLACE in field.metadata or (_BEFORE in field.metadata and value == field.metadata[_BEFORE]):
            continue
        found[field.name] = (
            plain(value) if dataclasses.is_dataclass(value) else json.loads(json.dumps(value, default=str))
        )
    return found


def places_of(settings: Any) -> dict[str, Any]:
    """The fields declared by `place`, as plain data; paths are absolute."""
    found = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings) if _PLACE in f.metadata}
    return {name: str(v.expanduser().absolute()) if isinstance(v, Path) else v for name, v in found.items()}


def from_plain(cls: type[Any], data: Mapping[str, Any]) -> Any:
    """Rebuilds the dataclass that `plain` turned into data; a missing field of `added` stands for earlier versions.

    Raises:
        TypeError: there is a field that the class does not have, or a required one is missing.

    >>> @dataclasses.dataclass
    ... class Settings:
    ...     betas: tuple[float, float]
    ...     init: str = added("width", before="library")
    >>> from_plain(Settings, {"betas": [0.9, 0.98]})
    Settings(betas=(0.9, 0.98), init='library')
    """
    hints = get_type_hints(cls)
    fields = [field for field in dataclasses.fields(cls) if field.init]
    found = {field.name: field.metadata[_BEFORE] for field in fields if _BEFORE in field.metadata}
    for name, value in data.items():
        kinds = [kind for kind in (hints.get(name), *get_args(hints.get(name))) if isinstance(kind, type)]
        inner = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        if inner is not None and isinstance(value, Mapping):
            found[name] = from_plain(inner, value)
        elif isinstance(value, list):
            found[name] = tuple(value)
        else:
            found[name] = Path(value) if Path in kinds and isinstance(value, str) else value
    return cls(**found)
