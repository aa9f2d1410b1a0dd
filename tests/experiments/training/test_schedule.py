"""The learning rate of timm's scheduler, as the published loops step it."""

import dataclasses

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from conditioned_attention.experiments.training.schedule import build_schedule
from conditioned_attention.experiments.training.settings import Training

COSINE = Training(lr=1e-3, warmup=5 / 30, warmup_from=1e-6, final_lr=0.01, epochs=30)


def rates(settings, ticks):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=settings.lr)
    schedule = build_schedule(optimizer, settings, ticks)
    found = []
    for _ in range(ticks):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def of_timm(ticks, lag, warmup, **options):
    """``lag``: 1 where a loop tells the scheduler what has ended, 0 where it tells what comes."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = CosineLRScheduler(optimizer, lr_min=1e-5, warmup_t=warmup, warmup_lr_init=1e-6, **options)
    found = []
    for tick in range(ticks):
        found.append(optimizer.param_groups[0]["lr"])
        scheduler.step(tick + 1 - lag)
    return found


@pytest.mark.parametrize("lag", [0, 1])
def test_without_a_prefix_the_cosine_begins_with_the_run(lag):
    settings = dataclasses.replace(COSINE, cosine_from="run", schedule_lag=lag, schedule_per="epoch")
    assert rates(settings, 30) == pytest.approx(of_timm(30, lag, 5, t_initial=30))


def test_with_a_prefix_it_begins_behind_the_warm_up():
    late = dataclasses.replace(COSINE, schedule_lag=1)
    for settings, lag in ((late, 1), (COSINE, 0)):
        assert rates(settings, 300) == pytest.approx(of_timm(300, lag, 50, t_initial=250, warmup_prefix=True))


def test_cooldown_stays_at_the_end():
    settings = dataclasses.replace(COSINE, cooldown=50 / 350, warmup=50 / 350)
    assert rates(settings, 350) == pytest.approx(of_timm(350, 0, 50, t_initial=250, warmup_prefix=True))


def test_they_go_with_the_cosine():
    for name, value in (("cosine_from", "run"), ("schedule_lag", 1), ("cooldown", 0.1)):
        with pytest.raises(ValueError, match=f"{name}=.* goes with schedule='cosine', not 'triangle'"):
            Training(schedule="triangle", **{name: value})
    with pytest.raises(ValueError, match="schedule_lag must be -1 or more, got -2"):
        Training(schedule_lag=-2)
    with pytest.raises(ValueError, match=r"cooldown must be between 0 and what warmup=0\.1 leaves"):
        Training(cooldown=0.95)


def test_one_cycle_of_a_single_step_up_is_refused():
    """PyTorch divides by zero there."""
    with pytest.raises(ValueError, match="cannot warm up in exactly one of 4 steps: use at least two"):
        rates(Training(schedule="one_cycle", warmup_steps=1), 4)


def test_one_cycle_that_never_comes_down_is_refused():
    with pytest.raises(ValueError, match="warmup_steps=5 are more than the run has, 4"):
        rates(Training(schedule="one_cycle", warmup_steps=5), 4)
