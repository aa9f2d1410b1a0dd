"""What each rank of a distributed test runs: ``torchrun … -m tests.experiments.ranks FOLDER WHAT``."""

import dataclasses
import os
import signal
import sys
from pathlib import Path

import torch

import tests.conftest  # noqa: F401 - torchvision
from conditioned_attention.experiments.launch import Launch
from conditioned_attention.experiments.training import Training, train
from conditioned_attention.experiments.variants import VARIANTS
from tests.experiments.tiny import OFTEN, ShakenDigits, TinyDigits

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


class AskedToStop(ShakenDigits):
    """Rank 1 alone is sent a SIGTERM."""

    batches = 0

    def loss(self, model, batch):
        self.batches += model.training
        if self.batches == 5 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return super().loss(model, batch)


TASKS = {"quiet": Quiet, "shaken": ShakenDigits, "dying": DyingRank, "stopped": AskedToStop}


def run(folder, what, **launch):
    torch.set_num_threads(1)
    task = TASKS[what]()
    launch = dataclasses.replace(OFTEN, **launch)
    return list(train(task, SETTINGS, VARIANTS["preconditioned"], 0, Path(folder), launch))


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], parallel=sys.argv[3] if len(sys.argv) > 3 else Launch().parallel)
