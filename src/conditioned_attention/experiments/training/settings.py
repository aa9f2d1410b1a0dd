"""How a model is trained: all that sets a run's numbers, in small parts that are one flat list on the command line."""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import dataclass
from typing import Any, Literal

from conditioned_attention.choices import check_choices
from conditioned_attention.experiments.training.order import Order
from conditioned_attention.storage.settings import added

Precision = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True)
class Optimization:
    """The optimizer, which turns gradients into steps.

    Attributes:
        optimizer: ``"adamw"``, ``"sgd"`` (Nesterov momentum), ``"muon"`` (PyTorch's Muon for weight matrices, and AdamW
            for everything else, which includes embeddings and a last layer that the model names)
            or ``"timm"`` (timm's ``create_optimizer_v2``, with its rules for weight decay).
        timm_optimizer: name of an optimizer of timm, such as ``"adamw"`` or ``"lamb"``; only for ``optimizer="timm"``.
        lr: highest learning rate.
        betas: betas of AdamW, also beside Muon, and of timm's optimizers; None for the optimizer's own.
        eps: eps of the same optimizers; None for the optimizer's own.
        momentum: momentum of SGD, Muon and timm's optimizers; None for 0.9, 0.95 and timm's own.
        weight_decay: weight decay of matrices.  Vectors (biases, norms) do not decay, nor does what a model names in
            its ``no_weight_decay``, or its task in `Task.no_weight_decay`.
        decays: ``"matrices"`` is what ``weight_decay`` describes; with ``"all"``, vectors and what a model names decay
            too: everything but what the task names.
        clip: largest global norm of the gradient; None does not clip.
    """

    optimizer: Literal["adamw", "sgd", "muon", "timm"] = added("adamw")
    timm_optimizer: str = added("")
    lr: float = 1e-3
    betas: tuple[float, float] | None = added(None)
    eps: float | None = added(None)
    momentum: float | None = added(None)
    weight_decay: float = 0.05
    decays: Literal["matrices", "all"] = added("matrices")
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        check_choices(self)
        _positive(self, "lr", "clip", "eps")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")
        for name in ("momentum", "betas"):
            given = getattr(self, name)
            for number in (given,) if isinstance(given, int | float) else given or ():
                if not 0 <= number < 1:
                    raise ValueError(f"{name} must be in [0, 1), got {given}")
        unused = {"adamw": ("momentum",), "sgd": ("betas", "eps"), "muon": (), "timm": ()}[self.optimizer]
        for name in unused:
            if getattr(self, name) is not None:
                raise ValueError(f"{name}={getattr(self, name)} is set, but optimizer={self.optimizer!r} has none")
        if bool(self.timm_optimizer) != (self.optimizer == "timm"):
            raise ValueError(
                "timm_optimizer goes with optimizer='timm' and names one of timm's, such as 'lamb'; got "
                f"optimizer={self.optimizer!r} and timm_optimizer={self.timm_optimizer!r}"
            )


