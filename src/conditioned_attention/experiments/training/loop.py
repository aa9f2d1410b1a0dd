"""The training loop, on Hugging Face Accelerate.  It knows nothing about tasks beyond `Task`.

A run is a generator: it yields the metrics of every evaluation, and begins with those of an earlier, interrupted
process if its folder holds a checkpoint.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.experiments.training.checkpoints import Checkpoints
from conditioned_attention.experiments.training.interruption import Stop, signals_noted
from conditioned_attention.experiments.training.launch import Launch, kind
from conditioned_attention.experiments.training.optimizer import build_optimizer
from conditioned_attention.experiments.training.order import EpochSampler, training_loader
from conditioned_attention.experiments.training.schedule import build_schedule
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.training.trackers import Trackers, check_installed
from conditioned_attention.experiments.training.watching import summarise_projections
from conditioned_attention.experiments.variants.variant import Variant, check_suited
from conditioned_attention.measure import ConditionMonitor
from conditioned_attention.measure.monitoring.records import summary
from conditioned_attention.measure.probing.projections import projection_records, value_norm
from conditioned_attention.storage.files import JsonLines, finite, remove_leftovers, write_text

logger = logging.getLogger(__name__)

_TICKS = 10_000  # steps of a schedule that follows the clock


def train(
    task: Task, settings: Training, variant: Variant, seed: int, folder: Path, launch: Launch | None = None
) -> Iterator[dict[str, Any]]:
    """Trains one variant with one seed in a folder of its own; yields the metrics of every evaluation.

    The seed sets the initial weights and the order of the data, so variants of one seed are paired.  The folder gets
    ``train.jsonl`` (loss, learning rate, samples or tokens seen, gradient norm), ``conditions.jsonl`` (a line a head
    and measurement), checkpoints, and what `Task.finish` writes; called again on the same folder, the run goes on
    from the newest good checkpoint, and yields what it had yielded before.

    The first Ctrl-C or SIGTERM is obeyed at the next optimizer step, after a checkpoint.

    Yields:
        ``{"epoch", "step", "seen", "score", "train_loss", "seconds", …}``; ``seconds`` is time spent training, without
        evaluation and measurement; ``train_loss`` is the mean since the last evaluation.  None stands for a number
        that is not finite.

    Raises:
        ValueError: the folder holds a run of another variant, seed or setting; a variant that the task cannot have.
        FloatingPointError: the training loss is not finite.
        OSError: a checkpoint or log could not be written; those before it are as they were.
        RuntimeError: no checkpoint can be read, and nothing was changed; or the processes that were launched are not
            those that ``launch`` asks for.
    """
    run = _Run(task, settings, variant, seed, folder, launch or Launch())
    run.resume()
    yield from list(run.history)
    with run.trackers():
        if run.step == 0:
            run.measure()
        stop = Stop()
        while not run.done or not run.evaluated:
            with signals_noted(stop):
                row = run.until_evaluated(stop)
            try:
                yield row
            except GeneratorExit:  # whoever takes the rows was stopped between two of them
                run.leave()
                raise
        if stop:  # it came while the last checkpoint was written
            stop.obey()


class _Run:
    """The state of one run: everything that a checkpoint holds, and the steps that change it."""

    def __init__(
        self, task: Task, settings: Training, variant: Variant, seed: int, folder: Path, launch: Launch
    ) -> None:
        self.task, self.settings, self.variant, self.seed = task, settings, variant, seed
        self.folder, self.launch = folder, launch
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict[str, Any]] = []
        self.saved_at, self.saved_step = time.monotonic(), 0

        check_suited([variant], causal=task.causal)
        check_installed(launch.trackers)
        self.accelerator = launch.accelerator(settings.precision, settings.accumulation)
        self.main = self.accelerator.is_main_process
        self.checkpoints = Checkpoints(folder, self.accelerator)
        self.log, self.conditions = JsonLines(folder / "train.jsonl"), JsonLines(folder / "conditions.jsonl")
        self.projections = JsonLines(folder / "projections.jsonl")

        torch.manual_seed(seed)
        model = task.build_model()
        variant.apply(model, task.probe())
        self._seed_randomness(0)
        self.monitor = self._monitor(model) if settings.monitor_every else None
        self.value_norm_before = value_norm(model)
        self.ema = self._average(model)
        self._prepare(model)
        self.losses, self.loss_count = torch.zeros((), device=self.accelerator.device), 0  # since the last evaluation
        self.batches: Iterator[Any] = iter(())

    def _seed_randomness(self, step: int) -> None:
        """Dropout draws the same numbers whatever the conversion drew, and others in every process."""
        from accelerate.utils import set_seed

        set_seed((self.seed + 1_000_003 * self.accelerator.process_index + 7_919 * step) % 2**32)

    def _average(self, model: nn.Module) -> AveragedModel | None:
        if self.settings.ema is None:
            return None
        if kind(self.accelerator) == "fsdp2":
            raise ValueError("ema keeps a whole copy of the weights in every process: it does not go with fsdp2")
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(self.settings.ema))
        return average.to(self.accelerator.device)

    def _prepare(self, model: nn.Module) -> None:
        task, settings = self.task, self.settings
        data, micro_batch = task.train_data(), settings.batch_size // settings.accumulation
        samples = len(data)  # type: ignore[arg-type]
        self.epoch_steps = settings.steps_of_epochs(1, samples)
        self.steps = settings.steps(samples, task.tokens_per_sample)
        self.evaluate_steps = settings.steps_of_epochs(settings.evaluate_every, samples)
        self.sampler = EpochSampler(samples, self.seed, settings.batch_size)
        train_loader = training_loader(data, self.sampler, micro_batch, task.collate, self.launch.loader_workers)
        eval_loader = DataLoader(
            task.eval_data(), micro_batch, collate_fn=task.collate, num_workers=self.launch.loader_workers,
            generator=torch.Generator(),
        )  # fmt: skip
        optimizer = build_optimizer(model, settings)
        self.ticks = self.steps if settings.seconds is None else _TICKS
        self.tick = 0
        self.model, self.optimizer, self.schedule, self.train_loader, self.eval_loader = self.accelerator.prepare(
            model, optimizer, build_schedule(optimizer, settings, self.ticks), train_loader, eval_loader
        )

    def _monitor(self, model: nn.Module) -> ConditionMonitor:
        return ConditionMonitor(model, self._to_device(self.task.probe()), samples=None, keep=0)

    def _to_device(self, data: Any) -> Any:
        from accelerate.utils import send_to_device

        return send_to_device(data, self.accelerator.device)

    @property
    def progress(self) -> float:
        """How much of the budget is used up, from 0 to 1."""
        by_steps = self.step / self.steps
        return by_steps if self.settings.seconds is None else max(by_steps, self.seconds / self.settings.seconds)

    @property
    def done(self) -> bool:
        return self.progress >= 1

    @property
    def evaluated(self) -> bool:
        """Whether the history has the present step."""
        return bool(self.history) and self.history[-1]["step"] == self.step

    @property
    def due(self) -> bool:
        """Whether the present step is one to evaluate."""
        return self.done or (self.step > 0 and self.step % self.evaluate_steps == 0)

    def until_evaluated(self, stop: Stop) -> dict[str, Any]:
        """Trains up to the next evaluation; returns its row."""
        while not self.due or self.evaluated:
            self.take_step()
            self.save_if_due(stop)
        row = self.evaluate(stop)
        if self.done:
            self.finish()
        self.save_if_due(stop, force=self.done)
        return row

    def take_step(self) -> None:
        """One optimizer step."""
        self.model.train()
        began = time.perf_counter()
        for _ in range(self.settings.accumulation):
            batch = self._next_batch()
            with self.accelerator.accumulate(self.model):
                loss = self.task.loss(self.model, batch)
                self.accelerator.backward(loss)
                norm = self._clip() if self.accelerator.sync_gradients else None
                self.optimizer.step()
                self.optimizer.zero_grad()
            self.losses += loss.detach()
            self.loss_count += 1
        self.step += 1
        self._add_seconds(time.perf_counter() - began)
        self._move_schedule()
        if self.ema is not None:
            self.ema.update_parameters(self.accelerator.unwrap_model(self.model))
        if self.step % self.launch.log_every == 0:
            self._log_step(loss, norm)

    def _next_batch(self) -> Any:
        try:
            return next(self.batches)
        except StopIteration:
            epoch, step = divmod(self.step, self.epoch_steps)
            self.sampler.start_at(epoch, step * self.settings.batch_size)
            self.batches = iter(self.train_loader)
            return next(self.batches)

    def _clip(self) -> torch.Tensor | None:
        if self.settings.clip is None:
            return None
        norm: torch.Tensor = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        return norm

    def _add_seconds(self, seconds: float) -> None:
        self.seconds += seconds
        if self.settings.seconds is not None:  # one clock for all, as it decides when the run ends
            self.seconds = self._agree(self.seconds)

    def _agree(self, value: float) -> float:
        """The largest value of all processes."""
        if self.accelerator.num_processes == 1:
            return value
        return float(self.accelerator.gather(torch.tensor([value], device=self.accelerator.device)).max())

    def _move_schedule(self) -> None:
        # not through Accelerate's wrapper, which would hold the schedule back where fp16 skips a step
        target = self.step if self.settings.seconds is None else min(round(self.progress * self.ticks), self.ticks)
        while self.tick < target:
            self.schedule.scheduler.step()
            self.tick += 1

    def _mean(self, loss: torch.Tensor) -> float:
        """Over all processes; raises if it is not finite."""
        value = float(self.accelerator.reduce(loss.detach(), reduction="mean"))
        if not math.isfinite(value):
            raise FloatingPointError(f"the training loss is {value} at step {self.step}; try a lower lr or clip")
        return value

    def _log_step(self, loss: torch.Tensor, norm: torch.Tensor | None) -> None:
        row = {"step": self.step, "seen": self.seen, "loss": self._mean(loss)}
        row |= {"lr": self.optimizer.param_groups[0]["lr"], "seconds": self.seconds}
        if norm is not None:
            row["grad_norm"] = float(norm)
        self._write(self.log, row)
        self.shown.log("train", row)

    def trackers(self) -> Trackers:
        """Shows what is written from now on; they get the earlier rows too."""
        name = f"{self.launch.name or type(self.task).__name__}/{self.variant.name}/seed-{self.seed}"
        self.shown = Trackers(
            self.launch.trackers,
            folder=self.folder,
            run_name=name,
            config=self.identity,
            resume_step=self.step or None,
            earlier={"train": self.log.read(), "eval": self.history},
        )
        return self.shown

    def _write(self, log: JsonLines, *rows: dict[str, Any]) -> None:
        if self.main:
            log.append(*rows)

    @property
    def seen(self) -> int:
        """Samples, or tokens, trained on."""
        return self.step * self.settings.batch_size * self.task.tokens_per_sample

    def evaluate(self, stop: Stop) -> dict[str, Any]:
        """Evaluates, measures if due, and returns the row of the history."""
        train_loss = self._mean(self.losses) / self.loss_count
        model = self.model if self.ema is None else self.ema.module
        model.eval()
        with torch.no_grad():
            batches = self._until_stopped(self.eval_loader, stop)
            scores = self.task.evaluate(model, batches, self.accelerator.gather_for_metrics)
        epoch = self.step / self.epoch_steps
        row: dict[str, Any] = {
            "epoch": int(epoch) if epoch.is_integer() else epoch,
            "step": self.step,
            "seen": self.seen,
        }
        row |= {"seconds": self.seconds, "train_loss": train_loss} | scores
        row |= self.measure() if self._measure_due() else {}
        self.history.append(finite(row))  # as a checkpoint gives it back
        self.shown.log("eval", row)
        self.losses.zero_()
        self.loss_count = 0
        return self.history[-1]

    def _until_stopped(self, batches: Iterable[Any], stop: Stop) -> Iterator[Any]:
        for batch in batches:
            if stop and self.accelerator.num_processes == 1:  # several would have to agree: they finish it
                self.save_and_stop(stop)
            yield batch

    def _measure_due(self) -> bool:
        if not self.settings.monitor_every:
            return False
        every = max(1, round(self.settings.monitor_every * self.epoch_steps))
        before = self.history[-1]["step"] if self.history else 0
        return self.done or self.step // every > before // every

    def measure(self) -> dict[str, float]:
        """Condition numbers of every head and every projection, into their files; and their summary."""
        if self.monitor is None:
            return {}
        records = self.monitor.measure(self.step)
        self._write(self.conditions, *(record.to_json() for record in records))
        model = self.accelerator.unwrap_model(self.model) if self.ema is None else self.ema.module
        projections = projection_records(model)
        self._write(self.projections, *({"step": self.step} | record.to_json() for record in projections))
        return summary(records) | summarise_projections(projections, self.value_norm_before)

    def finish(self) -> None:
        """Writes what the task has to show of the trained model."""
        model = self.accelerator.unwrap_model(self.model) if self.ema is None else self.ema.module
        model.eval()
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(self.seed)
            for name, text in self.task.finish(model).items():
                if self.main:
                    write_text(self.folder / name, text)

    def save_if_due(self, stop: Stop, *, force: bool = False) -> None:
        """Writes a checkpoint if it is time, or if somebody asked for the end; in the latter case ends."""
        if self.accelerator.num_processes > 1 and not force and self.step % self.launch.log_every:
            return  # to agree costs time
        late = time.monotonic() - self.saved_at >= self.launch.checkpoint_seconds
        wish = self._agree(float(stop.signal or 0))
        if wish:
            stop.signal = int(wish)
            self.save_and_stop(stop)
        if force or self._agree(float(late)):
            self.save()

    def save_and_stop(self, stop: Stop) -> None:
        path = self.save()
        if self.main:
            logger.warning("stopped at step %d of %d; called again, it goes on from %s", self.step, self.steps, path)
        stop.obey()

    def save(self) -> Path:
        """Writes a checkpoint."""
        position = {
            "step": self.step,
            "tick": self.tick,
            "seconds": self.seconds,
            "losses": self._mean(self.losses),
            "loss_count": self.loss_count,
            "history": self.history,
            "processes": self.accelerator.num_processes,
            "run": self.identity,
        }
        path = self.checkpoints.save(self.step, position, None if self.ema is None else self.ema.state_dict())
        self.saved_at, self.saved_step = time.monotonic(), self.step
        return path

    def leave(self) -> None:
        """Writes a checkpoint if the newest is older, unless other processes would have to take part."""
        if self.accelerator.num_processes == 1 and self.saved_step != self.step and not sys.is_finalizing():
            with suppress(OSError):  # what stopped the run may be a full disk
                self.save()

    def resume(self) -> None:
        """Goes to the newest good checkpoint, if there is one, and cuts the logs back to it."""
        if self.main:
            remove_leftovers(self.folder)
        self.accelerator.wait_for_everyone()
        found = self.checkpoints.load_newest(self._check)
        if found is not None:
            position, average = found
            self.step, self.tick, self.seconds = position["step"], position["tick"], position["seconds"]
            self.history, self.loss_count = position["history"], position["loss_count"]
            self.losses.fill_(position["losses"])
            if self.ema is not None and average is not None:
                self.ema.load_state_dict(average)
            self.saved_step = self.step
            if position["processes"] != self.accelerator.num_processes:
                self._seed_randomness(self.step)
        if self.main:
            self.log.cut_after(-1 if found is None else self.step)
            # measured with the evaluation, which comes after the step's own checkpoint
            for measured in (self.conditions, self.projections):
                measured.cut_after(-1 if found is None else self.step - (not self.evaluated))

    @property
    def identity(self) -> dict[str, Any]:
        """What makes this run this one, as plain data."""
        samples = {"training samples": self.sampler.length}
        return {"variant": self.variant.name, "seed": self.seed, **samples, **dataclasses.asdict(self.settings)}

    def _check(self, position: dict[str, Any]) -> None:
        there = position["run"]
        if there != self.identity:
            other = [f"{k}: {there.get(k)!r} there, {v!r} now" for k, v in self.identity.items() if there.get(k) != v]
            raise ValueError(f"{self.folder} holds another run ({', '.join(other)}); choose another folder")
