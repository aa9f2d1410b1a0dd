"""Mask R-CNN with FPN on XCiT, as in XCiT's repository (its detection configurations are mmdetection's).

Backbone and adapters are those of facebookresearch/xcit, detection/backbone/xcit.py; FPN, heads, matching, sampling
and suppression are torchvision's, with the anchors, the pooling and the losses of mmdetection 2.11 in `region_ops`.
These things differ from there:

- a batch norm has the statistics of its own process; there, they are those of all processes (SyncBN);
- the best anchor of an object is used however little it overlaps; mmdetection requires an overlap of 0.3;
- a proposal with an overlap from 0.5 on learns the object that it overlaps most; in mmdetection, an object's best
  proposal learns that object;
- anchors in the padding of a picture are used;
- FPN and heads are initialised as in torchvision; mmdetection uses Xavier's initialisation;
- in evaluation, sides are rounded down where mmcv rounds, and masks are pasted at whole pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from conditioned_attention.environment import needs
from conditioned_attention.experiments.models.built import remembered
from conditioned_attention.experiments.models.small_family import SmallFamily

STRIDES = (4, 8, 16, 32)
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@dataclass(frozen=True)
class XCiTMaskRCNN:
    """Mask R-CNN on an XCiT.

    Attributes:
        backbone: timm's name of the XCiT.
        small: width and depth of a small XCiT to use instead, with patches of 8 and heads of width 16;
            see `SmallFamily`.
        drop_path: probability of leaving out a residual branch in training, the same in all layers.
        channels: channels of the FPN and of the mask head.
        box_width: width of the box head's two layers.
        mask_layers: number of convolutions of the mask head.
        anchors: number of regions per picture that the proposals are trained on.
        regions: number of regions per picture that the heads are trained on.
        proposals: number of proposals kept per picture, in training and in evaluation.
        test_side: short side that a picture is scaled to in evaluation, in pixels.
        test_longest: limit on its long side, in pixels.
    """

    backbone: str = "xcit_small_12_p16_224"
    small: tuple[int, int] | None = None
    drop_path: float = 0.0
    channels: int = 256
    box_width: int = 1024
    mask_layers: int = 4
    anchors: int = 256
    regions: int = 512
    proposals: int = 1000
    test_side: int = 800
    test_longest: int = 1333

    def __post_init__(self) -> None:
        names = ("channels", "box_width", "mask_layers", "anchors", "regions", "proposals", "test_side", "test_longest")
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must be in [0, 1), got {self.drop_path}")
        if self.small is None and not self.backbone.startswith("xcit_"):
            raise ValueError(f"backbone={self.backbone!r} is no XCiT of timm, such as 'xcit_small_12_p16_224'")

    @remembered
    def build(self, classes: int) -> nn.Module:
        """Returns the model for this many classes.

        The model takes a list of pictures (3, H, W) of numbers from 0 to 1, of any sizes.  In training it also takes
        targets, and returns losses by name.  In evaluation it returns a dictionary for each picture: ``boxes`` (N, 4)
        by their corners, ``labels`` (N,) from 1, ``scores`` (N,) and ``masks`` (N, 1, H, W) from 0 to 1.

        Raises:
            ValueError: timm has no such XCiT.
        """
        with needs("timm", "detection"):
            from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
            from torchvision.models.detection.transform import GeneralizedRCNNTransform
        sizes = {"size_divisible": 32, "_skip_resize": True}  # in training; the transforms have done it
        transform = GeneralizedRCNNTransform(self.test_side, self.test_longest, _MEAN, _STD, **sizes)
        features = Features(self._xcit(), self.channels)
        model: nn.Module = GeneralizedRCNN(features, self._rpn(), self._heads(1 + classes), transform)
        model.__dict__[CLASSIFIER] = "backbone.xcit."
        return model

    def _xcit(self) -> nn.Module:
        if self.small is not None:
            width, depth = self.small
            return SmallFamily("xcit", width, depth, self.drop_path).build(64, 3, 1)  # for 64 pixels: patches of 8
        with needs("timm", "detection"):
            import timm
        if not timm.is_model(self.backbone):
            raise ValueError(f"backbone={self.backbone!r} is unknown to timm; valid are {timm.list_models('xcit_*')}")
        xcit: nn.Module = timm.create_model(self.backbone, drop_path_rate=self.drop_path)
        return xcit

    def _rpn(self) -> nn.Module:
        from conditioned_attention.experiments.models.region_ops import Anchors, ProposalHead, Proposals

        kept = {"training": self.proposals, "testing": self.proposals}
        anchors = Anchors((*STRIDES, 64))
        looked_at = {"training": 2 * self.proposals, "testing": self.proposals}
        return Proposals(anchors, ProposalHead(self.channels, 3), 0.7, 0.3, self.anchors, 0.5, looked_at, kept, 0.7)

    def _heads(self, classes: int) -> nn.Module:
        from torchvision.models.detection.faster_rcnn import TwoMLPHead
        from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

        from conditioned_attention.experiments.models.region_ops import BoxPredictor, RegionHeads, RegionPool

        return RegionHeads(
            RegionPool(7, STRIDES),
            TwoMLPHead(self.channels * 7**2, self.box_width),
            BoxPredictor(self.box_width, classes),
            *(0.5, 0.5, self.regions, 0.25, None),  # overlaps of objects and of background, regions, share of objects
            *(0.05, 0.5, 100),  # least score, largest overlap and largest number of detections
            RegionPool(14, STRIDES),
            MaskRCNNHeads(self.channels, (self.channels,) * self.mask_layers, 1),
            MaskRCNNPredictor(self.channels, self.channels, classes),
        )


CLASSIFIER = "_classifier"  # attribute of a model: the prefix of the weights of the classifier in it


class Features(nn.Module):
    """An XCiT's features at strides of 4, 8, 16 and 32, through an FPN whose fifth level is every second position.

    Features are taken after four blocks, at a third, half, two thirds and the whole of the depth, without the last
    norm; the layers of class attention are dropped.
    """

    def __init__(self, xcit: Any, channels: int) -> None:
        super().__init__()
        from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

        for name, kind in (("cls_attn_blocks", nn.ModuleList), ("norm", nn.Identity), ("head", nn.Identity)):
            setattr(xcit, name, kind())
        del xcit.cls_token
        depth, width = len(xcit.blocks), xcit.embed_dim
        stride = xcit.patch_embed.patch_size
        self.taps = tuple(max(0, part) for part in (depth // 3 - 1, depth // 2 - 1, 2 * depth // 3 - 1, depth - 1))
        self.xcit = xcit
        self.adapters = adapters(width, stride)
        self.fpn = FeaturePyramidNetwork([width] * 4, channels, LastLevelMaxPool())
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns levels "0" to "3" and "pool", (B, channels, H / stride, W / stride), for pictures (B, 3, H, W)."""
        taps = sorted(set(self.taps))  # in a shallow XCiT, two of them may be the same block
        found = self.xcit.forward_intermediates(images, indices=taps, norm=False, intermediates_only=True)
        maps = [adapt(found[taps.index(tap)]) for tap, adapt in zip(self.taps, self.adapters)]
        levels: dict[str, Tensor] = self.fpn(OrderedDict((str(i), level) for i, level in enumerate(maps)))
        return levels


def adapters(width: int, patch: int) -> nn.ModuleList:
    """Makes the layers that take features of stride 16 or 8 to strides of 4, 8, 16 and 32; all keep the width.

    Raises:
        ValueError: ``patch`` is neither 16 nor 8.
    """
    if patch == 16:
        twice = nn.Sequential(_up(width), nn.BatchNorm2d(width), nn.GELU(), _up(width))
        return nn.ModuleList([twice, _up(width), nn.Identity(), nn.MaxPool2d(2, 2)])
    if patch == 8:
        return nn.ModuleList([_up(width), nn.Identity(), nn.MaxPool2d(2, 2), nn.MaxPool2d(4, 4)])
    raise ValueError(f"an XCiT has patches of 8 or 16 pixels, got {patch}")


def _up(width: int) -> nn.Module:
    return nn.ConvTranspose2d(width, width, 2, 2)
