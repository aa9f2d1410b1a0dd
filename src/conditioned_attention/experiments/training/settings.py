"""How a model is trained: all that sets a run's numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Training:
    """How a model is trained: AdamW, whatever the task.  All that sets a run's numbers, and nothing else.

    The run ends, and the learning rate has come down, when the first of the budgets is used up: ``epochs``, ``tokens``
    or ``seconds``.

    Attributes:
        epochs: passes over the training set; the samples that do not fill an optimizer step are left out.
        tokens: so many tokens (of a task that does not count tokens: samples) at most, rounded up to a whole step.
        seconds: so much time spent training at most, without evaluations; such a run is not reproducible to the bit.
        batch_size: samples an optimizer step, over all processes and micro-batches.
        accumulation: micro-batches an optimizer step; it must divide ``batch_size``.
        lr: highest learning rate.
        schedule: ``"cosine"`` (linear warmup, then half a cosine down to ``final_lr``), ``"one_cycle"`` (PyTorch's
            OneCycleLR, linear, which also cycles Adam's first beta between 0.95 and 0.85) or ``"constant"``.
        warmup: share of the run in which the learning rate rises; not used by ``"constant"``.
        final_lr: learning rate at the end of ``"cosine"``, as a share of ``lr``.
        weight_decay: on matrices; vectors (biases, norms) do not decay.
        clip: largest global norm of the gradient; None does not clip.
        precision: ``"no"``, ``"bf16"`` or ``"fp16"`` (mixed precision; fp16 needs a GPU).
        ema: decay of an exponential moving average of the weights, which is then what is evaluated; None for none.
        evaluate_every: epochs between evaluations, or a part of one; the end is always evaluated.
        monitor_every: epochs between measurements of the condition numbers (at evaluations), 0 for none.
    """

    epochs: int = 30
    tokens: int | None = None
    seconds: float | None = None
    batch_size: int = 64
    accumulation: int = 1
    lr: float = 1e-3
    schedule: Literal["cosine", "one_cycle", "constant"] = "cosine"
    warmup: float = 0.1
    final_lr: float = 0.01
    weight_decay: float = 0.05
    clip: float | None = 1.0
    precision: Literal["no", "bf16", "fp16"] = "no"
    ema: float | None = None
    evaluate_every: float = 1
    monitor_every: float = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("tokens", "seconds", "clip", "evaluate_every", "lr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")
        if self.batch_size % self.accumulation:
            raise ValueError(f"accumulation={self.accumulation} must divide batch_size={self.batch_size}")
        if not (self.weight_decay >= 0 and 0 <= self.final_lr <= 1 and 0 <= self.warmup < 1):
            raise ValueError(
                "weight_decay must not be negative, final_lr in [0, 1] and warmup in [0, 1), got "
                f"{self.weight_decay}, {self.final_lr} and {self.warmup}"
            )
        if self.schedule == "one_cycle" and self.warmup == 0:
            raise ValueError("schedule='one_cycle' needs a warmup above 0")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must be between 0 and 1, or None, got {self.ema}")
        if not self.monitor_every >= 0:
            raise ValueError(f"monitor_every must not be negative, got {self.monitor_every}")

    def steps_of_epochs(self, epochs: float, samples: int) -> int:
        """Optimizer steps in so many epochs over ``samples`` samples; at least 1."""
        if samples < self.batch_size:
            raise ValueError(f"batch_size={self.batch_size} leaves no batch of {samples} samples")
        return max(1, round(epochs * (samples // self.batch_size)))

    def steps(self, samples: int, tokens_per_sample: int = 1) -> int:
        """Optimizer steps of the whole run; with a budget of ``seconds`` the most that there can be."""
        steps = self.steps_of_epochs(self.epochs, samples)
        if self.tokens is not None:
            steps = min(steps, math.ceil(self.tokens / (self.batch_size * tokens_per_sample)))
        return steps

    def evaluations(self, samples: int, tokens_per_sample: int = 1) -> int | None:
        """How many rows a run yields; None if the clock decides."""
        if self.seconds is not None:
            return None
        return -(-self.steps(samples, tokens_per_sample) // self.steps_of_epochs(self.evaluate_every, samples))
