"""Schemas of stored files, checked on reading, so that a wrong edit by hand is an error that names its place.

A schema is a type: a `TypedDict`, ``list[X]``, ``dict[str, X]``, ``X | None``, ``float`` (finite, also whole),
``int``, ``str``, ``bool``, `Any`, or one of these with a `Rule`: ``Annotated[int, Rule(…)]``.  Keys that a `TypedDict`
does not name may hold anything, since a later version may write more.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints, is_typeddict

_LARGEST = 2**63 - 1


class Rule(NamedTuple):
    """A condition on a value beyond its type, and the words for what is valid."""

    holds: Callable[[Any], bool]
    words: str


Count = Annotated[int, Rule(lambda n: 0 <= n <= _LARGEST, "a whole number from 0 on")]


class Misfit(Exception):
    """Raised for a value that its schema does not allow; the path to it grows as the error propagates upwards."""

    def __init__(self, came: str, valid: str) -> None:
        super().__init__(came, valid)
        self.came, self.valid, self.path = came, valid, ""

    def within(self, step: str) -> Misfit:
        """The same, seen from one level further up."""
        self.path = step + ("." if self.path and not self.path.startswith("[") else "") + self.path
        return self


def check(data: Any, schema: Any, place: str) -> None:
    """Raises ValueError unless data fit a schema; ``place`` is the file, perhaps with a line.

    >>> check({"seed": 0}, dict[str, int], "a.json")
    >>> check({"seed": None}, dict[str, int], "a.json")
    Traceback (most recent call last):
        ...
    ValueError: a.json: seed is null; valid is a whole number
    """
    try:
        _check_of(schema)(data)
    except Misfit as misfit:
        raise ValueError(f"{place}: {misfit.path or 'the content'} is {misfit.came}; valid is {misfit.valid}") from None


_Check = Callable[[Any], None]


@cache
def _check_of(schema: Any) -> _Check:
    """The function that checks a schema and raises `Misfit`; made once, as logs have millions of rows."""
    if is_typeddict(schema):
        return _object(schema)
    origin, parts = get_origin(schema), get_args(schema)
    if origin is Annotated:
        return _ruled(_check_of(parts[0]), parts[1])
    if origin in (Union, UnionType):
        return _either(schema)
    if origin is list:
        return _listed(_check_of(parts[0]))
    if origin is dict:
        return _mapped(_check_of(parts[1]))
    if schema is Any:
        return lambda value: None
    return _simple(schema)


_WORDS = {
    float: "a finite number",
    int: "a whole number",
    str: "text",
    bool: "true or false",
    NoneType: "null",
    dict: "an object",
    list: "a list",
}


def _simple(schema: type) -> _Check:
    kinds = (float, int) if schema is float else (schema,)

    def check(value: Any) -> None:
        if type(value) not in kinds or (schema is float and not _is_finite(value)):
            raise Misfit(_shown(value), _WORDS[schema])

    return check


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def _ruled(inner: _Check, rule: Rule) -> _Check:
    def check(value: Any) -> None:
        try:
            inner(value)
        except Misfit as misfit:
            if misfit.path:
                raise
            raise Misfit(misfit.came, rule.words) from None
        if not rule.holds(value):
            raise Misfit(_shown(value), rule.words)

    return check


def _either(schema: Any) -> _Check:
    """The check for one of several schemas; the error is that of the one which the value resembles most, by depth."""
    checks = [_check_of(part) for part in get_args(schema)]

    def check(value: Any) -> None:
        found: list[Misfit] = []
        for one in checks:
            try:
                return one(value)
            except Misfit as misfit:
                found.append(misfit)
        deepest = max(found, key=lambda misfit: len(misfit.path))
        if deepest.path:
            raise deepest
        raise Misfit(deepest.came, " or ".join(misfit.valid for misfit in found))

    return check


def _listed(inner: _Check) -> _Check:
    def check(value: Any) -> None:
        if type(value) is not list:
            raise Misfit(_shown(value), _WORDS[list])
        for i, item in enumerate(value):
            try:
                inner(item)
            except Misfit as misfit:
                raise misfit.within(f"[{i}]") from None

    return check


def _mapped(inner: _Check) -> _Check:
    def check(value: Any) -> None:
        if type(value) is not dict:
            raise Misfit(_shown(value), _WORDS[dict])
        for key, item in value.items():
            try:
                inner(item)
            except Misfit as misfit:
                raise misfit.within(key) from None

    return check


def _object(schema: Any) -> _Check:
    checks = {key: _check_of(hint) for key, hint in get_type_hints(schema, include_extras=True).items()}
    required = sorted(schema.__required_keys__)

    def check(value: Any) -> None:
        if type(value) is not dict:
            raise Misfit(_shown(value), _WORDS[dict])
        for key, item in value.items():
            if key in checks:
                try:
                    checks[key](item)
                except Misfit as misfit:
                    raise misfit.within(key) from None
        for key in required:
            if key not in value:
                raise _missing(checks[key]).within(key)

    return check


def _missing(check: _Check) -> Misfit:
    try:
        check(_MISSING)
    except Misfit as misfit:
        return misfit
    return Misfit(_shown(_MISSING), "anything")


_MISSING = object()


def _shown(value: Any) -> str:
    if value is _MISSING:
        return "missing"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'}, {reprlib.repr(value)}"
    return reprlib.repr(value)
