"""What each process of a distributed test of the monitor runs."""

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from conditioned_attention import ConditionMonitor, precondition
from tests.models import build, images
from tests.processes import end, two


def model():
    built = build("timm_vit")
    precondition(built, include="*blocks.1*")
    return built


def one_step(wrapped):
    wrapped(images()).sum().backward()


def ddp(folder):
    wrapped = DistributedDataParallel(model())
    monitor = ConditionMonitor(wrapped, images(), path=folder / "ddp.jsonl")
    monitor.measure(0)
    one_step(wrapped)
    monitor.measure(1)


def ddp_in_the_first_process_only(folder):
    wrapped = DistributedDataParallel(model())
    monitor = ConditionMonitor(wrapped, images(), path=folder / "first.jsonl")
    if dist.get_rank() == 0:
        monitor.measure(0)
    one_step(wrapped)


def fsdp2(folder):
    mesh = init_device_mesh("cpu", (2,))
    sharded = model()
    for block in sharded.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    monitor = ConditionMonitor(sharded, images(), path=folder / "fsdp2.jsonl")
    monitor.measure(0)
    one_step(sharded)
    monitor.measure(1)


def main(folder):
    _, child = two(str(folder / "store"))
    for function in (ddp, ddp_in_the_first_process_only, fsdp2):
        function(folder)
    end(child)
