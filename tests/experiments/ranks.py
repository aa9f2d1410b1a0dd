"""What each rank of a distributed test runs: ``torchrun … -m tests.experiments.ranks FOLDER WHAT``."""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import tests.plugin  # noqa: F401 - torchvision
from conditioned_attention.experiments.training.launch import leave
from conditioned_attention.experiments.training.loop import train
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from tests.experiments.objects import scenes
from tests.experiments.tiny import OFTEN, ShakenDigits, TinyDigits, six_steps, tiny_lists

# no dropout: each rank would draw masks of its own
SETTINGS = Training(epochs=2, batch_size=30, accumulation=1, evaluate_every=0.5, ema=0.9)


class Quiet(TinyDigits):
    def __init__(self):
        super().__init__(dropout=0.0)


class DyingRank(ShakenDigits):
    """Rank 1 is killed in the middle of the fifth step."""

    batches = 0

    def loss(self, model, batch):
        self.batches += model.training
        if self.batches == 5 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(model, batch)


class Normed(Quiet):
    """With a batch norm, whose statistics are those of each rank's half; keeps those of every average evaluated."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def build_model(self):
        return nn.Sequential(nn.BatchNorm2d(1), super().build_model())

    def evaluator(self):
        scored = super().evaluator()
        take = scored.update

        def update(model, batch, gather):
            if not isinstance(model, DistributedDataParallel):  # which brings them together by itself
                self.seen.append([buffer.tolist() for buffer in model.buffers()])
            take(model, batch, gather)

        scored.update = update
        return scored


class AskedToStop(ShakenDigits):
    """Rank 1 alone is sent a SIGTERM."""

    batches = 0

    def loss(self, model, batch):
        self.batches += model.training
        if self.batches == 5 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return super().loss(model, batch)


def threads():
    """Names of the threads of this process, also of those that are not Python's."""
    return [name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")]


TASKS = {
    "normed": Normed, "quiet": Quiet, "sharded": Quiet, "shaken": ShakenDigits, "dying": DyingRank,
    "stopped": AskedToStop, "scenes": lambda: scenes(Path(os.environ["SCENES"])).task(),
}  # fmt: skip


def lists(folder):
    """ListOps; no dropout, and an inverse that starts from each head's own number: else a batch's halves differ."""
    recipe = tiny_lists(folder.parent / "cache")
    return dataclasses.replace(
        recipe, model=dataclasses.replace(recipe.model, dropout=0.0, inverse_start="head_columns")
    )


def run(folder, what, **launch):
    torch.set_num_threads(1)
    recipe = lists(Path(folder)) if what == "lists" else None
    task = TASKS[what]() if recipe is None else recipe.task()
    launch = dataclasses.replace(OFTEN, **launch)
    settings, variant = SETTINGS, "preconditioned"
    if what == "normed":
        settings = dataclasses.replace(SETTINGS, ema=None, ema_beside=0.9)
    if recipe is not None:
        settings = six_steps(recipe)
    if what == "scenes":
        settings = scenes(Path(os.environ["SCENES"])).training
    if what == "sharded":  # fsdp2 has no moving average
        settings, variant = dataclasses.replace(SETTINGS, ema=None), "preconditioned+spectral"
    rows = list(train(task, settings, VARIANTS[variant], 0, Path(folder), launch))
    if what == "normed":
        (Path(folder) / f"seen-{os.environ['RANK']}.json").write_text(json.dumps(task.seen))
    return rows


def main(folder, what, parallel="auto"):
    run(folder, what, parallel=parallel)
    leave()
    # PyTorch's sharding keeps its process group in caches of its own
    assert what == "sharded" or not any("gloo" in name for name in threads()), threads()


if __name__ == "__main__":
    main(*sys.argv[1:])
