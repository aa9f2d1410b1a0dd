"""What the attention modules of a model are called with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from conditioned_attention.measure.probing.probe import call, undisturbed
from conditioned_attention.sites import Site


def attention_inputs(model: nn.Module, probe: Any, sites: Sequence[Site]) -> dict[str, Tensor]:
    """The first tensor of numbers that each of these modules gets in a forward pass, (batch, …), by its name.

    Of a module that is called several times, what it gets last.  The model is left as it was.
    """
    inputs: dict[str, Tensor] = {}
    with ExitStack() as stack:
        stack.enter_context(undisturbed(model))
        for site in sites:
            stack.callback(site.module.register_forward_pre_hook(_noting(site, inputs), with_kwargs=True).remove)
        call(model, probe)
    return inputs


def _noting(site: Site, inputs: dict[str, Tensor]) -> Callable[..., None]:
    def note(attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.is_floating_point())
        if (x := next(tensors, None)) is not None:
            sequence_first = isinstance(attention, nn.MultiheadAttention) and not attention.batch_first
            inputs[site.name] = (x.transpose(0, 1) if sequence_first and x.dim() == 3 else x).detach()

    return note
