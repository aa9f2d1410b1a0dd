"""The model of the Nyströmformer's authors for the Long Range Arena, with Nyström or with softmax attention."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from conditioned_attention.experiments.models.built import remembered
from conditioned_attention.experiments.models.lra_attention import (
    NystromAttention,
    SequenceAttention,
    SoftmaxAttention,
)
from conditioned_attention.experiments.models.nystrom import InverseStart
from conditioned_attention.experiments.models.start import USUAL_STD, Start


@dataclass(frozen=True)
class LRAEncoder(Start):
    """A small pre-norm encoder of at most ``length`` token ids, with a classifier on the mean of its tokens.

    The defaults are the model that Xiong et al. 2021 (arXiv 2102.03902, mlpen/Nystromformer) use for every task of the
    Long Range Arena: 209,942 parameters for ListOps.

    Attributes:
        length: largest number of tokens that it sees; with Nyström attention a multiple of ``landmarks``.
        hidden_size: width of the tokens.
        mlp_size: width inside the feed-forward layers, and inside the classifier.
        layers: number of blocks.
        heads: attention heads per block; they must divide the width.
        dropout: dropout of embeddings, of the output of attention, and twice in the feed-forward layers.
        attention: ``"nystrom"``, or ``"softmax"``, the baseline of the same size, which has no convolution.
        attention_dropout: dropout of the attention weights; for ``"softmax"`` alone, since Nyström attention never
            builds them.
        landmarks: number of landmarks of Nyström attention; with as many as tokens it is softmax attention.
        convolution: kernel size of the convolution beside Nyström attention, odd; 0 for none.
        inverse_start: what Aᵀ is divided by where the iteration towards the inverse of A, the attention between
            landmarks, starts.  It is the largest sum of a column in the batch, ``"batch_columns"``; times the largest
            sum of a row, ``"batch_columns_and_rows"``, as before 2021-02-28, which is the same but for rounding; or
            each head's own, ``"head_columns"``, with which an example does not depend on the others in its batch.
        inverse_steps: number of steps of that iteration.
        pooling: ``"length"`` divides the sum of the tokens by the length with padding, as the authors' code does, so
            that features of short texts are small; ``"tokens"`` divides it by the number of tokens.
        id_0: what id 0 is: ``"padding"``, as in the authors' code, even in images, where this hides all black pixels;
            or a ``"token"`` like any other.
        init: as in `Start`; ``"library"`` is what the authors have: PyTorch's own initialisation of layers, and
            embeddings from a normal distribution with standard deviation 0.02.
    """

    length: int = 2048
    hidden_size: int = 64
    mlp_size: int = 128
    layers: int = 2
    heads: int = 2
    dropout: float = 0.1
    attention: Literal["nystrom", "softmax"] = "nystrom"
    attention_dropout: float = 0.1
    landmarks: int = 64
    convolution: int = 35
    inverse_start: InverseStart = "batch_columns"
    inverse_steps: int = 6
    pooling: Literal["length", "tokens"] = "length"
    id_0: Literal["padding", "token"] = "padding"
    _: KW_ONLY
    init: float | Literal["library", "width"] = "library"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("length", "hidden_size", "mlp_size", "layers", "heads", "landmarks", "inverse_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.hidden_size % self.heads:
            raise ValueError(f"heads={self.heads} must divide hidden_size={self.hidden_size}")
        if self.convolution < 0 or (self.convolution and self.convolution % 2 == 0):
            raise ValueError(f"convolution must be odd, or 0 for none, got {self.convolution}")
        if self.attention == "nystrom" and self.length % self.landmarks:
            raise ValueError(f"landmarks={self.landmarks} must divide length={self.length}")

    @remembered
    def build(self, vocabulary: int, classes: int, *, pairs: bool = False) -> nn.Module:
        """The model with fresh weights; it maps ids (B, N), int64, to logits (B, classes).

        With ``pairs`` it maps two tensors of ids, of one text each, to logits: both go through the same encoder.
        """
        head = PairClassifier if pairs else SequenceClassifier
        return self.first_weights(
            lambda: head(Encoder(self, vocabulary), self.hidden_size, self.mlp_size, classes),
            width=self.hidden_size,
            layers=self.layers,
        )

    def new_attention(self) -> SequenceAttention:
        """The attention of one block, with fresh weights."""
        if self.attention == "softmax":
            return SoftmaxAttention(self.hidden_size, self.heads, self.attention_dropout)
        inverse = self.inverse_start, self.inverse_steps
        return NystromAttention(self.hidden_size, self.heads, self.landmarks, self.convolution, *inverse)


class MLP(nn.Module):
    """The feed-forward layer of a block; it maps (B, N, C) to (B, N, C)."""

    def __init__(self, hidden_size: int, mlp_size: int, dropout: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(hidden_size, mlp_size), nn.Linear(mlp_size, hidden_size)
        self.activation, self.dropout = nn.GELU(), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        out: Tensor = self.dropout(self.fc2(self.dropout(self.activation(self.fc1(x)))))
        return out


class Block(nn.Module):
    """A pre-norm block: x + attention(norm(x)), and then the same with the feed-forward layer."""

    def __init__(self, settings: LRAEncoder) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(settings.hidden_size), nn.LayerNorm(settings.hidden_size)
        self.attention = settings.new_attention()
        self.mlp = MLP(settings.hidden_size, settings.mlp_size, settings.dropout)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor, seen: Tensor | None) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        x = x + self.dropout(self.attention(self.norm1(x), seen))
        x = x + self.mlp(self.norm2(x))
        return x


class Encoder(nn.Module):
    """Maps ids (B, N) to the mean of their tokens (B, C).

    Raises:
        ValueError: when called with more than ``length`` tokens.
    """

    def __init__(self, settings: LRAEncoder, vocabulary: int) -> None:
        super().__init__()
        self.settings = settings
        self.tokens = nn.Embedding(vocabulary, settings.hidden_size)
        self.positions = nn.Embedding(settings.length, settings.hidden_size)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=USUAL_STD)
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(settings.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (B, N), int64, to features (B, C)."""
        count = ids.shape[1]
        if count > self.settings.length:
            raise ValueError(f"the model sees {self.settings.length} tokens at most (its length), got {count}")
        seen = ids != 0 if self.settings.id_0 == "padding" else None
        x = self.dropout(self.tokens(ids) + self.positions.weight[:count])
        for block in self.blocks:
            x = block(x, seen)
        x = self.norm(x)
        if seen is not None:
            x = x * seen[..., None]
        total: Tensor = x.sum(1)
        tokens = count if seen is None or self.settings.pooling == "length" else seen.sum(1, keepdim=True).clamp_min(1)
        return total / tokens


class _Classifier(nn.Module):
    """An encoder, and the layers that map its features to logits."""

    def __init__(self, encoder: Encoder, features: int, mlp_size: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = nn.Sequential(nn.Linear(features, mlp_size), nn.ReLU(), nn.Linear(mlp_size, classes))


class SequenceClassifier(_Classifier):
    """Classifies a sequence."""

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (B, N), int64, to logits (B, classes)."""
        logits: Tensor = self.classifier(self.encoder(ids))
        return logits


class PairClassifier(_Classifier):
    """Classifies how two texts belong together, from [x₁, x₂, x₁ · x₂, x₁ - x₂] of their features."""

    def __init__(self, encoder: Encoder, features: int, mlp_size: int, classes: int) -> None:
        super().__init__(encoder, 4 * features, mlp_size, classes)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Ids (B, N) twice, int64, to logits (B, classes)."""
        a, b = self.encoder(first), self.encoder(second)
        logits: Tensor = self.classifier(torch.cat([a, b, a * b, a - b], dim=-1))
        return logits
