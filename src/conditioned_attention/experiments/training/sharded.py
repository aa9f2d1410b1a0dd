"""Checkpoints of runs that shard their model (FSDP2), in the same files as others, so that either can load them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from conditioned_attention.experiments.training.blocks import blocks_of
from conditioned_attention.experiments.training.launch import kind

if TYPE_CHECKING:
    from accelerate import Accelerator

_WEIGHTS, _OPTIMIZER = "model.safetensors", "optimizer.bin"  # Accelerate's names


def shard_by_blocks(accelerator: Accelerator, model: nn.Module) -> None:
    """Tells Accelerate which modules to shard, unless the launcher has; call this before ``Accelerator.prepare``.

    In half precision the model then still returns float32, as under autocast.
    """
    if kind(accelerator) != "fsdp2":
        return
    from accelerate.utils import convert_outputs_to_fp32

    if accelerator.mixed_precision != "no":
        model.forward = convert_outputs_to_fp32(model.forward)
    if not accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap:
        names = sorted({type(block).__name__ for block in blocks_of(model).values()})
        accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = names


def reshard(model: nn.Module) -> None:
    """Puts every weight back into its shards, in float32, since a forward without a backward leaves some whole."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def save_state(accelerator: Accelerator, folder: Path) -> None:
    """Does ``Accelerator.save_state``, but with sharded weights and optimizer state gathered by the main process."""
    if kind(accelerator) != "fsdp2":
        accelerator.save_state(str(folder))
        return
    from accelerate.utils import save
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    with _apart(accelerator) as (model, optimizer):
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights, state = get_state_dict(model, optimizer, options=options)
        accelerator.save_state(str(folder))
    if accelerator.is_main_process:
        save(weights, folder / _WEIGHTS, safe_serialization=True)
        save(_numbered(state), folder / _OPTIMIZER)


def load_state(accelerator: Accelerator, folder: Path) -> None:
    """Does ``Accelerator.load_state`` for what `save_state` wrote, with any number of processes, sharded or not."""
    if kind(accelerator) != "fsdp2":
        accelerator.load_state(str(folder))
        return
    from safetensors.torch import load_file
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    with _apart(accelerator) as (model, optimizer):
        weights: dict[str, Any] = load_file(folder / _WEIGHTS)
        there = model.state_dict()
        same = {id(tensor): name for name, tensor in there.items() if name in weights}
        weights |= {name: weights[same[id(tensor)]] for name, tensor in there.items() if id(tensor) in same}  # tied
        state = _named(torch.load(folder / _OPTIMIZER, weights_only=True, map_location="cpu"), model, optimizer)
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state, options=options)
        accelerator.load_state(str(folder))


@contextmanager
def _apart(accelerator: Accelerator) -> Iterator[tuple[nn.Module, torch.optim.Optimizer]]:
    """Yields the model and its optimizer; meanwhile Accelerate leaves them out of what it saves and loads itself."""
    models, optimizers = accelerator._models, accelerator._optimizers
    accelerator._models, accelerator._optimizers = [], []
    try:
        yield models[0], optimizers[0].optimizer
    finally:
        accelerator._models, accelerator._optimizers = models, optimizers


def _numbered(state: dict[str, Any]) -> dict[str, Any]:
    """Converts an optimizer's state from the names of parameters to the numbers that optimizers use themselves."""
    numbers: dict[str, int] = {}
    for group in state["param_groups"]:
        numbers |= {name: i for i, name in enumerate(group["params"], len(numbers))}
    groups = [{**group, "params": [numbers[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {numbers[name]: found for name, found in state["state"].items()}, "param_groups": groups}


def _named(state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Converts an optimizer's state from the numbers of parameters to their names."""
    of = {id(parameter): name for name, parameter in model.named_parameters()}
    names = [of[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    groups = [{**group, "params": [names[i] for i in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[i]: found for i, found in state["state"].items()}, "param_groups": groups}
