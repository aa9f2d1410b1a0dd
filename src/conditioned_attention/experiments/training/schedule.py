"""How the learning rate moves."""

from __future__ import annotations

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, OneCycleLR, SequentialLR

from conditioned_attention.experiments.training.settings import Training


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
