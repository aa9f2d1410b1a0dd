"""What `compare` passes to a user's own loop on request: the run's folder, and a monitor that writes there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from conditioned_attention.measure import ConditionMonitor

Log = Callable[[Mapping[str, float], int], None]


class Run:
    """One run of your own training loop, ``train(variant, seed, run)``.

    Attributes:
        folder: the run's own folder, where the loop may keep what it likes; it exists already.

    >>> import torch
    >>> from conditioned_attention.experiments import compare
    >>> def train(variant, seed, run):
    ...     model = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    ...     report = variant.apply(model)
    ...     monitor = run.monitor(model, torch.randn(2, 5, 32), every=1)
    ...     monitor.step(0)  # training steps would follow
    ...     yield {"score": float(seed)}
    >>> found = compare(train, variants=["baseline", "preconditioned"], seeds=2, progress=False)
    >>> found.runs["preconditioned"][0][0]["log10_kappa"] > 0
    True
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._monitor: ConditionMonitor | None = None
        self._numbers: dict[str, float] = {}

    def monitor(
        self,
        model: nn.Module,
        probe: Any,
        *,
        log: Log | None = None,
        **options: Any,
    ) -> ConditionMonitor:
        """Makes a `ConditionMonitor` that belongs to this run.

        Its records go into the run's folder, and its summary into the next row that the loop yields, so that the
        comparison's table and report have κ.

        Args:
            model, probe, log, options: as for `ConditionMonitor`, without ``path``.

        Raises:
            TypeError, ValueError: as `ConditionMonitor`; or this was called before, and the second monitor's records
                would be mixed with the first one's.
        """
        path = self.folder / "conditions.jsonl"
        if self._monitor is not None:
            raise ValueError(
                f"run.monitor was called before: {path.name} and the rows have the numbers of one model; watch another "
                "by ConditionMonitor(model, probe, path=run.folder / …)"
            )
        path.unlink(missing_ok=True)  # left by an attempt that did not finish

        def take(numbers: Mapping[str, float], step: int) -> None:
            self._numbers = dict(numbers)
            if log is not None:
                log(numbers, step)

        self._monitor = ConditionMonitor(model, probe, path=path, log=take, **options)
        return self._monitor

    def measured(self) -> dict[str, float]:
        """The summary of the last measurement since the previous call; empty if there was none."""
        found, self._numbers = self._numbers, {}
        return found


def wants_run(train: Any) -> bool:
    """Whether a loop has a parameter called ``run``."""
    with suppress(TypeError, ValueError):  # callables without a signature
        return "run" in inspect.signature(train).parameters
    return False