@dataclass(frozen=True)
class Schedule:
    """How the learning rate changes over a run.

    Attributes:
        schedule: ``"cosine"`` (linear warm-up, then half a cosine down to ``final_lr``), ``"one_cycle"`` (PyTorch's
            OneCycleLR, linear, which also cycles Adam's first beta between 0.95 and 0.85), ``"triangle"`` (linear
            warm-up, then linear decay to ``final_lr``), ``"milestones"`` (linear warm-up, then multiplied by ``gamma``
            at every milestone) or ``"constant"``, which has no warm-up.
        warmup: share of the run in which the learning rate rises.
        warmup_steps: length of the warm-up in optimizer steps, instead of ``warmup``.  If a time budget may end the
            run, they count as a share of the steps that the run would have without that budget; if that number is not
            known, this is an error.
        warmup_from: learning rate at which the warm-up starts; None starts one step's rise above 0.
        final_lr: learning rate at the end of ``"cosine"`` and ``"triangle"``, as a share of ``lr``.
        milestones: for ``"milestones"``: where they are, as shares of the run, in ascending order.
        gamma: for ``"milestones"``: factor on the learning rate at each of them.
        schedule_per: whether the learning rate changes with every ``"step"``, or only from one ``"epoch"`` to the next.
        cosine_from: whether the half cosine begins when the ``"warmup"`` ends, or with the ``"run"``, so that the
            warm-up ends a little below the peak, as in timm without ``warmup_prefix``.
        schedule_lag: for ``"cosine"``: number of steps (or epochs) by which the learning rate lags behind.  The
            training loops of DeiT, XCiT and Swin tell timm's scheduler the number of the epoch or step that has just
            ended, instead of the next one: a lag of 1.  DaViT's loop tells it, at the beginning of a step, how far the
            run will be at the end of that step: -1.
        cooldown: for ``"cosine"``: share of the run, at its end, that stays at ``final_lr``, as in timm's own loop.
    """

    schedule: Literal["cosine", "one_cycle", "triangle", "milestones", "constant"] = "cosine"
    warmup: float = 0.1
    warmup_steps: int | None = added(None)
    warmup_from: float | None = added(None)
    final_lr: float = 0.01
    milestones: tuple[float, ...] = added(())
    gamma: float = added(0.1)
    schedule_per: Literal["step", "epoch"] = added("step")
    cosine_from: Literal["warmup", "run"] = added("warmup")
    schedule_lag: int = added(0)
    cooldown: float = added(0.0)

    def __post_init__(self) -> None:
        check_choices(self)
        _positive(self, "warmup_from", "gamma")
        for name, usual in (("cosine_from", "warmup"), ("schedule_lag", 0), ("cooldown", 0)):
            if self.schedule != "cosine" and getattr(self, name) != usual:
                raise ValueError(f"{name}={getattr(self, name)!r} goes with schedule='cosine', not {self.schedule!r}")
        if self.schedule_lag < -1:
            raise ValueError(f"schedule_lag must be -1 or more, got {self.schedule_lag}")
        if not 0 <= self.cooldown <= 1 - self.warmup:
            raise ValueError(
                f"cooldown must be between 0 and what warmup={self.warmup} leaves of the run, got {self.cooldown}"
            )
        if not (0 <= self.final_lr <= 1 and 0 <= self.warmup < 1):
            raise ValueError(f"final_lr must be in [0, 1] and warmup in [0, 1), got {self.final_lr} and {self.warmup}")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must not be negative, got {self.warmup_steps}")
        if self.schedule == "one_cycle" and (self.warmup_steps == 0 or (self.warmup_steps is None and not self.warmup)):
            raise ValueError("schedule='one_cycle' needs a warmup above 0")
        if self.schedule in ("one_cycle", "constant") and self.warmup_from is not None:
            raise ValueError(f"warmup_from={self.warmup_from} is set, but schedule={self.schedule!r} has none")
        if (self.schedule == "milestones") != bool(self.milestones):
            raise ValueError(
                "milestones go with schedule='milestones', which needs at least one; got "
                f"schedule={self.schedule!r} and milestones={self.milestones}"
            )
        shares = (0.0, *self.milestones, 1.0)
        if any(not a < b for a, b in itertools.pairwise(shares)):
            raise ValueError(f"milestones must be shares of the run between 0 and 1, ascending, got {self.milestones}")
        if self.schedule_per == "epoch" and self.warmup_steps is not None:
            raise ValueError("warmup_steps counts steps, and schedule_per='epoch' moves by epochs: give warmup instead")


@dataclass(frozen=True)
class Budget:
    """How long a run is: it ends, with its learning rate fully decayed, when the first of these limits is reached.

    Attributes:
        epochs: passes over the training set; samples that do not fill a batch are left out.
        max_steps: at most this many optimizer steps of a full batch.
        tokens: at most this many tokens (for a task that does not count tokens: samples), rounded up to a whole step.
        seconds: at most this many seconds of training, without evaluations; such a run is not reproducible bit for bit.
    """

    epochs: int = 30
    max_steps: int | None = added(None)
    tokens: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        _at_least_one(self, "epochs", "max_steps")
        _positive(self, "tokens", "seconds")


