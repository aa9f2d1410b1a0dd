"""The training loop, on Hugging Face Accelerate.  It knows nothing about tasks beyond `Task`.

A run is a generator: it yields the metrics of every evaluation, and begins with those of an earlier, interrupted
process if its folder holds a checkpoint.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, OneCycleLR, SequentialLR
from torch.utils.data import DataLoader, Sampler

from conditioned_attention.experiments.files import JsonLines, finite, new_folder, remove_leftovers, write_json
from conditioned_attention.experiments.task import Task
from conditioned_attention.experiments.variants import Variant
from conditioned_attention.measure import ConditionMonitor
from conditioned_attention.measure.monitor import HeadRecord

_KEEP = 2  # checkpoints: the newest, and the one before in case it cannot be read


@dataclass(frozen=True)
class Training:
    """How a model is trained: AdamW, whatever the task.

    Attributes:
        epochs: passes over the training set; the samples that do not fill an optimizer step are left out.
        batch_size: samples an optimizer step, over all processes and micro-batches.
        accumulation: micro-batches an optimizer step; it must divide ``batch_size``.
        lr: highest learning rate.
        schedule: ``"cosine"`` (linear warmup, then half a cosine down to ``final_lr``), ``"one_cycle"`` (PyTorch's
            OneCycleLR, linear, which also cycles Adam's first beta between 0.95 and 0.85) or ``"constant"``.
        warmup: share of all steps in which the learning rate rises; not used by ``"constant"``.
        final_lr: learning rate at the end of ``"cosine"``, as a share of ``lr``.
        weight_decay: on matrices; vectors (biases, norms) do not decay.
        clip: largest global norm of the gradient; None does not clip.
        precision: ``"no"``, ``"bf16"`` or ``"fp16"`` (mixed precision; fp16 needs a GPU).
        evaluate_every: epochs between evaluations; the last epoch is always evaluated.
        monitor_every: epochs between measurements of the condition numbers, 0 for none.
        log_every: optimizer steps between lines of the training log.
        checkpoint_seconds: a checkpoint is written at the first optimizer step after so many seconds.
    """

    epochs: int = 30
    batch_size: int = 64
    accumulation: int = 1
    lr: float = 1e-3
    schedule: Literal["cosine", "one_cycle", "constant"] = "cosine"
    warmup: float = 0.1
    final_lr: float = 0.01
    weight_decay: float = 0.05
    clip: float | None = 1.0
    precision: Literal["no", "bf16", "fp16"] = "no"
    evaluate_every: int = 1
    monitor_every: int = 1
    log_every: int = 10
    checkpoint_seconds: float = 20.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulation", "evaluate_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_size % self.accumulation:
            raise ValueError(f"accumulation={self.accumulation} must divide batch_size={self.batch_size}")
        if not (self.lr > 0 and self.weight_decay >= 0 and 0 <= self.final_lr <= 1 and 0 <= self.warmup < 1):
            raise ValueError(
                "lr must be positive, weight_decay not negative, final_lr in [0, 1] and warmup in [0, 1), got "
                f"{self.lr}, {self.weight_decay}, {self.final_lr} and {self.warmup}"
            )
        if not math.isfinite(self.lr) or not math.isfinite(self.clip or 0.0):
            raise ValueError(f"lr and clip must be finite, got {self.lr} and {self.clip}")
        if self.schedule == "one_cycle" and self.warmup == 0:
            raise ValueError("schedule='one_cycle' needs a warmup above 0")
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"clip must be positive or None, got {self.clip}")
        if not (self.monitor_every >= 0 and self.checkpoint_seconds >= 0):
            raise ValueError("monitor_every and checkpoint_seconds must not be negative")


def train(task: Task, settings: Training, variant: Variant, seed: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Trains one variant with one seed in a folder of its own; yields the metrics of every evaluation.

    The seed sets the initial weights and the order of the data, so variants of one seed are paired.  The folder gets
    ``train.jsonl`` (loss, learning rate, samples seen, gradient norm), ``conditions.jsonl`` (a line a head and
    measurement) and checkpoints; called again on the same folder, the run goes on from the newest checkpoint, and
    yields what it had yielded before.

    Yields:
        ``{"epoch", "step", "score", "train_loss", "seconds", …}``; ``seconds`` is time spent training, without
        evaluation and measurement.  None stands for a number that is not finite.

    Raises:
        FloatingPointError: the training loss is not finite.
        RuntimeError: a checkpoint cannot be read; nothing was changed.
    """
    run = _Run(task, settings, variant, seed, folder)
    run.resume()
    yield from list(run.history)
    if not run.history and run.epoch == 0 and run.batch == 0:
        run.measure()
    while run.epoch < settings.epochs:
        run.train_epoch()
        if run.epoch % settings.evaluate_every == 0 or run.epoch == settings.epochs:
            yield run.evaluate()
        run.save_if_due(force=run.epoch == settings.epochs)


class EpochSampler(Sampler[int]):
    """A new permutation every epoch, set by the seed and the epoch alone, from any position in it.

    Only whole batches: the last ``length % batch_size`` samples of each permutation are left out.
    """

    def __init__(self, length: int, seed: int, batch_size: int = 1) -> None:
        self.length, self.seed = length, seed
        self.used = length // batch_size * batch_size
        self.epoch, self.start = 0, 0

    def start_at(self, epoch: int, start: int) -> None:
        """The next iteration is over this epoch, from this sample on."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return self.used - self.start

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(torch.randperm(self.length, generator=generator)[self.start : self.used].tolist())


class _Run:
    """The state of one run: everything that a checkpoint holds, and the steps that change it."""

    def __init__(self, task: Task, settings: Training, variant: Variant, seed: int, folder: Path) -> None:
        self.task, self.settings, self.folder = task, settings, folder
        # batch counts the micro-batches done in this epoch, seen what the task counts, samples or tokens, in all
        self.epoch = self.batch = self.step = self.seen = 0
        self.loss_sum, self.seconds = 0.0, 0.0
        self.history: list[dict[str, Any]] = []
        self.log, self.conditions = JsonLines(folder / "train.jsonl"), JsonLines(folder / "conditions.jsonl")
        self.saved_at = time.monotonic()

        self.accelerator = _accelerator(settings)
        torch.manual_seed(seed)
        model = task.build_model()
        variant.apply(model)
        torch.manual_seed(seed)  # dropout draws the same numbers whatever the conversion drew
        self.monitor = ConditionMonitor(model, self._to_device(task.probe())) if settings.monitor_every else None

        data, self.micro_batch = task.train_data(), settings.batch_size // settings.accumulation
        self.sampler = EpochSampler(len(data), seed, settings.batch_size)  # type: ignore[arg-type]
        steps = settings.epochs * (len(self.sampler) // settings.batch_size)
        if steps == 0:
            raise ValueError(f"batch_size={settings.batch_size} leaves no batch of {self.sampler.length} samples")
        # Its own generator: a loader otherwise draws from the global one, which resuming must not disturb.
        train_loader = DataLoader(
            data, self.micro_batch, sampler=self.sampler, collate_fn=task.collate, drop_last=True,
            generator=torch.Generator(),
        )  # fmt: skip
        self.batches = len(train_loader)  # of a whole epoch
        eval_loader = DataLoader(
            task.eval_data(), self.micro_batch, collate_fn=task.collate, generator=torch.Generator()
        )
        optimizer = torch.optim.AdamW(parameter_groups(model, settings.weight_decay), lr=settings.lr)
        self.model, self.optimizer, self.schedule, self.train_loader, self.eval_loader = self.accelerator.prepare(
            model, optimizer, build_schedule(optimizer, settings, steps), train_loader, eval_loader
        )

    def _to_device(self, data: Any) -> Any:
        from accelerate.utils import send_to_device

        return send_to_device(data, self.accelerator.device)

    def train_epoch(self) -> None:
        """The rest of the present epoch."""
        self.sampler.start_at(self.epoch, self.batch * self.micro_batch)
        self.model.train()
        losses = torch.tensor(self.loss_sum, device=self.accelerator.device)
        began, before = time.perf_counter(), self.seconds
        for batch in self.train_loader:
            with self.accelerator.accumulate(self.model):
                loss = self.task.loss(self.model, batch)
                self.accelerator.backward(loss)
                norm = self._clip() if self.accelerator.sync_gradients else None
                self.optimizer.step()
                self.schedule.step()
                self.optimizer.zero_grad()
            self.batch += 1
            self.seen += self.task.size(batch) * self.accelerator.num_processes
            losses += loss.detach()
            if self.accelerator.sync_gradients:
                self.step += 1
                self.seconds = before + time.perf_counter() - began
                self._log_step(loss, norm)
                if self.batch < self.batches:  # after the last one, only when the epoch has been evaluated
                    self.save_if_due(losses)
        self.seconds = before + time.perf_counter() - began
        self.train_loss = self._finite(losses) / self.batch
        self.epoch, self.batch, self.loss_sum = self.epoch + 1, 0, 0.0

    def _clip(self) -> torch.Tensor | None:
        if self.settings.clip is None:
            return None
        norm: torch.Tensor = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        return norm

    def _log_step(self, loss: torch.Tensor, norm: torch.Tensor | None) -> None:
        if self.step % self.settings.log_every:
            return
        value = self._finite(loss)
        row = {"step": self.step, "seen": self.seen, "loss": value, "lr": self.schedule.get_last_lr()[0]}
        row["seconds"] = self.seconds
        self.log.append(row if norm is None else {**row, "grad_norm": float(norm)})

    def _finite(self, loss: torch.Tensor) -> float:
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"the training loss is {value} at step {self.step}; try a lower lr or clip")
        return value

    def evaluate(self) -> dict[str, Any]:
        """Evaluates, measures if due, and returns the row of the history."""
        self.model.eval()
        with torch.no_grad():
            scores = self.task.evaluate(self.model, self.eval_loader, self.accelerator.gather_for_metrics)
        due = self.settings.monitor_every and (
            self.epoch % self.settings.monitor_every == 0 or self.epoch == self.settings.epochs
        )
        progress = {"epoch": self.epoch, "step": self.step, "seconds": self.seconds, "train_loss": self.train_loss}
        # as a checkpoint gives it back
        row: dict[str, Any] = finite(progress | scores | (self.measure() if due else {}))
        self.history.append(row)
        return row

    def measure(self) -> dict[str, float]:
        """Condition numbers of every head, into their file; and their summary."""
        if self.monitor is None:
            return {}
        records = self.monitor.measure(self.step)
        self.conditions.append(*(record.to_json() for record in records))
        return summarise_conditions(records)

    def save_if_due(self, losses: torch.Tensor | None = None, *, force: bool = False) -> None:
        """Writes a checkpoint if it is time: always at an optimizer step, always whole or not at all."""
        if not force and time.monotonic() - self.saved_at < self.settings.checkpoint_seconds:
            return
        path = self.folder / f"checkpoint-{self.step:08d}"
        position = {
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "seen": self.seen,
            "loss_sum": self.loss_sum if losses is None else self._finite(losses),
            "seconds": self.seconds,
            "history": self.history,
        }
        with new_folder(path) as temporary:
            self.accelerator.save_state(str(temporary))
            write_json(temporary / "position.json", position)
        for old in _checkpoints(self.folder)[:-_KEEP]:
            shutil.rmtree(old)
        self.saved_at = time.monotonic()

    def resume(self) -> None:
        """Goes to the newest checkpoint, if there is one, and cuts the logs back to it."""
        remove_leftovers(self.folder)
        checkpoints = _checkpoints(self.folder)
        if checkpoints:
            path = checkpoints[-1]
            try:
                position = json.loads((path / "position.json").read_text())
                self.accelerator.load_state(str(path))
            except Exception as error:  # damaged files fail in as many ways as there are readers
                raise RuntimeError(
                    f"the checkpoint {path} cannot be read ({type(error).__name__}: {error}); "
                    "remove that folder to go on from the one before it, or from the start"
                ) from error
            self.epoch, self.batch, self.step = position["epoch"], position["batch"], position["step"]
            self.seen = position["seen"]
            self.loss_sum, self.seconds, self.history = position["loss_sum"], position["seconds"], position["history"]
        for log in (self.log, self.conditions):
            log.cut_after(self.step if checkpoints else -1)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*")) if folder.is_dir() else []


def _accelerator(settings: Training) -> Any:
    from accelerate import Accelerator, DataLoaderConfiguration
    from accelerate.state import AcceleratorState
    from accelerate.utils import GradientAccumulationPlugin

    # One process may train several runs, and Accelerate keeps its settings in a singleton.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision=settings.precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=settings.accumulation),
        # batch_size is that of all processes together, and schedules count optimizer steps
        dataloader_config=DataLoaderConfiguration(split_batches=True),
    )
    if settings.precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("precision='fp16' needs a GPU; on a CPU 'no' and 'bf16' are valid")
    return accelerator


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; vectors and scalars (biases, norms) do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def build_schedule(optimizer: torch.optim.Optimizer, settings: Training, steps: int) -> LRScheduler:
    """The learning rate over ``steps`` optimizer steps."""
    if settings.schedule == "one_cycle":
        return OneCycleLR(
            optimizer, max_lr=settings.lr, total_steps=steps, pct_start=settings.warmup, anneal_strategy="linear"
        )
    if settings.schedule == "constant":
        return LinearLR(optimizer, start_factor=1.0, end_factor=1.0, total_iters=steps)
    warmup = round(settings.warmup * steps)
    decay = CosineAnnealingLR(optimizer, T_max=max(1, steps - warmup), eta_min=settings.final_lr * settings.lr)
    if warmup == 0:
        return decay
    rise = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return SequentialLR(optimizer, [rise, decay], milestones=[warmup])


def summarise_conditions(records: list[HeadRecord]) -> dict[str, float]:
    """Median log₁₀ κ of the heads of one measurement, and the share of heads at the numerical floor."""
    values = [math.log10(record.kappa) for record in records]
    return {
        "log10_kappa": statistics.median(values),
        "floor_share": sum(math.isinf(value) for value in values) / len(values),
        "largest_scale": max(record.largest_scale for record in records),
    }
