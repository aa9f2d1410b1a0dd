"""What decays, and how the learning rate moves."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, OneCycleLR, SequentialLR

from conditioned_attention.experiments.training.settings import Training


def build_optimizer(model: nn.Module, settings: Training) -> torch.optim.Optimizer:
    """AdamW."""
    return torch.optim.AdamW(parameter_groups(model, settings.weight_decay), lr=settings.lr)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; vectors and scalars (biases, norms) do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def build_schedule(optimizer: torch.optim.Optimizer, settings: Training, steps: int) -> LRScheduler:
    """The learning rate over ``steps`` of the schedule."""
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
