"""The monitor as a callback for the training loops of Hugging Face's Trainer and of Lightning."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from functools import cache, partialmethod
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

from torch import nn

from conditioned_attention.measure.monitoring.alarms import Unchanged
from conditioned_attention.measure.monitoring.records import HeadRecord, summary

_PREFIX = "conditioning/"


class Monitor(Protocol):
    """What a callback needs from a monitor."""

    @property
    def model(self) -> nn.Module:
        """The model that it watches."""

    @property
    def every(self) -> int:
        """Optimizer steps between measurements."""

    def measure(self, step: int) -> Sequence[HeadRecord]:
        """Measures now, and returns a record for each head."""


class _Due:
    """Measures when it is due, and only once per step, also at the end and where several batches make one step."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor, self.measured, self.unchanged = monitor, -1, Unchanged()

    def check(self, trained: nn.Module) -> None:
        """Raises ValueError if what is trained has nothing to do with what the monitor watches."""
        watched = self.monitor.model
        if not any(m is watched for m in trained.modules()) and not any(m is trained for m in watched.modules()):
            raise ValueError(
                f"the monitor watches a {type(watched).__name__} that is not part of the {type(trained).__name__} that "
                "is trained, so its numbers would never change.  A Trainer with model_init builds another model when "
                "train() begins: give it model= instead, and make the monitor of the same model"
            )

    def numbers(self, step: int, *, last: bool = False) -> dict[str, float]:
        """The finite numbers of a measurement, for trackers; without κ if it is at the floor, empty if none is due."""
        if step == self.measured or not (last or step % self.monitor.every == 0):
            return {}
        self.measured = step
        records = self.monitor.measure(step)
        self.unchanged.look(records)
        found = summary(records)
        return {_PREFIX + name: value for name, value in found.items() if math.isfinite(value)}


def trainer_callback(monitor: Monitor, trainer: Any = None) -> Any:
    """Returns a callback for Hugging Face's Trainer: ``trainer.add_callback(monitor.trainer_callback(trainer))``.

    It measures before the first step, every ``every`` steps, and at the end.  If the trainer is given, a few numbers of
    every measurement go wherever the trainer's own go: to its log and its trackers.  What the trainer itself logs, and
    its random numbers, are the same as in a run without the callback.

    Raises ValueError when training begins if the monitor watches another model than the one that is trained.
    """
    return _trainer_class()(_Due(monitor), trainer)


def lightning_callback(monitor: Monitor) -> Any:
    """Returns a callback for Lightning, ``Trainer(callbacks=[monitor.lightning_callback()])``; it logs to its loggers.

    It belongs to ``lightning.pytorch``, or to ``pytorch_lightning`` if only that is imported.  It goes with the
    trainer to processes that Lightning starts (``strategy="ddp_spawn"``).  In each of them the monitor measures by
    itself, and in the first one it writes to its path; the ``records`` of the starting process stay as they were.

    Raises ValueError when training begins if the monitor watches another model than the one that is trained.
    """
    return _lightning_class(_lightning())(_Due(monitor))


@cache
def _trainer_class() -> Any:
    """The class of the callback, made when it is first needed, because transformers need not be installed."""
    from transformers import TrainerCallback

    class MonitorCallback(TrainerCallback):
        """Calls the monitor after optimizer steps."""

        def __init__(self, due: _Due, trainer: Any) -> None:
            self.due, self.trainer = due, trainer

        def __reduce__(self) -> Any:
            return _blank, (_trainer_class,), vars(self)

        def on_step_end(self, args: Any, state: Any, control: Any, last: bool = False, **kwargs: Any) -> None:
            numbers = self.due.numbers(state.global_step, last=last)
            if self.trainer is not None and numbers:
                asked = control.should_log  # for the trainer's own numbers, after this; log() resets it
                self.trainer.log(numbers)
                control.should_log = asked

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.due.check(model)
            self.on_step_end(args, state, control)

        on_train_end = partialmethod(on_step_end, last=True)

    return MonitorCallback


@cache
def _lightning_class(library: str) -> Any:
    """The class of the callback, made when it is first needed, for either name of the library."""

    class MonitorCallback(import_module(library).Callback):  # type: ignore[misc]
        """Calls the monitor after optimizer steps."""

        def __init__(self, due: _Due) -> None:
            self.due = due

        def __reduce__(self) -> Any:
            return _blank, (_lightning_class, library), vars(self)

        def on_train_batch_end(self, trainer: Any, *args: Any, last: bool = False, **kwargs: Any) -> None:
            numbers = self.due.numbers(trainer.global_step, last=last)
            for logger in trainer.loggers if numbers else ():
                logger.log_metrics(numbers, step=trainer.global_step)

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.due.check(pl_module)
            self.on_train_batch_end(trainer)

        on_train_end = partialmethod(on_train_batch_end, last=True)

    return MonitorCallback


def _blank(make: Callable[..., Any], *args: Any) -> Any:
    """An empty instance for pickle to fill: a class that is made in a function has no name by which it could be found.

    Its attributes come afterwards, so that the model, the trainer and the callback may refer to each other.
    """
    cls = make(*args)
    return cls.__new__(cls)


def _lightning() -> str:
    for name in ("lightning.pytorch", "pytorch_lightning"):
        if name in sys.modules:
            return name
    return "lightning.pytorch" if find_spec("lightning") else "pytorch_lightning"
