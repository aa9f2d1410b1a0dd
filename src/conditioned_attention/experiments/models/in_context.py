"""GPT-2 on numbers instead of tokens, which learns within a sequence the function that its points are taken from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from conditioned_attention.experiments.models.gpt import GPT


class InContextRegressor(nn.Module):
    """A GPT-2 that reads x₁, y₁, x₂, y₂, …, one token each, and predicts at every x its y.

    As in Garg et al. 2022 (arXiv 2208.01066), a linear layer maps x, and y padded with zeros, to the width of the
    tokens, and another one maps the output at each x to a number.  Both are initialised from a normal distribution with
    the standard deviation of the network in between.

    Args:
        gpt: the network in between; its context must hold two tokens per point.
        dimension: dimension of x.
    """

    def __init__(self, gpt: GPT, dimension: int) -> None:
        super().__init__()
        self.read_in = nn.Linear(dimension, gpt.hidden_size)
        body: Any = gpt.build(1).transformer
        body.wte = nn.Identity()  # no tokens are looked up
        self.body = body
        self.read_out = nn.Linear(gpt.hidden_size, 1)
        for layer in (self.read_in, self.read_out):
            nn.init.normal_(layer.weight, std=gpt.std(gpt.hidden_size))
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Predicts each y (B, k) from x (B, k, d) and y (B, k), of which it sees only the earlier ones."""
        batch, points, dimension = x.shape
        values = torch.cat([y[..., None], y.new_zeros(batch, points, dimension - 1)], dim=-1)
        tokens = torch.stack([x, values], dim=2).flatten(1, 2)
        hidden = self.body(inputs_embeds=self.read_in(tokens), use_cache=False).last_hidden_state
        expected: Tensor = self.read_out(hidden[:, ::2])
        return expected.squeeze(-1)
