"""One optimizer step, which is the same in training, when it is timed, and when its memory is measured."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.experiments.training.blocks import recompute_blocks
from conditioned_attention.experiments.training.optimizer import build_optimizer, state_bytes
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.variants.variant import Variant

if TYPE_CHECKING:
    from accelerate import Accelerator

Loss = Callable[[nn.Module, Any], Tensor | Mapping[str, Tensor]]


@dataclass
class Step:
    """A model with everything that an optimizer step needs.

    Attributes:
        accelerator: handles the device, the precision and other processes.
        model, optimizer: as Accelerate has prepared them.
        loss: maps a model and a micro-batch to a scalar, or to named scalars that are added up.
        clip, average: largest norm of the gradient, and moving average of the weights; or None.
        after: called with the model, without the wrappers of several processes, when the weights have changed; or None.
    """

    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Loss
    clip: float | None = None
    average: AveragedModel | None = None
    after: Callable[[nn.Module], None] | None = None

    def __call__(
        self, batches: Iterator[Any], count: int, sums: dict[str, Tensor] | None = None
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Takes a step on the next ``count`` micro-batches.

        Args:
            batches: micro-batches, on the accelerator's device.
            count: how many make this step.
            sums: the loss of every micro-batch, and its components if it has any, are added to these.

        Returns:
            The loss of the last micro-batch with its components; and the norm of the gradient before it was clipped,
            None without clipping.
        """
        sums = {} if sums is None else sums
        self.model.train()
        # Accelerate divides the loss by this number, and synchronises processes and steps at the last micro-batch only
        self.accelerator.gradient_accumulation_steps, self.accelerator.step = count, 0
        parts: dict[str, Tensor] = {}
        norm = None
        for batch in itertools.islice(batches, count):
            with self.accelerator.accumulate(self.model):
                parts = components(self.loss(self.model, batch))
                self.accelerator.backward(parts["loss"])
                if self.clip is not None and self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
            parts = {name: part.detach() for name, part in parts.items()}
            for name, part in parts.items():
                sums[name] = sums[name] + part if name in sums else part
        if self.after is not None:
            self.after(self.accelerator.unwrap_model(self.model))
        if self.average is not None:
            self.average.update_parameters(self.accelerator.unwrap_model(self.model))
        return parts, norm

    @property
    def fixed_bytes(self) -> int:
        """Bytes of weights, their average and (after a first step) the optimizer state, of this process alone."""
        models = [self.model, *([] if self.average is None else [self.average])]
        weights = sum(p.numel() * p.element_size() for model in models for p in model.parameters())
        return weights + state_bytes(self.optimizer)


def components(loss: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns ``{"loss": …}``, with each component of it as ``"loss/NAME"`` if the task names them."""
    if isinstance(loss, Tensor):
        return {"loss": loss}
    if not loss:
        raise ValueError("the loss is an empty dictionary; it must be a scalar or have at least one named component")
    return {"loss": torch.stack(list(loss.values())).sum(), **{f"loss/{name}": part for name, part in loss.items()}}


def new_average(model: nn.Module, settings: Training) -> AveragedModel | None:
    """Returns the moving average that the settings ask for, on the CPU like the weights; None if they ask for none."""
    if settings.ema is not None:  # its buffers are copies of the model's
        return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
    if settings.ema_beside is not None:
        average = AveragedModel(model, multi_avg_fn=partial(_average, settings.ema_beside), use_buffers=True)
        average.n_averaged.fill_(1)  # the initial weights count, as in timm; PyTorch would begin with those of step 1
        return average
    return None


def _average(decay: float, averages: list[Tensor], tensors: list[Tensor], count: Tensor | int) -> None:
    """Averages like timm's ModelEmaV3, on tensors of one dtype: PyTorch's own would round averages of integers down."""
    if averages[0].is_floating_point():
        get_ema_multi_avg_fn(decay)(averages, tensors, count)
    else:
        torch._foreach_copy_(averages, tensors)


def step_of_variant(
    task: Task, settings: Training, variant: Variant, accelerator: Accelerator, *, recompute: bool = False
) -> Step:
    """Returns the step of a freshly built model with a variant's structure, to time it or measure its memory."""
    torch.manual_seed(0)
    model, variant = task.build_model(), variant.leaving(task.left_alone)
    variant.apply_structure(model)
    if settings.compile:
        model.compile()
    average = new_average(model, settings)
    if recompute:
        recompute_blocks(model)
    optimizer = build_optimizer(model, settings, task.no_weight_decay())
    model, optimizer = accelerator.prepare(model, optimizer)
    if average is not None:
        average = average.to(accelerator.device)
    return Step(accelerator, model, optimizer, task.loss, settings.clip, average, variant.after_step)
