"""Learning rate schedules."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
)

from conditioned_attention.experiments.training.settings import Training


def build_schedule(
    optimizer: torch.optim.Optimizer, settings: Training, ticks: int, steps: int | None = None
) -> LRScheduler:
    """Builds the learning rate schedule of a run, which is stepped ``ticks`` times.

    Args:
        optimizer: the optimizer whose learning rates change.
        settings: how they change.
        ticks: how often the schedule is stepped in the whole run: once per optimizer step, per epoch, or per part of a
            budget of time.
        steps: optimizer steps of the whole run, if they are not the ticks; ``warmup_steps`` are converted to a share of
            the run by them.

    Raises:
        ValueError: ``warmup_steps`` for a run whose number of steps depends on time alone.
    """
    warmup = round(settings.warmup * ticks)
    if settings.warmup_steps is not None:
        if steps == sys.maxsize:
            raise ValueError(
                f"warmup_steps={settings.warmup_steps} needs the number of steps, which is unknown where only seconds "
                "limits the run: give warmup, a share, instead, or max_steps or tokens beside seconds"
            )
        warmup = round(settings.warmup_steps * ticks / (steps or ticks))
    if settings.schedule == "one_cycle":
        share = settings.warmup if settings.warmup_steps is None else warmup / ticks
        if share * ticks == 1:  # PyTorch's OneCycleLR divides by the number of warm-up steps minus one
            raise ValueError(f"schedule='one_cycle' cannot warm up in exactly one of {ticks} steps: use at least two")
        if share > 1:
            raise ValueError(
                f"warmup_steps={settings.warmup_steps} are more than the run has, {steps or ticks}, and "
                "schedule='one_cycle' has to come down too"
            )
        return OneCycleLR(optimizer, max_lr=settings.lr, total_steps=ticks, pct_start=share, anneal_strategy="linear")
    if settings.schedule == "constant":
        return LinearLR(optimizer, start_factor=1.0, end_factor=1.0, total_iters=ticks)
    start = 1 / (warmup + 1) if settings.warmup_from is None else settings.warmup_from / settings.lr
    if settings.cosine_from == "run" or settings.schedule_lag or settings.cooldown:
        return LambdaLR(optimizer, _cosine(settings, ticks, warmup, start))
    rest = max(1, ticks - warmup)
    after: LRScheduler
    if settings.schedule == "cosine":
        after = CosineAnnealingLR(optimizer, T_max=rest, eta_min=settings.final_lr * settings.lr)
    elif settings.schedule == "triangle":
        after = LinearLR(optimizer, start_factor=1.0, end_factor=settings.final_lr, total_iters=rest)
    else:
        turns = [round(share * ticks) - warmup for share in settings.milestones]
        if turns[0] <= 0:
            raise ValueError(
                f"milestones={settings.milestones} begin within the warm-up, which is {warmup / ticks:.3g}"
            )
        after = MultiStepLR(optimizer, turns, gamma=settings.gamma)
    if warmup == 0:
        return after
    rise = LinearLR(optimizer, start_factor=start, total_iters=warmup)
    return SequentialLR(optimizer, [rise, after], milestones=[warmup])


def _cosine(settings: Training, ticks: int, warmup: int, start: float) -> Callable[[int], float]:
    """Returns the rate at each tick as a share of the highest rate, as in timm's ``CosineLRScheduler``."""
    begin = warmup if settings.cosine_from == "warmup" else 0
    end = round((1 - settings.cooldown) * ticks)
    low = settings.final_lr

    def share(tick: int) -> float:
        tick = max(0, tick - settings.schedule_lag)
        if tick < warmup:
            return start + (1 - start) * tick / warmup
        way = min(1.0, (tick - begin) / max(1, end - begin))
        return low + (1 - low) * (1 + math.cos(math.pi * way)) / 2

    return share
