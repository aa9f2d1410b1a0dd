"""Converted models on two processes.  What went wrong on either goes to a file, as JSON.

Every process has one sequence of a batch of two, and must compute and learn what one process does with both; under
tensor parallelism every process has both, and a part of the heads.
"""

import json

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from conditioned_attention import restore
from tests.conversion.survivors import (
    SURVIVORS,
    assert_close,
    assert_conditioned,
    assert_gradients,
    assert_plain,
    build,
    convert,
    converted,
    gradients,
    inputs,
    output,
    truth,
)
from tests.processes import end, two


def own(batch):
    return batch[dist.get_rank() :][:1] if isinstance(batch, torch.Tensor) else batch


def check(model, name):
    """Output of the own half of the batch, gradients of the whole."""
    expected, expected_gradients, _ = truth(name)
    result = output(model, **{key: own(value) for key, value in inputs(name).items()})
    assert_close(result, own(expected))
    assert_gradients(gradients(model, result), expected_gradients)


def check_plain(model, name):
    assert_close(output(model, **{key: own(value) for key, value in inputs(name).items()}), own(truth(name)[2]))


def shard(model, *parts):
    mesh = init_device_mesh("cpu", (2,))
    for part in parts:
        fully_shard(model.get_submodule(part), mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    return model


def ddp(name):
    check(DistributedDataParallel(converted(name)), name)


def ddp_then_converted(name):
    model = DistributedDataParallel(build(name))
    convert(model, name)
    check(model, name)
    restore(model)
    check_plain(model, name)


def converted_then_sharded(name):
    model = shard(converted(name), *SURVIVORS[name].blocks)
    check(model, name)
    restore(model)
    check_plain(model, name)


def sharded_then_converted(name):
    model = shard(build(name), *SURVIVORS[name].blocks)
    convert(model, name)
    check(model, name)
    restore(model)
    check_plain(model, name)


def _shard_attention(model, name):
    shard(model, SURVIVORS[name].attention)
    assert isinstance(model.get_submodule(SURVIVORS[name].attention), FSDPModule)
    return model


def converted_then_attention_sharded(name):
    check(_shard_attention(converted(name), name), name)


def attention_sharded_then_converted(name):
    model = _shard_attention(build(name), name)
    convert(model, name)
    check(model, name)


def restored_with_attention_sharded(name):
    model = _shard_attention(converted(name), name)
    restore(model)
    check_plain(model, name)


def _split_heads(model, name):
    """Some heads for every process."""
    survivor, mesh = SURVIVORS[name], init_device_mesh("cpu", (2,))
    if len(survivor.qkv) < 3:
        raise ValueError(
            "q, k and v are one weight, which ColwiseParallel would cut between them and not between heads"
        )
    for path in survivor.blocks:
        block = model.get_submodule(path)
        names = [n for n, _ in block.named_modules()]
        plan = {n: ColwiseParallel() for n in names if n.rpartition(".")[2] in survivor.qkv}
        plan |= {n: RowwiseParallel() for n in names if n.endswith(survivor.proj[0])}
        assert len(plan) == 4
        parallelize_module(block, mesh, plan)
    return model


def converted_then_split(name):
    model = _split_heads(converted(name), name)
    assert_conditioned(model, name)
    restore(model)
    assert_plain(model, name)


def split_then_converted(name):
    model = _split_heads(build(name), name)
    convert(model, name)
    assert_conditioned(model, name)
    restore(model)
    assert_plain(model, name)


THINGS = {
    "DistributedDataParallel, of a converted model": ddp,
    "DistributedDataParallel, converted and restored inside": ddp_then_converted,
    "fully_shard on every block, of a converted model; restore": converted_then_sharded,
    "fully_shard on every block, then conversion; restore": sharded_then_converted,
    "fully_shard on the attention module itself, of a converted model": converted_then_attention_sharded,
    "fully_shard on the attention module itself, then conversion": attention_sharded_then_converted,
    "restore with the attention module itself sharded": restored_with_attention_sharded,
    "tensor parallelism (parallelize_module on q, k, v, output) of a converted model; restore": converted_then_split,
    "tensor parallelism, then conversion; restore": split_then_converted,
}


LOADED = "torch.save of the module, torch.load in another process"


def load(file):
    """Checks the models that another process has saved whole."""
    models = torch.load(file, weights_only=False)
    return lambda name: assert_conditioned(models[name], name)


def attempt(function, name):
    try:
        function(name)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def anywhere(function, name):
    """What `attempt` says on any of the processes."""
    errors = [None] * dist.get_world_size()
    dist.all_gather_object(errors, attempt(function, name))
    return "; ".join(error for error in errors if error)


def main(models, result, names):
    rank, child = two(f"{result}.store")
    things = {LOADED: load(models), **THINGS}
    errors = {thing: {name: anywhere(function, name) for name in names} for thing, function in things.items()}
    if rank == 0:
        with open(result, "w") as file:
            json.dump(errors, file)
    end(child)
