"""The vision transformers of the papers' tables, scaled down to images of about 28 pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn

from conditioned_attention.choices import Choices
from conditioned_attention.environment import needs
from conditioned_attention.experiments.models.built import remembered
from conditioned_attention.experiments.models.start import USUAL_STD, USUAL_WIDTH

Family = Literal["vit", "vit_wide_heads", "swin", "xcit", "davit"]


@dataclass(frozen=True)
class SmallFamily(Choices):
    """A family of vision transformers, built from timm's own classes, for images of 28, 32 or 64 pixels.

    At 28 pixels, ``"vit"`` has 50 tokens and heads of width 16, more tokens than features as in a ViT-B,
    and ``"vit_wide_heads"`` has 17 tokens and heads of width 32, fewer tokens than features.  ``"swin"``
    and ``"davit"`` have two stages, the first with 14 × 14 tokens of half the width, the second with 7 × 7, both in
    windows of 7 × 7.  ``"xcit"`` attends over channels, 16 in a head, each a row of 49 tokens, and ends with two layers
    of class attention.  At 32 and 64 pixels there are 8 × 8 tokens in place of 7 × 7.  timm supports only patches of 8
    and 16 pixels in XCiT, and of 4 in DaViT: for others, a convolution of the stem has another stride here.

    Attributes:
        family: which family.
        width: width of the tokens, in the last stage if there are two.
        depth: number of attention layers over all stages, without class attention; it must be even if there are two
            stages, and a multiple of four in DaViT, whose layers come in pairs, one over positions and one over
            channels.
        drop_path: probability of leaving out a residual branch in training; timm lets it grow linearly over the depth
            up to this value, and in XCiT it is the same everywhere.
        init: standard deviation of the initial weights that timm draws with 0.02 at any width (linear layers,
            positions, and XCiT's class token).  ``"width"`` is 0.02 · √(768 / width), as in `Start`, with the width of
            the layer's own tokens; ``"library"`` leaves them.  Convolutions keep PyTorch's own initialisation, which
            depends on the number of their inputs.

    >>> model = SmallFamily("swin").build(image_size=28, channels=1, classes=10)
    >>> model(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    family: Family
    width: int = 64
    depth: int = 4
    drop_path: float = 0.0
    init: float | Literal["library", "width"] = "width"

    def __post_init__(self) -> None:
        super().__post_init__()
        heads, layers = self._head_width * (2 if self._staged else 1), 4 if self.family == "davit" else 1 + self._staged
        if self.width < 1 or self.width % heads or self.depth < 1 or self.depth % layers:
            raise ValueError(
                f"{self.family} takes a width that is a multiple of {heads} and a depth that is one of {layers}, got "
                f"width={self.width} and depth={self.depth}"
            )
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must be in [0, 1), got {self.drop_path}")
        if not isinstance(self.init, str) and not 0 < self.init < math.inf:
            raise ValueError(f"init must be positive and finite, got {self.init}")

    @property
    def _staged(self) -> bool:
        return self.family in ("swin", "davit")

    @property
    def _head_width(self) -> int:
        return 32 if self.family == "vit_wide_heads" else 16

    @remembered
    def build(self, image_size: int, channels: int, classes: int) -> nn.Module:
        """The model with fresh weights; it maps images (B, C, H, W) to logits (B, classes).

        Raises:
            ValueError: the side is not 28, 32 or 64 pixels.
        """
        if image_size not in (28, 32, 64):
            raise ValueError(f"a small family takes images of 28, 32 or 64 pixels, got {image_size}")
        common: dict[str, Any] = {"in_chans": channels, "num_classes": classes, "drop_path_rate": self.drop_path}
        with needs("timm"):
            model: nn.Module = getattr(self, f"_{self.family.partition('_')[0]}")(image_size, common)
        if self.init != "library":
            self._scale(model)
        return model

    def _vit(self, side: int, common: dict[str, Any]) -> nn.Module:
        from timm.models.vision_transformer import VisionTransformer

        patch = side // 4 if self.family == "vit_wide_heads" else side // 14 * 2
        heads = self.width // self._head_width
        sizes: dict[str, Any] = {"embed_dim": self.width, "depth": self.depth, "num_heads": heads}
        return VisionTransformer(img_size=side, patch_size=patch, **sizes, **common)

    def _swin(self, side: int, common: dict[str, Any]) -> nn.Module:
        from timm.models.swin_transformer import SwinTransformer

        patch = side // 14
        stages = self._stages(self.depth, side // patch)
        return SwinTransformer(img_size=side, patch_size=patch, embed_dim=self.width // 2, **stages, **common)

    def _davit(self, side: int, common: dict[str, Any]) -> nn.Module:
        from timm.models.davit import DaVit

        patch = side // 14
        widths = (self.width // 2, self.width)
        model: Any = DaVit(embed_dims=widths, **self._stages(self.depth // 2, side // patch), **common)
        model.stem.stride = model.stem.conv.stride = (patch, patch)
        return cast(nn.Module, model)

    def _xcit(self, side: int, common: dict[str, Any]) -> nn.Module:
        from timm.models.xcit import Xcit

        patch = side // 14 * 2
        heads = self.width // self._head_width
        sizes: dict[str, Any] = {"embed_dim": self.width, "depth": self.depth, "num_heads": heads}
        model: Any = Xcit(img_size=side * 8 // patch, patch_size=8, **sizes, **common)
        model.patch_embed.proj[-1][0].stride = (patch // 4, patch // 4)
        return cast(nn.Module, model)

    def _stages(self, depth: int, tokens: int) -> dict[str, Any]:
        """Two stages of the same depth; windows split the tokens of the first in four, and hold all of the second."""
        heads = self.width // self._head_width
        return {"depths": (depth // 2, depth // 2), "num_heads": (heads // 2, heads), "window_size": tokens // 2}

    @torch.no_grad()
    def _scale(self, model: nn.Module) -> None:
        """Scales the weights that timm has drawn with a standard deviation of 0.02."""
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                sides = (module.in_features, module.out_features)
                module.weight.mul_(self._factor(sides[0] if name.startswith("head") else min(sides)))
        for name, parameter in model.named_parameters(recurse=False):
            if name in ("cls_token", "pos_embed"):
                parameter.mul_(self._factor(self.width))

    def _factor(self, width: int) -> float:
        return math.sqrt(USUAL_WIDTH / width) if self.init == "width" else float(self.init) / USUAL_STD
