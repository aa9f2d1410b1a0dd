"""Makes ``config.output_attentions = True`` work for a converted model, by asking for the attentions at each call.

transformers checks, when a config is saved and when it is loaded, that such a config names ``eager`` and nothing else;
one that is converted, or was saved converted, names ``conditioned_eager``.  So the flag is taken out of the config for
that time, and a hook before the model's forward passes it on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from conditioned_attention.sites.site import HOOK_KEY

_FLAG = "_output_attentions"  # where a config keeps it

# What is in the config and in config.json instead, so that a checkpoint gets the flag back.
HELD = "conditioned_output_attentions"


def hold(config: Any, parents: Sequence[nn.Module]) -> None:
    """Takes the flag from a config, and has the outermost model that reads the config pass it on."""
    readers = [part for part in parents if getattr(part, "config", None) is config]
    models = [part for part in readers if hasattr(part, "get_correct_attn_implementation")]
    if models and getattr(config, _FLAG, None):
        setattr(config, _FLAG, False)
        setattr(config, HELD, True)
        models[0]._forward_pre_hooks[HOOK_KEY] = _ask
        models[0]._forward_pre_hooks_with_kwargs[HOOK_KEY] = True


def give_back(config: Any, parents: Sequence[nn.Module] = ()) -> None:
    """Puts the flag back into a config that names eager again."""
    if vars(config).pop(HELD, False):
        setattr(config, _FLAG, True)
    for part in parents:
        if getattr(part, "config", None) is config and part._forward_pre_hooks.get(HOOK_KEY) is _ask:
            del part._forward_pre_hooks[HOOK_KEY], part._forward_pre_hooks_with_kwargs[HOOK_KEY]


def _ask(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    if kwargs.get("output_attentions") is not None or not getattr(model.config, HELD, False):
        return None
    return args, {**kwargs, "output_attentions": True}
