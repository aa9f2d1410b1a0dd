"""The blocks that a transformer repeats: what is sharded at a time, and computed again in backward."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from conditioned_attention.sites import find_sites


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """The modules in a list that hold attention, by name: of lists in lists the innermost.

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
    """`blocks_of`; raises ValueError if there are none."""
    blocks = blocks_of(model)
    if not blocks:
        raise ValueError(
            f"recompute goes block by block, and {type(model).__name__} has no list of blocks with known attention"
        )
    return blocks


def recompute_blocks(model: nn.Module) -> None:
    """Lets backward compute every block again instead of holding what is in it; the numbers stay the same.

    Dropout and drop path draw the same masks again.  Gradients are those of before to the bit on a CPU, but for dropout
    of attention weights behind a causal mask, where sums are rounded in another order.  Caches of keys and values,
    which would be filled twice, are switched off.

    Raises:
        ValueError: there are no blocks in which attention is known.
    """
    for module in model.modules():
        if getattr(getattr(module, "config", None), "use_cache", False):
            module.config.use_cache = False  # type: ignore[union-attr]
    for block in required_blocks(model).values():
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
