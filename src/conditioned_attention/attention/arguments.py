"""The arguments of one call, as `functional` hands them to an implementation: checked, and in one form.

Shapes: B batch, H heads (G key heads under grouped queries), N queries, M keys, D head width, E value width.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Arguments(NamedTuple):
    """What ``scaled_dot_product_attention`` takes: (..., H, N, D), (..., G, M, D), (..., G, M, E) and options.

    `functional` has made one mask out of ``attn_mask`` and ``is_causal`` where both were given, so at most one is set.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None
    dropout_p: float
    is_causal: bool
    scale: float | None
    enable_gqa: bool
