"""A patch vision transformer with a class token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from conditioned_attention.choices import Choices
from conditioned_attention.environment import needs


@dataclass(frozen=True)
class VisionTransformer(Choices):
    """A patch vision transformer with a class token.

    Attributes:
        library: whose implementation: Hugging Face's or timm's; the network is the same.
        patch_size: side of a patch in pixels.
        hidden_size: width of the tokens.
        layers: number of blocks.
        heads: attention heads a block; they must divide the width.
        mlp_ratio: width of the feed-forward layer over the width of the tokens.
    """

    library: Literal["transformers", "timm"] = "transformers"
    patch_size: int = 2
    hidden_size: int = 64
    layers: int = 6
    heads: int = 8
    mlp_ratio: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = (self.patch_size, self.hidden_size, self.layers, self.heads, self.mlp_ratio)
        if min(sizes) < 1:
            raise ValueError(f"patch_size, hidden_size, layers, heads and mlp_ratio must be at least 1, got {sizes}")
        if self.hidden_size % self.heads:
            raise ValueError(f"heads={self.heads} must divide hidden_size={self.hidden_size}")

    def build(self, image_size: int, channels: int, classes: int) -> nn.Module:
        """The model with fresh weights; it maps images (B, C, H, W) to logits (B, classes)."""
        if image_size % self.patch_size:
            raise ValueError(f"patch_size={self.patch_size} must divide the image side {image_size}")
        build = self._timm if self.library == "timm" else self._hf
        return build(image_size, channels, classes)

    def _hf(self, image_size: int, channels: int, classes: int) -> nn.Module:
        with needs("transformers"):
            from transformers import ViTConfig, ViTForImageClassification

        return ViTForImageClassification(
            ViTConfig(  # type: ignore[call-arg]
                image_size=image_size,
                patch_size=self.patch_size,
                num_channels=channels,
                num_labels=classes,
                hidden_size=self.hidden_size,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                intermediate_size=self.hidden_size * self.mlp_ratio,
            )
        )

    def _timm(self, image_size: int, channels: int, classes: int) -> nn.Module:
        with needs("timm"):
            from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer

        model: nn.Module = TimmVisionTransformer(
            img_size=image_size,
            patch_size=self.patch_size,
            in_chans=channels,
            num_classes=classes,
            embed_dim=self.hidden_size,
            depth=self.layers,
            num_heads=self.heads,
            mlp_ratio=self.mlp_ratio,
        )
        return model
