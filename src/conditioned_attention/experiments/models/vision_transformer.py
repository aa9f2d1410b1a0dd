"""A patch vision transformer with a class token."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

from torch import nn

from conditioned_attention.environment import needs
from conditioned_attention.experiments.models.built import remembered
from conditioned_attention.experiments.models.post_norm import PostNormBlock
from conditioned_attention.experiments.models.start import Start
from conditioned_attention.storage.settings import added

_NORM_EPS = 1e-6  # timm's; Hugging Face's own is 1e-12


@dataclass(frozen=True)
class VisionTransformer(Start):
    """A patch vision transformer with a class token.

    Attributes:
        library: whose implementation to use: Hugging Face's or timm's.  The network is the same, and so are its initial
            weights from the same seed; but timm exempts the class token and the positions from weight decay, and
            Hugging Face does not.  With ``init="library"`` they start differently (timm: class token 1e-6, patch
            embedding uniform), and the layer norms have an eps of 1e-12 (Hugging Face) and 1e-6 (timm) instead of 1e-6
            in both.
        patch_size: side of a patch in pixels.
        hidden_size: width of the tokens.
        layers: number of blocks.
        heads: attention heads per block; they must divide the width.
        mlp_ratio: width of the feed-forward layer over the width of the tokens.
        pooling: what the classifier reads after the last layer norm: the class ``"token"``, or the ``"mean"`` of all
            patch tokens.  The class token exists and takes part in attention either way.
        norm: where the layer norms are: ``"pre"``, before attention and MLP, with one more before the classifier, as in
            ViTs; or ``"post"``, after the residual sums, as in the first transformer, without the one before the
            classifier.
    """

    library: Literal["transformers", "timm"] = "transformers"
    patch_size: int = 2
    hidden_size: int = 64
    layers: int = 6
    heads: int = 8
    mlp_ratio: int = 4
    pooling: Literal["token", "mean"] = added("token")
    norm: Literal["pre", "post"] = added("pre")

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = (self.patch_size, self.hidden_size, self.layers, self.heads, self.mlp_ratio)
        if min(sizes) < 1:
            raise ValueError(f"patch_size, hidden_size, layers, heads and mlp_ratio must be at least 1, got {sizes}")
        if self.hidden_size % self.heads:
            raise ValueError(f"heads={self.heads} must divide hidden_size={self.hidden_size}")

    @remembered
    def build(self, image_size: int, channels: int, classes: int) -> nn.Module:
        """The model with fresh weights; it maps images (B, C, H, W) to logits (B, classes)."""
        if image_size % self.patch_size:
            raise ValueError(f"patch_size={self.patch_size} must divide the image side {image_size}")
        build = partial(self._timm if self.library == "timm" else self._hf, image_size, channels, classes)
        return self.first_weights(build, width=self.hidden_size, layers=self.layers)

    def _hf(self, image_size: int, channels: int, classes: int) -> nn.Module:
        with needs("transformers"):
            from transformers import ViTConfig, ViTForImageClassification

            from conditioned_attention.experiments.models.mean_pooled import MeanPooledViT

        eps = ViTConfig.layer_norm_eps if self.init == "library" else _NORM_EPS
        model: Any = (MeanPooledViT if self.pooling == "mean" else ViTForImageClassification)(
            ViTConfig(  # type: ignore[call-arg]
                image_size=image_size,
                patch_size=self.patch_size,
                num_channels=channels,
                num_labels=classes,
                hidden_size=self.hidden_size,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                intermediate_size=self.hidden_size * self.mlp_ratio,
                layer_norm_eps=eps,
            )
        )
        if self.norm == "post":
            vit = model.vit
            blocks = (PostNormBlock(b.attention, b.layernorm_before, b.mlp, b.layernorm_after) for b in vit.layers)
            vit.layers, vit.layernorm = nn.ModuleList(blocks), nn.Identity()
        return cast(nn.Module, model)

    def _timm(self, image_size: int, channels: int, classes: int) -> nn.Module:
        with needs("timm"):
            from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer

        model: Any = TimmVisionTransformer(
            img_size=image_size,
            patch_size=self.patch_size,
            in_chans=channels,
            num_classes=classes,
            embed_dim=self.hidden_size,
            depth=self.layers,
            num_heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            global_pool="avg" if self.pooling == "mean" else "token",
            fc_norm=False,  # the last norm before the mean, as behind a class token
        )
        if self.norm == "post":
            model.blocks = nn.Sequential(*(PostNormBlock(b.attn, b.norm1, b.mlp, b.norm2) for b in model.blocks))
            model.norm = nn.Identity()
        return cast(nn.Module, model)
