"""Settings that take one of a fixed set of words: an unknown word raises when the settings object is made."""

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

    Of ``Literal[…] | None`` None is valid, of ``float | Literal[…]`` any number, and of ``tuple[Literal[…], …]`` every
    entry counts.  Fields without a literal are not looked at.
    """
    for name, (words, types) in choices_of(settings.__class__).items():
        value = getattr(settings, name)
        for word in value if isinstance(value, tuple) else (value,):
            if not isinstance(word, types) and word not in words:
                shown = ", ".join([*map(repr, words), *(cls.__name__ for cls in types)])
                raise ValueError(f"{name}={word!r} is unknown; valid are {shown}")


@cache
def choices_of(cls: Any) -> dict[str, tuple[tuple[Any, ...], tuple[type, ...]]]:
    """By the name of every field with a ``Literal``: the words that are valid, and the types of what else is."""
    hints = get_type_hints(cls)
    found = {field.name: _valid(hints[field.name]) for field in dataclasses.fields(cls)}
    return {name: (words, types) for name, (words, types) in found.items() if set(words) - {None}}


def _valid(hint: Any) -> tuple[tuple[Any, ...], tuple[type, ...]]:
    if get_origin(hint) is Literal:
        return get_args(hint), ()
    if hint is type(None):
        return (None,), ()
    if get_origin(hint) not in (tuple, Union, UnionType):
        return (), (float, int) if hint is float else (get_origin(hint) or hint,)
    parts = [_valid(part) for part in get_args(hint) if part is not Ellipsis]
    return tuple(word for words, _ in parts for word in words), tuple(cls for _, types in parts for cls in types)
