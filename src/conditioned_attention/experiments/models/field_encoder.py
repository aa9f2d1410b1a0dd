"""An encoder of functions on a grid, with one token per point and plain softmax attention between them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from conditioned_attention.experiments.models.built import remembered
from conditioned_attention.experiments.models.start import Start

_DIAGONAL, _GAIN = 0.01, 0.01  # of the reference's W_Q, W_K and W_V before training


@dataclass(frozen=True)
class FieldEncoder(Start):
    """A pre-norm encoder with softmax attention from one function on a grid to another: `torch.nn.TransformerEncoder`.

    Each grid point is a token: the value of the function there and the position x in [0, 1) go through a linear layer,
    and another linear layer takes the output of the last block to the value of the other function.  There are no
    position embeddings besides x, so the same weights work on every grid.

    It follows the encoder with softmax of Cao 2021 ("Choose a Transformer: Fourier or Galerkin", arXiv 2105.14995),
    with other heads and another decoder.  There, x is also appended to the queries, keys and values of every head, and
    there is one head, 97 wide where tokens are 96; here, x enters at the first layer alone.  A linear layer takes the
    place of the spectral decoder.

    Attributes:
        hidden_size: width of the tokens.
        layers: number of blocks.
        heads: attention heads per block; they must divide the width.
        mlp_ratio: width of the feed-forward layer over the width of the tokens.
        projections: W_Q, W_K and W_V before training: ``"normal"``, drawn like all other weights;
            or ``"diagonal"``, 0.01 · I plus Xavier's uniform numbers times 0.01, the start that the paper's code
            recommends (its options ``diagonal_weight`` and ``xavier_init``), which leaves nothing for ``qk_scale``
            and ``vo_scale`` to scale.
    """

    hidden_size: int = 64
    layers: int = 4
    heads: int = 4
    mlp_ratio: int = 2
    projections: Literal["normal", "diagonal"] = "normal"

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = (self.hidden_size, self.layers, self.heads, self.mlp_ratio)
        if min(sizes) < 1:
            raise ValueError(f"hidden_size, layers, heads and mlp_ratio must be at least 1, got {sizes}")
        if self.hidden_size % self.heads:
            raise ValueError(f"heads={self.heads} must divide hidden_size={self.hidden_size}")
        if self.projections == "diagonal" and (self.qk_scale, self.vo_scale) != (1.0, 1.0):
            raise ValueError(
                "projections='diagonal' sets W_Q, W_K and W_V itself: qk_scale and vo_scale must be 1, got "
                f"{self.qk_scale} and {self.vo_scale}"
            )

    @remembered
    def build(self) -> nn.Module:
        """The model with fresh weights; it maps functions (B, n) to functions (B, n)."""
        sizes = self.hidden_size, self.layers, self.heads, self.hidden_size * self.mlp_ratio
        model = self.first_weights(partial(FunctionEncoder, *sizes), width=self.hidden_size, layers=self.layers)
        if self.projections == "diagonal":
            for module in model.modules():
                if isinstance(module, nn.MultiheadAttention):
                    _start_diagonal(module.in_proj_weight)
        return model


class FunctionEncoder(nn.Module):
    """The network that `FieldEncoder` describes."""

    def __init__(self, hidden_size: int, layers: int, heads: int, mlp_size: int) -> None:
        super().__init__()
        block = nn.TransformerEncoderLayer(
            hidden_size, heads, mlp_size, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.read_in = nn.Linear(2, hidden_size)
        self.encoder = nn.TransformerEncoder(block, layers, nn.LayerNorm(hidden_size), enable_nested_tensor=False)
        self.read_out = nn.Linear(hidden_size, 1)

    def forward(self, values: Tensor) -> Tensor:
        """Maps functions (B, n) to functions (B, n)."""
        count = values.shape[1]
        places = torch.arange(count, dtype=values.dtype, device=values.device) / count
        tokens = self.read_in(torch.stack([values, places.expand_as(values)], dim=-1))
        out: Tensor = self.read_out(self.encoder(tokens))
        return out.squeeze(-1)


@torch.no_grad()
def _start_diagonal(projections: Tensor) -> None:
    """Initialises W_Q, W_K and W_V (3D, D), one below the other, in place."""
    width = projections.shape[1]
    for matrix in projections.split(width):
        nn.init.xavier_uniform_(matrix, gain=_GAIN)
        matrix += _DIAGONAL * torch.eye(width, device=matrix.device)
