"""Reads from source what the functions of a model file mention: which names, and by which words they decide."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from functools import lru_cache
from types import FunctionType
from typing import NamedTuple


class Mentions(NamedTuple):
    """What a function mentions.

    Attributes:
        names: of variables and attributes.
        words: its strings.
        judged: the strings that it does more with than store them or look something up by them.
    """

    names: frozenset[str]
    words: frozenset[str]
    judged: frozenset[str]


class Reading(NamedTuple):
    """What a function mentions, and what each function of its file mentions."""

    own: Mentions
    all: tuple[Mentions, ...]


def read(function: FunctionType) -> Reading | None:
    """What this function and its file mention; None without source, as in frozen programs and for generated code."""
    try:
        lines, _ = inspect.findsource(function)
        functions = _functions("".join(lines))
        own = functions[function.__code__.co_name, function.__code__.co_firstlineno]
    except (OSError, SyntaxError, KeyError):  # the latter two where the file has changed since it was imported
        return None
    return Reading(own, tuple(functions.values()))


@lru_cache(maxsize=8)  # the classes of a model are asked for one after another, and are in one or two files
def _functions(text: str) -> dict[tuple[str, int], Mentions]:
    """What every function of a file mentions, by its name and first line."""
    found = (node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
    return {(node.name, min(part.lineno for part in (node, *node.decorator_list))): _mentions(node) for node in found}


def _mentions(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Mentions:
    nodes = [node for statement in function.body for node in ast.walk(statement)]
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    words = {id(node): node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    harmless = {id(part) for node in nodes for part in _harmless(node)}
    judged = {word for key, word in words.items() if key not in harmless}
    return Mentions(frozenset(names), frozenset(words.values()), frozenset(judged))


def _harmless(node: ast.AST) -> Iterator[ast.AST | None]:
    """The part of a statement whose string decides nothing: what is assigned, a key, a docstring."""
    if isinstance(node, (ast.Assign, ast.AnnAssign, ast.Expr)):
        yield node.value
    elif isinstance(node, ast.Subscript):
        yield node.slice
