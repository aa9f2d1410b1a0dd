"""Selects attention modules of a model by patterns, and builds the error messages about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from conditioned_attention.sites import Site, active_transform

Patterns = str | Sequence[str] | None


def select(sites: Sequence[Site], include: Patterns, exclude: Patterns) -> list[Site]:
    """The sites that include and exclude leave; without include, all but those that are converted on request only.

    Raises TypeError for patterns that are not strings, ValueError for one that matches nothing.
    """
    names = [site.name for site in sites]
    by_default = {site.name for site in sites if not site.opt_in or active_transform(site) is not None}
    chosen = by_default if include is None else _matches("include", include, names)
    chosen -= set() if exclude is None else _matches("exclude", exclude, names)
    return [site for site in sites if site.name in chosen]


def _matches(argument: str, patterns: str | Sequence[str], names: Sequence[str]) -> set[str]:
    found: set[str] = set()
    if not isinstance(patterns, (str, Sequence)):
        raise TypeError(f"{argument} takes glob patterns as strings, got {type(patterns).__name__}")
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{argument} takes glob patterns as strings, got {type(pattern).__name__}")
        hits = {name for name in names if fnmatchcase(name, pattern)}
        if not hits:
            raise ValueError(
                f"{argument}={pattern!r} matches no attention module; there are: {', '.join(names) or 'none'}"
            )
        found |= hits
    return found


def nothing_because(sites: Sequence[Site], reasons: Mapping[str, str]) -> str:
    """What the error message says after "nothing to convert"."""
    if reasons:
        return ":\n" + lines_of(reasons)
    return (
        ": include and exclude leave no attention module"
        if sites
        else ": it holds no attention module that is known, or that calls itself so; see register_attention"
    )


def lines_of(reasons: Mapping[str, str]) -> str:
    """A line for each module's name and reason."""
    return "\n".join(f"  {name or '(the model)'}: {reason}" for name, reason in reasons.items())
