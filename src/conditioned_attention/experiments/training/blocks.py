"""The repeated blocks of a transformer: the units that are sharded, or computed again in backward."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from conditioned_attention.sites import find_sites


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the modules in a list that hold attention, by name; if lists are nested, those of the innermost.

    >>> from torch import nn
    >>> list(blocks_of(nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 2, enable_nested_tensor=False)))
    ['layers.0', 'layers.1']
    """
    found = {}
    for site in find_sites(model):
        name = site.name
        while name:
            above = name.rpartition(".")[0]
            if isinstance(model.get_submodule(above), (nn.ModuleList, nn.Sequential)):
                found[name] = model.get_submodule(name)
                break
            name = above
    return found


def required_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Returns `blocks_of` the model; raises ValueError if there are none."""
    blocks = blocks_of(model)
    if not blocks:
        raise ValueError(
            f"recompute goes block by block, and {type(model).__name__} has no list of blocks with known attention"
        )
    return blocks


def recompute_blocks(model: nn.Module) -> None:
    """Makes backward compute every block again instead of holding its activations; the numbers stay the same.

    Dropout and drop path draw the same masks again.  On a CPU, gradients are bit-identical to those without this,
    except with dropout of attention weights under a causal mask, where sums are rounded in another order.  Caches of
    keys and values, which would be filled twice, are switched off.

    Raises:
        ValueError: the model has no list of blocks with known attention.
    """
    for module in model.modules():
        if getattr(getattr(module, "config", None), "use_cache", False):
            module.config.use_cache = False  # type: ignore[union-attr]
    for block in required_blocks(model).values():
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
