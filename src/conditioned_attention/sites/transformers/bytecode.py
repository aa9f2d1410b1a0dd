"""Reads from byte code what the functions of a model file mention, for models whose source is not available."""

from __future__ import annotations

import dis
import inspect
from itertools import pairwise
from types import CodeType, FunctionType

from conditioned_attention.sites.transformers.source import Mentions, Reading


def read(function: FunctionType) -> Reading:
    """What this function mentions, and what all functions do that are in its module and come from the same file."""
    own = function.__code__
    members = [vars(v).values() if inspect.isclass(v) else [v] for v in function.__globals__.values()]
    unwrapped = (inspect.unwrap(getattr(m, "__func__", m)) for each in members for m in each if callable(m))
    codes = {f.__code__ for f in unwrapped if inspect.isfunction(f) and f.__code__.co_filename == own.co_filename}
    return Reading(_mentions(own), tuple(map(_mentions, codes)))


def _mentions(code: CodeType) -> Mentions:
    words, judged = set(), set()
    for this, following in pairwise(dis.get_instructions(code)):
        if this.opname.startswith("LOAD_CONST"):
            values = this.argval if isinstance(this.argval, (tuple, frozenset)) else (this.argval,)
            found = {value for value in values if isinstance(value, str)}
            words |= found
            looked_up = following.opname == "BINARY_SUBSCR" or following.argrepr == "[]"
            judged |= set() if looked_up or following.opname.startswith("STORE") else found
    return Mentions(frozenset(code.co_names), frozenset(words), frozenset(judged))
