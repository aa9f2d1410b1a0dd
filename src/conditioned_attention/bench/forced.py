"""Converted models with one implementation of attention instead of the one that ``"auto"`` picks, for a benchmark."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from importlib import import_module
from typing import Any
from unittest import mock

from conditioned_attention import functional


def forced(impl: str) -> AbstractContextManager[Any]:
    """While it lasts ``"auto"`` prefers this implementation on every device; where it cannot run, as ever composed."""
    rules = tuple(functional._Rule(device, 0, impl, "a benchmark asked for it") for device in ("cpu", "cuda"))
    return mock.patch.object(functional, "_AUTO", rules)


def check_runs(impl: str, step: Callable[[], object]) -> None:
    """Raises ValueError unless all attention of ours in a step, which is run once, is this implementation's."""
    with ExitStack() as stack:
        modules = {
            name: import_module(f"conditioned_attention.attention.{name}") for name in functional.IMPLEMENTATIONS
        }
        spies = {
            name: stack.enter_context(mock.patch.object(module, "attend", wraps=module.attend))
            for name, module in modules.items()
        }
        step()
    ran = [name for name, spy in spies.items() if spy.called]
    if ran != [impl]:
        raise ValueError(f"implementation {impl!r} cannot run in this model; its attention ran {ran or 'elsewhere'}")
