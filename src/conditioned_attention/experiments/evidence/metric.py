"""The number that runs are compared by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """The number that runs are compared by.

    Attributes:
        name: its name with the unit, as printed in tables.
        higher_is_better: whether a higher score is a better one.

    >>> from conditioned_attention.experiments import Metric
    >>> print(Metric("loss", higher_is_better=False))
    loss (lower is better)
    """

    name: str
    higher_is_better: bool = True

    def __str__(self) -> str:
        return f"{self.name} ({'higher' if self.higher_is_better else 'lower'} is better)"

    @property
    def limit(self) -> float | None:
        """The best possible value of a percentage, 100 or 0; None for other units.

        >>> from conditioned_attention.experiments import Metric
        >>> Metric("accuracy (%)").limit, Metric("error (%)", False).limit, Metric("loss (nats a byte)", False).limit
        (100.0, 0.0, None)
        """
        return (100.0 if self.higher_is_better else 0.0) if "(%)" in self.name else None
