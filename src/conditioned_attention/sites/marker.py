"""A Hugging Face checkpoint that was trained with conditioned attention says so, and does not run without it.

Its config.json names ``conditioned_attention`` as the attention implementation.  Where this library is not imported
transformers refuses to load it under that name; where it is, the name belongs to a function that says what to do.
Nothing of transformers is imported here: the name is registered when somebody else imports it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NoReturn

from torch import nn

from conditioned_attention._on_import import on_import

MARKER = "conditioned_attention"

# A config's name of the attention function; its public spelling would set those of the sub-configs as well.
NAME = "_attn_implementation_internal"


def not_applied(module: nn.Module, *args: Any, **kwargs: Any) -> NoReturn:
    """The attention function of a checkpoint that was loaded, and nothing more."""
    raise RuntimeError(
        "this checkpoint was trained with conditioned attention, as its config.json says: call "
        "conditioned_attention.apply_conditioning(model) before you run it (or load it with attn_implementation='sdpa' "
        "to run it as a plain model, which computes something else)"
    )


def watch() -> None:
    """Makes the name known to transformers as soon as that is imported."""
    on_import("transformers.modeling_utils", _register)


def _register(modeling_utils: ModuleType) -> None:
    interface = getattr(modeling_utils, "AttentionInterface", None)
    if interface is not None:  # old versions have none; importing this library beside them must not fail
        interface.register(MARKER, not_applied)


@contextmanager
def settled(model: nn.Module) -> Iterator[None]:
    """Gives every part that is still marked the implementation that transformers would choose for it.

    For good, unless the block raises: then the marks are put back.
    """
    marked = [part for part in model.modules() if getattr(getattr(part, "config", None), NAME, None) == MARKER]
    models: list[Any] = [part for part in marked if hasattr(part, "get_correct_attn_implementation")]
    for part in models:
        setattr(part.config, NAME, part.get_correct_attn_implementation(None))
    try:
        yield
    except BaseException:
        for part in models:
            setattr(part.config, NAME, MARKER)
        raise
