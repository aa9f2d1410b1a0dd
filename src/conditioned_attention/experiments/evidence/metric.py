"""The number that runs are compared by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """The number that runs are compared by.

    Attributes:
        name: with its unit, as printed in tables.
        higher_is_better: which way is up.
    """

    name: str
    higher_is_better: bool = True