@dataclass(frozen=True)
class Batch:
    """Which samples make up an optimizer step.

    Attributes:
        batch_size: samples per optimizer step, over all processes and micro-batches.
        accumulation: micro-batches per optimizer step; it must divide ``batch_size``.
        ramp: share of the run in which the batch grows linearly from one micro-batch to ``batch_size``.
        order: order of the samples: ``"shuffled"`` (anew in every epoch), ``"repeated"`` (each sample ``repeats`` times
            in an epoch, each time with its own augmentation, while an epoch has as many samples as
            without), ``"stored"`` (the order of the data set) or ``"streamed"`` (an iterable data set).
        repeats: for ``"repeated"``: how often each sample comes.
    """

    batch_size: int = 64
    accumulation: int = 1
    ramp: float = added(0.0)
    order: Order = added("shuffled")
    repeats: int = added(3)

    def __post_init__(self) -> None:
        check_choices(self)
        _at_least_one(self, "batch_size", "accumulation", "repeats")
        if self.batch_size % self.accumulation:
            raise ValueError(f"accumulation={self.accumulation} must divide batch_size={self.batch_size}")
        if not 0 <= self.ramp <= 1:
            raise ValueError(f"ramp must be in [0, 1], got {self.ramp}")
        if self.ramp and self.accumulation == 1:
            raise ValueError(f"ramp={self.ramp} needs accumulation above 1: a batch grows by micro-batches")

    @property
    def micro_batch(self) -> int:
        """Samples that go through the model at a time."""
        return self.batch_size // self.accumulation

    def micro_batches(self, progress: float) -> int:
        """How many micro-batches the next optimizer step takes, after this share of the run."""
        if progress >= self.ramp:
            return self.accumulation
        return max(1, math.ceil(self.accumulation * progress / self.ramp))


@dataclass(frozen=True)
class Evaluation:
    """When a run is evaluated, and which of its weights are tested.

    Attributes:
        evaluate_every: epochs between evaluations, or a fraction of one; the end is always evaluated.  They are counted
            in optimizer steps, as many per epoch as it has full batches: with ``ramp``, whose first batches are
            smaller, evaluations come sooner.
        evaluate_steps: optimizer steps between evaluations, instead of ``evaluate_every``.
        evaluate_first: whether to evaluate before the first step too.
        evaluate_batches: evaluate on this many batches of the evaluation set, always the same ones; None for all.
        select: the weights that a run ends with, and with which a task's test set is evaluated, once at the
            end: ``"last"``, or ``"best"``, those of the best evaluation.
        monitor_every: epochs between measurements of the condition numbers (at evaluations), 0 for none; counted like
            those of ``evaluate_every``.
        monitor_precision: precision that the model computes in while it is measured: ``"float32"``; or ``"float64"``,
            which measures a copy of it and can distinguish condition numbers beyond the resolution of float32.
    """

    evaluate_every: float = 1
    evaluate_steps: int | None = added(None)
    evaluate_first: bool = added(False)
    evaluate_batches: int | None = added(None)
    select: Literal["last", "best"] = added("last")
    monitor_every: float = 1
    monitor_precision: Literal["float32", "float64"] = added("float32")

    def __post_init__(self) -> None:
        check_choices(self)
        _positive(self, "evaluate_every")
        _at_least_one(self, "evaluate_steps", "evaluate_batches")
        if not self.monitor_every >= 0:
            raise ValueError(f"monitor_every must not be negative, got {self.monitor_every}")


