"""Marks Hugging Face checkpoints that were trained with conditioned attention, so that they do not run without it.

Their config.json names ``conditioned_attention`` as the attention implementation.  If this library is not imported,
transformers refuses to load them under that name; if it is, the name belongs to a function that says what to do.
Nothing of transformers is imported here: the name is registered when other code imports it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any, NoReturn

from torch import nn

from conditioned_attention._on_import import on_import
from conditioned_attention.sites.transformers.attentions import HELD, give_back

MARKER = "conditioned_attention"

# Before the name of the implementation that a conditioned model runs over: conditioned_sdpa.
PREFIX = "conditioned_"

# The attribute of a config that names the attention function; the public one would set those of sub-configs as well.
NAME = "_attn_implementation_internal"


def not_applied(*args: Any, **kwargs: Any) -> NoReturn:
    """The attention and mask function of a checkpoint that was only loaded: raises RuntimeError."""
    raise RuntimeError(
        "this checkpoint was trained with conditioned attention, as its config.json says: call "
        "conditioned_attention.apply_conditioning(model) before you run it (or load it with attn_implementation='sdpa' "
        "or 'eager', to run it as a plain model, which computes something else)"
    )


def watch() -> None:
    """Makes the name known to transformers as soon as that is imported, for attention and for its masks.

    Models with attention of their own ask for masks only, and would silently get none under an unknown name.
    """
    on_import("transformers.modeling_utils", partial(_register, "AttentionInterface"))
    on_import("transformers.masking_utils", partial(_register, "AttentionMaskInterface"))


def _register(name: str, module: ModuleType) -> None:
    interface = getattr(module, name, None)
    if interface is not None:  # old versions have none; importing this library beside them must not fail
        interface.register(MARKER, not_applied)


def is_conditioned(name: str | None) -> bool:
    """Whether an implementation of this name is one that conversion gives to a config."""
    return name is not None and name.startswith(PREFIX) and name != MARKER


def marked(model: nn.Module) -> list[Any]:
    """The parts of the model that were loaded from such a checkpoint, and not conditioned or made plain since."""
    return [part for part in model.modules() if getattr(getattr(part, "config", None), NAME, None) == MARKER]


@contextmanager
def settled(model: nn.Module) -> Iterator[None]:
    """Gives every config that is still marked the implementation that transformers would choose for its model.

    Modules inside of a model may read another config object than the model does (those of an EncoderDecoderModel): each
    gets what the innermost model around it would have.  This stays, unless the block raises, which restores the marks.
    """
    configs = [(config, _chosen(part, config)) for part, config in _marked_configs(model, None) if part is not None]
    before = [dict(vars(config)) for config, _ in configs]
    for config, name in configs:
        setattr(config, NAME, name)
        give_back(config)
    try:
        yield
    except BaseException:
        for (config, _), attributes in zip(configs, before):
            vars(config).update(attributes)
        raise


def _marked_configs(module: Any, around: Any) -> Iterator[tuple[Any, Any]]:
    """Every marked config, with the innermost model whose modules read it; None if there is none."""
    inside = module if hasattr(module, "get_correct_attn_implementation") else around
    if getattr(getattr(module, "config", None), NAME, None) == MARKER:
        yield inside, module.config
    for child in module.children():
        yield from _marked_configs(child, inside)


def _chosen(model: Any, config: Any) -> str:
    """The implementation that transformers chooses for a model of this class; eager, if it shows attention weights."""
    name: str = model.get_correct_attn_implementation("eager" if getattr(config, HELD, False) else None)
    return name
