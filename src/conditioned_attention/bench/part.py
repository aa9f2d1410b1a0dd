"""A part of a case: some heads of some batches, which are compared with float64 if all of them would not fit.

Attention in float64 needs several tensors of N × M numbers per head; for 16 thousand tokens one of them is 2 GiB.

Shapes: B batch, H heads (G key heads under grouped queries), N queries, M keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from conditioned_attention.bench.cases import Inputs

# Bytes of one such tensor.  The cases for a CPU stay below it, and are compared whole.
BUDGET = 2**30


@dataclass(frozen=True)
class Part:
    """Some batches, and some key heads with all query heads that share them.

    Attributes:
        batches, key_heads: their positions.
        groups: G, the number of all key heads.
    """

    batches: list[int]
    key_heads: list[int]
    groups: int

    def cut(self, tensor: Tensor) -> Tensor:
        """Cuts the part out of a tensor with B or 1 batches and H, G or 1 heads; what is shared stays whole."""
        batches, heads = tensor.shape[:2]
        if batches > 1:
            tensor = tensor[self.batches]
        if heads > 1:
            tensor = tensor.unflatten(1, (self.groups, -1))[:, self.key_heads].flatten(1, 2)
        return tensor.detach()

    def inputs(self, whole: Inputs) -> Inputs:
        """Copies of the part's inputs; query, key and value require gradients as they did."""
        tensors = (whole.query, whole.key, whole.value)
        query, key, value = (self.cut(tensor).requires_grad_(tensor.requires_grad) for tensor in tensors)
        mask = None if whole.mask is None else self.cut(whole.mask)
        return Inputs(query, key, value, mask, self.cut(whole.upstream))


def part_of(inputs: Inputs, budget: int = BUDGET) -> Part | None:
    """As many batches and heads as have float64 weights of at most ``budget`` bytes together, at least one head.

    None stands for all of them, also if a mask gets a gradient, to which every batch contributes.  The last batch and
    the last head are always included: numbers that overflow do so there first.
    """
    batches, heads, n, _ = inputs.query.shape
    groups, m = inputs.key.shape[1:3]
    affordable = max(1, budget // (8 * n * m * (heads // groups)))
    if batches * groups <= affordable or (inputs.mask is not None and inputs.mask.requires_grad):
        return None
    some_heads = min(groups, affordable)
    return Part(_spread(batches, affordable // some_heads), _spread(groups, some_heads), groups)


def _spread(size: int, count: int) -> list[int]:
    """``count`` positions: the last one, and others evenly over the rest."""
    return torch.linspace(size - 1, 0, min(size, count)).round().int().tolist()
