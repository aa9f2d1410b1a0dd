"""How a run is carried out: on how many processes, watched by whom.  None of it sets the run's numbers."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from conditioned_attention._warnings import warn
from conditioned_attention.choices import check_choices
from conditioned_attention.environment import world_size

if TYPE_CHECKING:
    from accelerate import Accelerator

Parallel = Literal["auto", "none", "ddp", "fsdp2"]
_FP16 = "precision='fp16' needs a GPU; on a CPU 'no' and 'bf16' are valid"
_HINTS = {
    "fsdp2": "FSDP2 needs several processes: 'torchrun --nproc-per-node N' with --parallel fsdp2",
    "ddp": "start it with 'torchrun --nproc-per-node N' (accelerate launch --cpu starts one process only)",
}


@dataclass(frozen=True)
class Launch:
    """How a run is carried out.

    Attributes:
        parallel: ``"auto"`` takes whatever torchrun or accelerate launch has started; ``"none"``, ``"ddp"``
            and ``"fsdp2"`` raise an error if that is something else.
        recompute: keep only what is between the blocks of the model for the backward pass, and compute what is inside
            them again (activation checkpointing): about a third more time for much less memory, and the same numbers.
        trackers: where to show the numbers besides the run's folder: any
            of ``"tensorboard"``, ``"wandb"``, ``"mlflow"`` and ``"trackio"``.
        name: name of the run in trackers, before its variant and seed; default the recipe's, or the task's class.
        loader_workers: processes that prepare batches; 0 for none.
        log_every: optimizer steps between lines of the training log.
        checkpoint_seconds: a checkpoint is written at the first optimizer step after this many seconds, or after fifty
            times as long as the last one took to write, if that is longer; 0 writes one after every step.
        max_kappa: the monitor warns when a head's κ is above this; None for no bound.
        max_scale: the monitor warns when the largest factor that C puts on a row is above this; None for no bound.
    """

    parallel: Parallel = "auto"
    recompute: bool = False
    trackers: tuple[str, ...] = ()
    name: str | None = None
    loader_workers: int = 0
    log_every: int = 10
    checkpoint_seconds: float = 20.0
    max_kappa: float | None = None
    max_scale: float | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        if self.log_every < 1:
            raise ValueError(f"log_every must be at least 1, got {self.log_every}")
        for name in ("loader_workers", "checkpoint_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    def check(self, precision: str) -> None:
        """Checks that this machine has what is asked for, before any data are read.

        Raises:
            RuntimeError: ``parallel`` asks for several processes, and no launcher has started this one.
            ValueError: fp16 without a GPU.
        """
        import torch

        there = torch.accelerator.is_available()
        if precision == "fp16" and not there:
            raise ValueError(_FP16)
        if self.parallel in ("ddp", "fsdp2") and world_size() == 1:
            kind = f"{world_size()} process(es) on {torch.accelerator.current_accelerator() if there else 'cpu'}"
            raise RuntimeError(f"parallel={self.parallel!r} was asked for, but this is {kind}; {_HINTS[self.parallel]}")

    def accelerator(self, precision: str, accumulation: int, *, cpu: bool = False) -> Accelerator:
        """The Accelerator that the run trains with; with ``cpu`` on the CPU, whatever other devices there are.

        Raises:
            RuntimeError: the processes that were started are not what ``parallel`` asks for.
            ValueError: fp16 without a GPU.
        """
        import torch
        from accelerate import Accelerator, DataLoaderConfiguration
        from accelerate.state import AcceleratorState, GradientState, PartialState
        from accelerate.utils import DistributedType, GradientAccumulationPlugin

        _tell_of_environment()
        # One process may train several runs, and Accelerate keeps its settings in singletons and in the environment.
        AcceleratorState._reset_state()
        GradientState._reset_state()
        global _requested_here
        if _requested_here:
            os.environ.pop(_FSDP, None)
            if PartialState().device.type == "cpu" and PartialState().use_distributed:
                PartialState().distributed_type = DistributedType.MULTI_CPU
        # Accelerate writes a plugin's wish into the environment, where it reads like the launcher's.
        _requested_here = self.parallel == "fsdp2" and _FSDP not in os.environ
        plugin = _plugin(precision) if self.parallel == "fsdp2" else None
        accelerator = Accelerator(
            # torchrun on a machine without a GPU: without this word every process would train a run of its own
            cpu=cpu or (world_size() > 1 and not torch.accelerator.is_available()),
            mixed_precision=precision,
            # batches that grow may end an epoch in the middle of a step, which then goes on with the next
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=accumulation, sync_with_dataloader=False),
            # batch_size is that of all processes together, and schedules count optimizer steps
            dataloader_config=DataLoaderConfiguration(split_batches=True),
            fsdp_plugin=plugin,
        )
        if plugin is not None and accelerator.distributed_type == DistributedType.MULTI_CPU:
            # there Accelerate forgets the plugin without a word, though nothing that it does needs a GPU
            accelerator.state.fsdp_plugin = plugin
            for state in (accelerator.state, PartialState()):
                state.distributed_type = DistributedType.FSDP
        if precision == "fp16" and accelerator.device.type == "cpu":
            raise ValueError(_FP16)
        self._check(accelerator)
        return accelerator

    def _check(self, accelerator: Accelerator) -> None:
        got, found = kind(accelerator), f"{accelerator.num_processes} process(es) on {accelerator.device.type}"
        if accelerator.num_processes != world_size():
            raise RuntimeError(f"{world_size()} processes were launched, but Accelerate made {found} of them")
        # of ``accelerate launch --use_fsdp``, which Accelerate quietly forgets on a CPU
        by_launcher = os.environ.get(_FSDP, "false").lower() in ("true", "1")
        wanted = "fsdp2" if self.parallel == "auto" and by_launcher else self.parallel
        if wanted == got or (wanted == "auto" and got in ("none", "ddp")):
            return
        hint = _HINTS.get(wanted, "ddp, fsdp2 and a single process are supported")
        raise RuntimeError(f"parallel={wanted!r} was asked for, but this is {got!r}, {found}; {hint}")


def _plugin(precision: str) -> Any:
    """FSDP2 by blocks, which `shard_by_blocks` names; half precision without rounding what is summed up."""
    import torch
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import MixedPrecisionPolicy

    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    policy = None if half is None else MixedPrecisionPolicy(half, reduce_dtype=torch.float32)
    return FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", mixed_precision_policy=policy
    )


# Of `accelerate launch`: what they say there, a run says by its own settings, or does not know.
_NEUTRAL = {"", "0", "1", "no", "false", "none", "default"}
_told: set[str] = set()


def _tell_of_environment() -> None:
    """Warns, once, of variables that steer Accelerate and that no launcher of several processes has set."""
    found = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith("ACCELERATE_") and value.lower() not in _NEUTRAL and name not in _told
    }
    if world_size() > 1 or not found or _requested_here:
        return
    _told.update(found)
    shown = ", ".join(f"{name}={value}" for name, value in found.items())
    warn(
        f"the environment has {shown}, from 'accelerate launch' or elsewhere: Accelerate may use it, and the run's "
        "settings do not record it; unset it unless you want it"
    )


def kind(accelerator: Accelerator) -> str:
    """``"none"``, ``"ddp"``, ``"fsdp2"``, or Accelerate's name of something else."""
    from accelerate.utils import DistributedType

    if accelerator.distributed_type == DistributedType.FSDP:
        return "fsdp2" if accelerator.is_fsdp2 else "fsdp1"
    if accelerator.num_processes == 1:
        return "none"
    name = str(accelerator.distributed_type.value)
    return "ddp" if name.startswith("MULTI_") else name


def agree(accelerator: Accelerator, value: float) -> float:
    """The largest value of all processes."""
    if accelerator.num_processes == 1:
        return value
    import torch

    return float(accelerator.gather(torch.tensor([value], dtype=torch.float64, device=accelerator.device)).max())


def leave() -> None:
    """Ends what connects this process to the others; the last thing that a launched process does.

    Threads of a process group that still run while Python shuts down can abort the process, and a run that has
    ended well would be reported as failed.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return
    gc.collect()  # DistributedDataParallel holds its group, and a training loop's objects hold one another
    dist.destroy_process_group()
    gc.collect()


_FSDP = "ACCELERATE_USE_FSDP"
_requested_here = False
