"""Compares this library's training loop with a bare PyTorch loop: same model, data, optimizer and schedule."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from conditioned_attention.bench.settings import check_counts
from conditioned_attention.experiments.recipes.small_images import Digits
from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.experiments.training.evaluation import evaluate
from conditioned_attention.experiments.training.loop import train
from conditioned_attention.experiments.training.optimizer import build_optimizer
from conditioned_attention.experiments.training.order import SampleOrder
from conditioned_attention.experiments.training.schedule import build_schedule
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.training.step import components
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from conditioned_attention.profiling.clock import interleave, paired_ratio


def measure_loop(rounds: int = 12, threads: int = 1, epochs: int = 4) -> dict[str, Any]:
    """Times the demo's training (monitor off) in our loop and in a bare one, which take turns.

    Both build the model, train ``epochs`` epochs with clipping and a cosine schedule, and evaluate after each; ours
    also writes its logs, and a checkpoint at the end.

    Returns:
        Medians in seconds, the median ratio of a round with its 20th and 80th percentile, the median ratio of
        processor time (which other users of the machine disturb less), and the largest difference of the two final
        training losses, which must be 0: both loops do the same.
    """
    check_counts(rounds=rounds, threads=threads, epochs=epochs)
    torch.set_num_threads(threads)
    recipe = Digits()
    settings = dataclasses.replace(recipe.training, epochs=epochs, monitor_every=0)
    task = recipe.task()
    loops: list[Callable[[], float]] = [lambda: _bare(task, settings), lambda: _ours(task, settings)]
    cpu_times: list[list[float]] = [[], []]
    losses: list[list[float]] = [[], []]

    def seconds(i: int) -> float:
        began, began_cpu = time.perf_counter(), time.process_time()
        losses[i].append(loops[i]())
        cpu_times[i].append(time.process_time() - began_cpu)
        return time.perf_counter() - began

    bare, ours = interleave([partial(seconds, 0), partial(seconds, 1)], rounds, warmup=1)
    ratio = paired_ratio(ours, bare)
    cpu_ratios = [b / a for a, b in zip(cpu_times[0][1:], cpu_times[1][1:])]
    return {
        "case": "training loop on the demo, monitor off",
        "rounds": rounds,
        "epochs": epochs,
        "threads": threads,
        "bare_seconds": statistics.median(bare),
        "ours_seconds": statistics.median(ours),
        "ratio": ratio.median,
        "ratio_p20": ratio.p20,
        "ratio_p80": ratio.p80,
        "cpu_time_ratio": statistics.median(cpu_ratios),
        "largest_loss_difference": max(abs(a - b) for a, b in zip(*losses)),
    }


def _ours(task: Task, settings: Training) -> float:
    with tempfile.TemporaryDirectory() as folder:
        rows = list(train(task, settings, VARIANTS["baseline"], 0, Path(folder)))
    return float(rows[-1]["train_loss"])


def _bare(task: Task, settings: Training) -> float:
    """The loop one would write by hand; the data order is ours, so that the losses can be compared."""
    torch.manual_seed(0)
    model = task.build_model()
    torch.manual_seed(0)
    samples = len(task.train_data())  # type: ignore[arg-type]
    used = samples // settings.batch_size * settings.batch_size
    keys = SampleOrder("shuffled", samples, 0, used).keys()

    def loader(data: Any, **kwargs: Any) -> Any:
        # a generator of its own, so that dropout draws what it draws in ours
        return DataLoader(data, settings.batch_size, collate_fn=task.collate, generator=torch.Generator(), **kwargs)

    eval_loader = loader(task.eval_data())
    optimizer = build_optimizer(model, settings)
    schedule = build_schedule(optimizer, settings, settings.epochs * (used // settings.batch_size))
    for _ in range(settings.epochs):
        order = [index for _, index in itertools.islice(keys, used)]
        model.train()
        total = torch.zeros(())
        for batch in loader(task.train_data(), sampler=order):
            loss = components(task.loss(model, batch))["loss"]
            loss.backward()
            if settings.clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += loss.detach()
        evaluate(task, model, eval_loader, lambda tensors: tensors, 0)
    return float(total) / (used // settings.batch_size)
