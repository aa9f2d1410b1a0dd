"""Counts what one micro-batch takes, forward and backward, without memory or arithmetic, for models of any size.

The model is built on the ``meta`` device; then its tensors and those of the batch are replaced by fake tensors, which
have no data but know their shape, dtype and storage, and otherwise pretend to be on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import BaseTorchFunctionMode, TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.experiments.training.blocks import required_blocks
from conditioned_attention.experiments.training.optimizer import build_optimizer, state_bytes
from conditioned_attention.experiments.training.settings import Precision, Training
from conditioned_attention.experiments.training.step import components
from conditioned_attention.experiments.variants.variant import Variant
from conditioned_attention.profiling.memory import held_bytes

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepCount:
    """The size of a model, and what one micro-batch of it takes.

    Attributes:
        parameters, trainable: how many numbers; shared ones count once.
        forward_flops, backward_flops: FLOPs of matrix products, convolutions and attention; a multiplication and an
            addition count as two.
        operations: operations of forward and backward that compute something; views are not counted.
        weight_bytes: bytes of parameters and buffers.
        trainable_bytes: bytes of the parameters that have gradients.
        saved_bytes: bytes of parameters and of those buffers that a state_dict holds.
        activation_bytes: bytes of the distinct storages that the loss holds for backward, without the weights, but
            under autocast with the copies of the weights that it casts.  With recomputation: what is held between the
            blocks, plus what the largest block holds itself.
        optimizer_bytes: bytes that the optimizer holds after its first step.
        recomputed_flops: forward FLOPs that backward computes again; ``backward_flops`` does not include them.
    """

    parameters: int
    trainable: int
    forward_flops: int
    backward_flops: int
    operations: int
    weight_bytes: int
    trainable_bytes: int
    saved_bytes: int
    activation_bytes: int
    optimizer_bytes: int
    recomputed_flops: int = 0


def count_step(
    task: Task,
    variant: Variant,
    batch: Any,
    settings: Training | None = None,
    *,
    gpu: bool = True,
    recompute: bool = False,
) -> StepCount:
    """Counts one micro-batch of a task without running it.

    FLOPs are those of the model and leave out what a kernel computes a second time in backward: the backward of
    attention counts twice the forward (a flash kernel computes 2.5 times the forward).  Causal attention counts in
    full, as is usual.

    Args:
        task: the task that gives the model and the loss.
        variant: what the model is converted to.
        batch: a real micro-batch of the task; its values are not read.
        settings: give the optimizer, whose state is counted, and the precision of autocast; the weights stay as the
            task makes them.
        gpu: count memory as a GPU holds it, where fused attention has dropout and autocast keeps norms and softmax in
            float32; False: as a CPU does.
        recompute: see `Launch`.

    Raises:
        ValueError: the model cannot be built without data, or its loss depends on values in the data, as with indexing
            by a mask.
    """
    from accelerate.utils import recursively_apply

    settings = settings or Training()
    model = _without_data(task, variant)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        _make_fake(model)
        batch = recursively_apply(mode.from_tensor, batch)
        _autocast_forward(model, settings.precision)
        model.train()
        try:
            # a function mode in both cases, so that attention implementations that check for one choose the same way
            with _LikeGPU() if gpu else BaseTorchFunctionMode():
                weights = [*model.parameters(), *model.buffers()]
                work = _count_work(task, model, batch)
                again = _Recomputation(model, weights) if recompute else None
                held = held_bytes(lambda: components(task.loss(model, batch))["loss"], weights)
            optimizer = build_optimizer(model, settings, task.no_weight_decay())
            optimizer.step()
        except (RuntimeError, NotImplementedError) as error:  # those of fake tensors are among them
            raise ValueError(
                f"a step of {type(task).__name__} cannot be estimated without running it, most often because what it "
                f"computes depends on values in the data: {type(error).__name__}: {error}"
            ) from error
        trainable = [p for p in model.parameters() if p.requires_grad]
        parameters, numbers = (sum(p.numel() for p in some) for some in (model.parameters(), trainable))
        sizes = _bytes(weights), _bytes(trainable), _bytes(model.state_dict(keep_vars=True).values())
        held, more = (held, 0) if again is None else (held + again.largest, again.flops)
        return StepCount(parameters, numbers, *work, *sizes, held, state_bytes(optimizer), more)


def _bytes(tensors: Any) -> int:
    different = {id(tensor): tensor for tensor in tensors if isinstance(tensor, Tensor)}
    return sum(tensor.numel() * tensor.element_size() for tensor in different.values())


def _without_data(task: Task, variant: Variant) -> nn.Module:
    try:
        with torch.random.fork_rng([]), torch.device("meta"):
            model = task.build_model()
    except (NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"the model of {type(task).__name__} cannot be built without data (on PyTorch's meta device), which an "
            f"estimate needs: {error}"
        ) from error
    variant.leaving(task.left_alone).apply_structure(model)
    return model


def _make_fake(model: nn.Module) -> None:
    """Replaces every tensor of a model by a fake one on the CPU; shared ones stay shared."""
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            empty = torch.empty_like(tensor, device="cpu")
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
        return made[id(tensor)]

    # kept to the end, since Python reuses the id of a tensor that is gone
    before = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        places: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, module.__dict__)
        for tensors in places:
            for name, tensor in tensors.items():
                if isinstance(tensor, Tensor):
                    tensors[name] = fake(tensor)
    del before


def _autocast_forward(model: nn.Module, precision: Precision) -> None:
    """Does to a model what Accelerate does: runs its forward under autocast (here a CPU's), with float32 outputs."""
    if precision == "no":
        return
    from accelerate.utils import convert_outputs_to_fp32

    model.forward = convert_outputs_to_fp32(torch.autocast("cpu", _DTYPES[precision])(model.forward))


class _LikeGPU(TorchFunctionMode):
    """Makes a CPU hold what a GPU would hold, in the cases where they differ.

    PyTorch's fused attention for CPUs, which stands in for that of a GPU here, has no dropout; dropout is set to 0,
    since otherwise the attention weights of all pairs of tokens would be held.  And autocast on a GPU keeps more
    operations in float32.
    """

    # the position of dropout_p; the second function calls the first, but a mode does not see calls made inside it
    _FUSED: ClassVar = {F.scaled_dot_product_attention: 4, F.multi_head_attention_forward: 10}
    _FLOAT32 = frozenset(
        (F.layer_norm, F.group_norm, F.softmax, F.log_softmax, torch.layer_norm, torch.group_norm, torch.softmax,
         torch.log_softmax, Tensor.softmax, Tensor.log_softmax)
    )  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in self._FUSED and not kwargs.get("need_weights"):
            args = tuple(0.0 if i == self._FUSED[func] else value for i, value in enumerate(args))
            kwargs = {name: 0.0 if name == "dropout_p" else value for name, value in kwargs.items()}
        elif func in self._FLOAT32 and torch.is_autocast_enabled("cpu"):
            args = tuple(_float32(value) for value in args)
            kwargs = {name: _float32(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _float32(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value


def _count_work(task: Task, model: nn.Module, batch: Any) -> tuple[int, int, int]:
    """Returns the FLOPs of the forward, the FLOPs of the backward, and the number of operations in both."""
    operations = _Operations()
    with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter, operations:
        loss = components(task.loss(model, batch))["loss"]
        forward = counter.get_total_flops()
        loss.backward()
    return forward, counter.get_total_flops() - forward, operations.count


class _Recomputation:
    """Makes backward compute every block of a model again, and counts what that takes while a forward runs.

    Attributes:
        largest: bytes held for its own backward by the block that holds most.
        flops: FLOPs of the forward of all blocks.
    """

    def __init__(self, model: nn.Module, weights: Sequence[Tensor]) -> None:
        self.weights, self.largest, self.flops = weights, 0, 0
        for block in required_blocks(model).values():
            block.forward = partial(self._forward, block.forward)

    def _forward(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
            held = held_bytes(lambda: forward(*args, **kwargs), [*self.weights, *inputs])
        self.largest, self.flops = max(self.largest, held), self.flops + counter.get_total_flops()
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


class _Operations(TorchDispatchMode):
    """Counts operations that compute something; views are not counted."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [result.alias_info for result in func._schema.returns if "Tensor" in str(result.type)]
        views = [alias for alias in tensors if alias is not None and not alias.is_write]
        self.count += bool(tensors) and not views
        return func(*args, **(kwargs or {}))


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward_flops(upstream: Any, *arguments: Any, **named: Any) -> int:
    return 2 * _attention_flops(*arguments, **named)


def _convolution_backward_flops(upstream: Any, data: Any, weight: Any, *arguments: Any, **_: Any) -> int:
    """Counts as many FLOPs as in the forward for each gradient that is computed, of data and of weight."""
    *_bias_to_dilation, transposed, _output_padding, _groups, output_mask = arguments
    outputs = data[2:] if transposed else upstream[2:]
    return int(2 * data[0] * prod(outputs) * prod(weight) * sum(output_mask[:2]))


# PyTorch's own table lacks fused attention on a CPU, and counts grouped convolutions as full ones in backward.
_FORMULAS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    torch.ops.aten.convolution_backward: _convolution_backward_flops,
}
