"""The monitor as a callback of other people's training loops."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

from conditioned_attention.measure.monitoring.records import HeadRecord, summary

_PREFIX = "conditioning/"


class Monitor(Protocol):
    """What a callback needs of a monitor."""

    @property
    def every(self) -> int:
        """Optimizer steps between measurements."""

    def measure(self, step: int) -> Sequence[HeadRecord]:
        """Measures now, and returns a record for each head."""


def trainer_callback(monitor: Monitor, trainer: Any = None) -> Any:
    """For ``transformers.Trainer``: measures before the first step, every ``monitor.every`` steps, and at the end."""
    from transformers import TrainerCallback

    class MonitorCallback(TrainerCallback):
        """Calls the monitor after optimizer steps."""

        measured: int | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._measure(state.global_step, state.global_step % monitor.every == 0)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._measure(state.global_step, state.global_step % monitor.every == 0)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._measure(state.global_step, True)

        def _measure(self, step: int, due: bool) -> None:
            if not due or step == self.measured:
                return
            self.measured = step
            numbers = _finite(monitor.measure(step))
            if trainer is not None and numbers:
                trainer.log(numbers)

    return MonitorCallback()


def lightning_callback(monitor: Monitor) -> Any:
    """For Lightning, under the name that was imported first: ``lightning.pytorch`` or ``pytorch_lightning``."""
    base = _lightning().Callback

    class MonitorCallback(base):  # type: ignore[misc, valid-type]
        """Calls the monitor after optimizer steps."""

        measured: int | None = None

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self._measure(trainer, trainer.global_step % monitor.every == 0)

        def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
            self._measure(trainer, trainer.global_step % monitor.every == 0)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self._measure(trainer, True)

        def _measure(self, trainer: Any, due: bool) -> None:
            step = trainer.global_step
            if not due or step == self.measured:  # several batches make one step where gradients are accumulated
                return
            self.measured = step
            numbers = _finite(monitor.measure(step))
            for logger in trainer.loggers:
                logger.log_metrics(numbers, step=step)

    return MonitorCallback()


def _lightning() -> Any:
    for name in ("lightning.pytorch", "pytorch_lightning"):
        if name in sys.modules:
            return sys.modules[name]
    return import_module("lightning.pytorch" if find_spec("lightning") else "pytorch_lightning")


def _finite(records: Sequence[HeadRecord]) -> dict[str, float]:
    """What trackers take; κ at the floor is no number."""
    return {_PREFIX + name: value for name, value in summary(records).items() if math.isfinite(value)}
