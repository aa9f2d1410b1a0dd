"""Post-norm blocks, with layer norms after the residual sums, made from the parts of any library's block."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class PostNormBlock(nn.Module):
    """``x = norm1(x + attention(x))``, then ``x = norm2(x + mlp(x))``: the block of Vaswani et al. (2017).

    Args:
        attention: maps tokens (B, N, C) to tokens, or to a tuple that begins with them.
        norm1, mlp, norm2: map tokens to tokens.
    """

    def __init__(self, attention: nn.Module, norm1: nn.Module, mlp: nn.Module, norm2: nn.Module) -> None:
        super().__init__()
        self.attention, self.norm1, self.mlp, self.norm2 = attention, norm1, mlp, norm2

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Maps tokens (B, N, C) to tokens; further arguments are passed to the attention."""
        heads = self.attention(x, *args, **kwargs)
        x = self.norm1(x + (heads[0] if isinstance(heads, tuple) else heads))
        y: Tensor = self.norm2(x + self.mlp(x))
        return y
