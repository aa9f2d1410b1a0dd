"""Closed sets of words: a settings object refuses a word that it does not know when it is made."""

from __future__ import annotations

import dataclasses
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


class Choices:
    """A dataclass that is derived from this one checks its words when it is made."""

    def __post_init__(self) -> None:
        check_choices(self)


def check_choices(settings: Any) -> None:
    """Raises ValueError if a field of a dataclass has a value that its ``Literal`` does not list.

    Of ``Literal[…] | None`` None is valid, and of ``tuple[Literal[…], …]`` every entry counts.  Fields of other types
    are not looked at.
    """
    for name, valid in _choices(settings.__class__).items():
        value = getattr(settings, name)
        for word in value if isinstance(value, tuple) else (value,):
            if word not in valid:
                shown = ", ".join(map(repr, valid))
                raise ValueError(f"{name}={word!r} is unknown; valid are {shown}")


@cache
def _choices(cls: Any) -> dict[str, tuple[Any, ...]]:
    """The valid values of every field with a ``Literal``, by the field's name."""
    hints = get_type_hints(cls)
    found = {field.name: _literals(hints[field.name]) for field in dataclasses.fields(cls)}
    return {name: valid for name, valid in found.items() if valid is not None}


def _literals(hint: Any) -> tuple[Any, ...] | None:
    if get_origin(hint) is Literal:
        return get_args(hint)
    parts = [part for part in get_args(hint) if part not in (type(None), Ellipsis)]
    inner = [_literals(part) for part in parts]
    if not inner or None in inner or get_origin(hint) not in (tuple, Union, UnionType):
        return None
    nothing = (None,) if type(None) in get_args(hint) else ()
    return tuple(word for words in inner for word in words or ()) + nothing