@dataclass(frozen=True)
class Training(Evaluation, Batch, Budget, Schedule, Optimization):
    """How a model is trained, whatever the task: everything that determines a run's numbers, and nothing else.

    It has the settings of the five parts that it is derived from, and these.

    Attributes:
        precision: mixed precision: ``"no"``, ``"bf16"`` or ``"fp16"``, which needs a GPU.
        ema: decay of an exponential moving average of the weights, which is then evaluated in place of the weights;
            None for none.
        ema_beside: decay of an average that is kept beside the weights and changes nothing in the run, as in published
            recipes: the weights are evaluated, and their average too, with the same scores under names that begin
            with ``ema_``.  It is computed as in timm: it begins with the initial weights, buffers such as the
            statistics of batch norms are averaged, and integers are copied.  It takes a copy of the weights, and
            evaluations take twice the time.
        compile: whether the model is compiled by torch.compile; the monitor measures the model as it is written.
        start_from: folder of a run, or of an exported one, whose weights this run starts with; ``{variant}``
            and ``{seed}`` in it stand for this run's own, so that each variant continues from its own training.  The
            folder must not be removed before this run has ended.
    """

    precision: Precision = "no"
    ema: float | None = None
    ema_beside: float | None = added(None)
    compile: bool = added(False)
    start_from: str | None = added(None)

    def __post_init__(self) -> None:
        for part in (Optimization, Schedule, Budget, Batch, Evaluation):
            part.__post_init__(self)
        for name in ("ema", "ema_beside"):
            decay = getattr(self, name)
            if decay is not None and not 0 < decay < 1:
                raise ValueError(f"{name} must be between 0 and 1, or None, got {decay}")
        if self.ema is not None and self.ema_beside is not None:
            raise ValueError(
                f"ema={self.ema} is evaluated instead of the weights, ema_beside={self.ema_beside} beside them: set one"
            )
        if self.warmup_from is not None and self.warmup_from > self.lr:
            raise ValueError(f"warmup_from={self.warmup_from} must be at most the highest rate, lr={self.lr}")
        if self.seconds is not None and self.schedule_per == "epoch":
            raise ValueError(
                f"seconds={self.seconds} may end a run within an epoch, where a rate that moves by "
                "schedule_per='epoch' has not come down: give schedule_per='step'"
            )
        if self.order == "streamed" and self.max_steps is None and self.tokens is None and self.seconds is None:
            raise ValueError("order='streamed' may have no end: give a budget of max_steps, tokens or seconds")

    @property
    def averages(self) -> bool:
        """Whether there is a moving average of the weights."""
        return self.ema is not None or self.ema_beside is not None

    def steps_of_epochs(self, epochs: float, samples: int | None) -> int:
        """Optimizer steps of a full batch in this many epochs over ``samples`` samples; at least 1.

        Raises:
            ValueError: there are fewer samples than a batch has; or None, for a stream that does not know its length.
        """
        if samples is None:
            raise ValueError("the training set has no length, and so no epochs: give evaluate_steps")
        if samples < self.batch_size:
            raise ValueError(f"batch_size={self.batch_size} leaves no batch of {samples} samples")
        return max(1, round(epochs * (samples // self.batch_size)))

    def full_steps(self, samples: int | None, tokens_per_sample: int = 1) -> int:
        """Length of the whole run in full-batch steps, which budgets count; with a time budget, its upper limit."""
        steps = sys.maxsize if samples is None else self.steps_of_epochs(self.epochs, samples)
        if self.max_steps is not None:
            steps = min(steps, self.max_steps)
        if self.tokens is not None:
            steps = min(steps, math.ceil(self.tokens / (self.batch_size * tokens_per_sample)))
        return steps

    def steps(self, samples: int | None, tokens_per_sample: int = 1) -> int:
        """Optimizer steps of the whole run: more than `full_steps` where batches grow."""
        full = self.full_steps(samples, tokens_per_sample)
        if not self.ramp or full == sys.maxsize:
            return full
        taken, steps = 0, 0
        while taken < full * self.accumulation:
            taken += self.micro_batches(taken / (full * self.accumulation))
            steps += 1
        return steps

    def evaluations(self, samples: int | None, tokens_per_sample: int = 1) -> int | None:
        """How many rows a run yields; None if a time budget decides."""
        if self.seconds is not None:
            return None
        every = self.evaluate_steps or self.steps_of_epochs(self.evaluate_every, samples)
        return -(-self.steps(samples, tokens_per_sample) // every) + self.evaluate_first


def _at_least_one(settings: Any, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _positive(settings: Any, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
