"""What a recipe is."""

from __future__ import annotations

from typing import Protocol

from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.experiments.training.settings import Training


class Recipe(Protocol):
    """A typed, frozen dataclass: everything that a run depends on but its variant and seed."""

    @property
    def training(self) -> Training: ...

    def task(self, *, tuning: bool = False) -> Task:
        """With ``tuning`` a fixed tenth of the training set is the evaluation set, and the real one is not touched."""
