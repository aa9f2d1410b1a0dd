"""The progress of a run: what a checkpoint holds besides what Accelerate saves, and when one is written."""

from __future__ import annotations

import logging
import math
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from conditioned_attention.experiments.training.checkpoints import Checkpoints
from conditioned_attention.experiments.training.evaluation import Best
from conditioned_attention.experiments.training.interruption import Stop
from conditioned_attention.experiments.training.launch import Launch, agree
from conditioned_attention.storage.files import remove_leftovers
from conditioned_attention.storage.folder import differences

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

SHARE = 0.02  # largest share of the time that goes into checkpoints


class Pace:
    """When the next checkpoint is due: after this many seconds, or more if the last one took long; 0 is always."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.took = seconds, 0.0
        self.since = time.monotonic()

    def due(self) -> bool:
        """Whether a checkpoint is due."""
        wait = max(self.seconds, self.took / SHARE) if self.seconds else 0.0
        return time.monotonic() - self.since >= wait

    def saved(self, took: float) -> None:
        """Notes that a checkpoint was written, and how many seconds it took."""
        self.took, self.since = took, time.monotonic()


@dataclass
class Position:
    """The progress of a run.

    Attributes:
        step: optimizer steps done.
        taken: micro-batches taken.
        tick: how often the schedule was stepped.
        seconds: spent training.
        losses: sums over micro-batches since the last evaluation, by name.
        loss_count: how many micro-batches these are.
        history: the rows that the run has yielded.
        place: the position in a stream of samples; None for other orders.
    """

    step: int = 0
    taken: int = 0
    tick: int = 0
    seconds: float = 0.0
    losses: dict[str, Tensor] = field(default_factory=dict)
    loss_count: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    place: dict[str, Any] | None = None

    @property
    def evaluated(self) -> bool:
        """Whether the history has a row for the current step."""
        return bool(self.history) and self.history[-1]["step"] == self.step


class Keeper:
    """Writes the checkpoints of a run when they are due, and brings a run back to the newest good one.

    ``steps``, those of the whole run, are only shown in messages; ``accumulation``, the micro-batches per optimizer
    step, is needed for checkpoints of versions that did not count micro-batches.
    """

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        launch: Launch,
        identity: dict[str, Any],
        *,
        steps: int,
        accumulation: int,
    ) -> None:
        self.folder, self.accelerator, self.launch, self.identity = folder, accelerator, launch, identity
        self.steps, self.accumulation = steps, accumulation
        self.checkpoints = Checkpoints(folder, accelerator)
        self.pace = Pace(launch.checkpoint_seconds)
        self.position, self.best = Position(), Best()
        self.average: AveragedModel | None = None
        self.average_name = "average"  # key in a checkpoint: a run that starts from it uses "average" as its weights
        self.saved_step = 0

    def save_if_due(self, stop: Stop, *, force: bool = False) -> None:
        """Writes a checkpoint if one is due or a stop was requested; in the latter case, ends the run."""
        several = self.accelerator.num_processes > 1
        if several and not force and self.position.step % self.launch.log_every:
            return  # agreeing takes time
        wish = agree(self.accelerator, float(stop.signal or 0))
        if wish:
            stop.signal = int(wish)
            self.save_and_stop(stop)
        if force or agree(self.accelerator, float(self.pace.due())):
            self.save()

    def save_and_stop(self, stop: Stop) -> NoReturn:
        """Writes a checkpoint and ends the run as the signal would have ended it."""
        path = self.save()
        if self.accelerator.is_main_process:
            step = self.position.step
            logger.warning("stopped at step %d of %d; called again, it goes on from %s", step, self.steps, path)
        stop.obey()

    def save(self) -> Path:
        """Writes a checkpoint."""
        here, began = self.position, time.monotonic()
        losses = {name: self.mean(loss) for name, loss in here.losses.items()}
        best = {"score": self.best.score, "step": self.best.step}
        more = {"processes": self.accelerator.num_processes, "best": best, "run": self.identity}
        position = {**vars(here), "losses": losses, **more}
        extra: dict[str, Any] = {} if self.average is None else {self.average_name: self.average.state_dict()}
        if self.best.weights is not None:
            extra["best"] = self.best.weights
        path = self.checkpoints.save(here.step, position, extra or None)
        self.pace.saved(time.monotonic() - began)
        self.saved_step = here.step
        return path

    def mean(self, loss: Tensor) -> float:
        """Returns the mean of a loss over all processes; raises FloatingPointError if it is not finite."""
        value = float(self.accelerator.reduce(loss, reduction="mean"))
        if not math.isfinite(value):
            step = self.position.step
            raise FloatingPointError(f"the training loss is {value} at step {step}; try a lower lr or clip")
        return value

    def leave(self) -> None:
        """Writes a checkpoint if the newest is of an earlier step, unless other processes would have to take part."""
        if self.accelerator.num_processes == 1 and self.saved_step != self.position.step and not sys.is_finalizing():
            with suppress(OSError):  # what stopped the run may be a full disk
                self.save()

    def resume(self) -> int | None:
        """Loads the newest good checkpoint; returns how many processes wrote it, or None if there is none."""
        if self.accelerator.is_main_process:
            remove_leftovers(self.folder)
        self.accelerator.wait_for_everyone()
        found = self.checkpoints.load_newest(self._check)
        if found is None:
            return None
        there, extra = found
        losses = there["losses"] if isinstance(there["losses"], dict) else {"loss": there["losses"]}  # 0.1: one number
        for name in ("step", "tick", "seconds", "loss_count", "history"):
            setattr(self.position, name, there[name])
        self.position.taken = there.get("taken", there["step"] * self.accumulation)
        self.position.place = there.get("place")
        device = self.accelerator.device
        self.position.losses = {name: torch.tensor(loss, device=device) for name, loss in losses.items()}
        if extra is not None and not extra.keys() & {"average", "beside", "best"}:
            extra = {"average": extra}  # 0.1: the average alone
        if self.average is not None and extra is not None:
            self.average.load_state_dict(extra[self.average_name])
        if extra is not None and "best" in extra:
            self.best.score, self.best.step = there["best"]["score"], there["best"]["step"]
            self.best.weights = extra["best"]
        self.saved_step = self.position.step
        processes: int = there["processes"]
        return processes

    def _check(self, position: dict[str, Any]) -> None:
        found = differences(position["run"], self.identity)
        other = [f"{key}: {there!r} there, {now!r} now" for key, there, now in found]
        if other:
            raise ValueError(f"{self.folder} holds another run ({', '.join(other)}); choose another folder")
