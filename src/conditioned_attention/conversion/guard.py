"""The guard: a buffer that makes a plain state_dict say how it was conditioned.

It holds the record of `conditioning` as bytes.  With it a plain model refuses the checkpoint under ``strict=True`` (an
unexpected key), a conditioned model refuses a plain one, and models that were conditioned differently refuse each
other's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from conditioned_attention.sites.site import HOOK_KEY

GUARD = "conditioned_attention"

_WRAPPERS = ("module", "_orig_mod")  # of DistributedDataParallel and torch.compile


def check_room(model: nn.Module) -> None:
    """Raises ValueError if the model uses the buffer's name for something else."""
    if hasattr(model, GUARD) and not is_guarded(model):
        raise ValueError(f"guard=True needs the name {GUARD!r}, which this {type(model).__name__} has already")


def put_guard(model: nn.Module, record: Mapping[str, Any]) -> None:
    """Adds the buffer, or writes another record into it."""
    tensors = (*model.parameters(), *model.buffers())
    content = torch.frombuffer(bytearray(json.dumps(record, sort_keys=True), "utf-8"), dtype=torch.uint8)
    if not is_guarded(model):
        # Registered, because torch wraps it; then moved to a key of ours: torch counts from 0 in each process anew, and
        # where the model is unpickled the next hook would take this one's place.
        handle = model.register_load_state_dict_pre_hook(_compare)
        hooks = model._load_state_dict_pre_hooks
        hooks[HOOK_KEY] = hooks.pop(handle.id)
    model.register_buffer(GUARD, content.to(tensors[0].device) if tensors else content)


def take_guard(model: nn.Module) -> None:
    """Removes the buffer, if it is there."""
    if is_guarded(model):
        delattr(model, GUARD)
        del model._load_state_dict_pre_hooks[HOOK_KEY]


def is_guarded(module: nn.Module) -> bool:
    """Whether the module has a guard of its own."""
    return GUARD in module._buffers and HOOK_KEY in module._load_state_dict_pre_hooks


def records_in(state_dict: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the guards in a state_dict say, each with the name of the module that it belongs to."""
    for key, value in state_dict.items():
        owner, _, last = key.rpartition(".")
        if last == GUARD and isinstance(value, Tensor) and value.dtype == torch.uint8:
            yield ".".join(part for part in owner.split(".") if part not in _WRAPPERS), _record(value)


def _record(content: Tensor) -> dict[str, Any]:
    return json.loads(bytes(content.cpu().tolist()))


def _compare(
    module: nn.Module, state_dict: Mapping[str, Any], prefix: str, local_metadata: Any, strict: bool,
    missing: list[str], unexpected: list[str], errors: list[str],
) -> None:  # fmt: skip
    """A hook before a guarded module loads a state_dict: an error if that was conditioned otherwise, or not at all."""
    theirs = state_dict.get(prefix + GUARD)
    if theirs is None:
        errors.append(
            "this checkpoint does not say that it was conditioned, and the model that loads it is. If it comes from a "
            "plain model: load it before precondition(model), or restore(model) first"
        )
    elif _record(theirs) != _record(module._buffers[GUARD]):  # type: ignore[arg-type]
        errors.append(
            "this checkpoint was conditioned otherwise than the model that loads it: call restore(model), "
            f"apply_conditioning(model, state_dict), and load it then.  It says {_record(theirs)}"
        )
