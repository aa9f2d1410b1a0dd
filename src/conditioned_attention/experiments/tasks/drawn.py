"""Pictures with objects drawn into them, by torchvision: the truth on the left, what was found on the right."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from conditioned_attention.environment import needs

_SIDE, _GAP = 256, 4  # pixels: the short side of small pictures, and the border between them
_LARGEST = (1600, 6400)  # pixels of all of them together
_SURE = 0.5  # lowest score of detections that are drawn
_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#ffffff")


def side_by_side(
    images: Sequence[Tensor],
    truth: Sequence[Mapping[str, Tensor]],
    found: Sequence[Mapping[str, Tensor]],
    classes: Sequence[str],
) -> bytes:
    """A PNG with two pictures per row, each shown twice: with its true objects, and with those that were found.

    Args:
        images: (3, H, W) each, of numbers from 0 to 1.
        truth: ``boxes`` (N, 4), ``labels`` (N,) from 1 and ``masks`` (N, H, W).
        found: the same, masks (N, 1, H, W) from 0 to 1, with ``scores`` (N,); drawn from a score of 0.5 on.
        classes: names of the classes.
    """
    with needs("timm", "a drawing"):
        from torchvision.utils import make_grid
    tiles = []
    for image, true, ours in zip(images, truth, found):
        order = ours["scores"].argsort()  # the surest is drawn last, over the others
        some = {name: value[order[ours["scores"][order] >= _SURE]] for name, value in ours.items()}
        names = [[classes[int(label) - 1] for label in one["labels"]] for one in (true, some)]
        names[1] = [f"{name} {100 * score:.0f}" for name, score in zip(names[1], some["scores"].tolist())]
        tiles.append(_drawn(image, true["boxes"], true["masks"] > 0, true["labels"], names[0]))
        tiles.append(_drawn(image, some["boxes"], some["masks"][:, 0] >= 0.5, some["labels"], names[1]))
    sides = [max(tile.shape[i] for tile in tiles) for i in (1, 2)]
    padded = [F.pad(tile, (0, sides[1] - tile.shape[2], 0, sides[0] - tile.shape[1])) for tile in tiles]
    grid = make_grid(padded, nrow=4, padding=_GAP, pad_value=255)
    content, picture = io.BytesIO(), Image.fromarray(grid.permute(1, 2, 0).numpy())
    picture.thumbnail(_LARGEST)
    picture.save(content, "PNG")
    return content.getvalue()


def _drawn(image: Tensor, boxes: Tensor, masks: Tensor, labels: Tensor, names: Sequence[str]) -> Tensor:
    """The picture with objects drawn into it, (3, H, W), uint8; small ones are enlarged so that names can be read."""
    from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

    times = max(1, round(_SIDE / min(image.shape[1:])))
    canvas = (255 * image).round().to(torch.uint8).repeat_interleave(times, 1).repeat_interleave(times, 2)
    if not len(boxes):
        return canvas
    colours = [_COLOURS[(int(label) - 1) % len(_COLOURS)] for label in labels]
    large = masks.repeat_interleave(times, 1).repeat_interleave(times, 2)
    canvas = draw_segmentation_masks(canvas, large, alpha=0.45, colors=colours)
    drawn: Tensor = draw_bounding_boxes(
        canvas, times * boxes, list(names), colours, width=2, label_colors="black", fill_labels=True
    )
    return drawn
