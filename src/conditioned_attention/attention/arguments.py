"""The arguments of one call, as `functional` hands them to an implementation: checked.

Shapes: B batch, H heads (G key heads under grouped queries), N queries, M keys, D head width, E value width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Arguments(NamedTuple):
    """What ``scaled_dot_product_attention`` takes: (..., H, N, D), (..., G, M, D), (..., G, M, E) and options.

    Mask, flag and window together mean all of them: query n attends to no key m that one of them forbids.  A window
    forbids those with |n - m| not below it.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None
    dropout_p: float
    is_causal: bool
    scale: float | None
    enable_gqa: bool
    window: int | None = None

    def for_pytorch(self) -> Arguments:
        """The same without a window and with no more than one of mask and flag, as PyTorch's operators take them."""
        # PyTorch's own causal attention is NaN where a scale that is not positive turns -inf around.
        merges = self.is_causal and (self.attn_mask is not None or (self.scale is not None and self.scale <= 0))
        if not merges and self.window is None:
            return self
        seen = _seen(self.query, self.key, self.is_causal, self.window)
        mask = self.attn_mask
        if mask is None:
            mask = seen
        else:
            mask = mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, -math.inf)
        return self._replace(attn_mask=mask, is_causal=False, window=None)


def _seen(query: Tensor, key: Tensor, causal: bool, window: int | None) -> Tensor:
    """(N, M), True where a query may attend under the flag and the window; aligned to the upper left."""
    seen = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device)
    if window is not None:
        seen = seen.triu(1 - window)
    if causal:
        return seen.tril()
    return seen if window is None else seen.tril(window - 1)
