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

import tests.conftest  # noqa: F401 - torchvision
from conditioned_attention.experiments.training.launch import leave
from conditioned_attention.experiments.training.loop import train
from conditioned_attention.experiments.training.optimizer import build_optimizer
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from tests.experiments.tiny import OFTEN, ShakenDigits, TinyDigits
from tests.processes import end

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


def sharded(folder):
    """Six optimizer steps under PyTorch's own fully_shard, on half a batch a rank; losses of whole batches."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (2,))

    def prepare(model):
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    def mean(loss):
        dist.all_reduce(loss)
        return loss / 2

    losses = six_steps(prepare, lambda tensor: tensor.chunk(2)[rank], mean)
    if rank == 0:
        (Path(folder) / "losses.json").write_text(json.dumps(losses))
    end()


def six_steps(prepare=lambda model: model, part=lambda tensor: tensor, mean=lambda loss: loss):
    """Losses of a converted model that is trained by hand, on one process or, with these functions, on several."""
    torch.manual_seed(0)
    task = Quiet()
    model = task.build_model()
    VARIANTS["preconditioned"].apply(model)
    model = prepare(model).train()
    optimizer, losses = build_optimizer(model, SETTINGS), []
    for step in range(6):
        batch = task.train_data().__getitems__(range(30 * step, 30 * step + 30))
        loss = task.loss(model, [part(tensor) for tensor in batch])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(mean(loss.detach().clone()).item())
    return losses


def threads():
    """Names of the threads of this process, also of those that are not Python's."""
    return [name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")]


TASKS = {"normed": Normed, "quiet": Quiet, "shaken": ShakenDigits, "dying": DyingRank, "stopped": AskedToStop}


def run(folder, what, **launch):
    torch.set_num_threads(1)
    task = TASKS[what]()
    launch = dataclasses.replace(OFTEN, **launch)
    settings = SETTINGS if what != "normed" else dataclasses.replace(SETTINGS, ema=None, ema_beside=0.9)
    rows = list(train(task, settings, VARIANTS["preconditioned"], 0, Path(folder), launch))
    if what == "normed":
        (Path(folder) / f"seen-{os.environ['RANK']}.json").write_text(json.dumps(task.seen))
    return rows


def main(folder, what, parallel="auto"):
    if what == "sharded":
        torch.set_num_threads(1)
        sharded(folder)
    else:
        run(folder, what, parallel=parallel)
        leave()
        assert not any("gloo" in name for name in threads()), threads()


if __name__ == "__main__":
    main(*sys.argv[1:])
