"""Masks of objects: from COCO's polygons and run-length encodings to arrays and back."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import numpy as np

from conditioned_attention.environment import needs

_FEWEST = 6  # numbers of a polygon: three points


def why_no_mask(shape: Any, height: int, width: int) -> str:
    """Why a ``segmentation`` is not a valid mask for a picture of this size; empty if it is one."""
    if isinstance(shape, list):
        return "" if shape and all(map(_polygon, shape)) else "its polygons are invalid"
    if not isinstance(shape, dict) or not {"size", "counts"} <= shape.keys():
        return "it has no mask"
    if shape["size"] != [height, width]:
        return f"its mask is of the size {shape['size']}, and its picture of {[height, width]}"
    try:
        decode(shape, height, width)
    except (ValueError, RuntimeError, TypeError) as error:
        return f"its mask is damaged: {error}"
    return ""


def _polygon(points: Any) -> bool:
    if not isinstance(points, list) or len(points) < _FEWEST or len(points) % 2:
        return False
    return all(map(is_number, points))


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that fits in a float."""
    try:
        return isinstance(value, (int, float)) and isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def decode(shape: Any, height: int, width: int) -> np.ndarray:
    """The mask (H, W), uint8, of 0 and 1."""
    api = _api()
    rle = shape
    if isinstance(shape, list) or isinstance(shape["counts"], list):
        if isinstance(shape, dict) and (min(shape["counts"]) < 0 or sum(shape["counts"]) != height * width):
            raise ValueError(f"its runs make {sum(shape['counts'])} pixels, and not {height * width}")
        rle = api.segmToRle(shape, width, height)
    return np.asarray(api.decode(rle))


def encode(masks: np.ndarray) -> list[dict[str, Any]]:
    """Run-length encodings of masks (N, H, W) of 0 and 1, as they are written to JSON."""
    if not len(masks):
        return []
    found = _api().encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    return [{"size": list(rle["size"]), "counts": _text(rle["counts"])} for rle in found]


def _text(counts: Any) -> str:
    return counts.decode() if isinstance(counts, bytes) else counts


def stacked(shapes: Sequence[Any], height: int, width: int) -> np.ndarray:
    """Masks (N, H, W), uint8."""
    return np.stack([decode(s, height, width) for s in shapes]) if shapes else np.zeros((0, height, width), np.uint8)


def _api() -> Any:
    with needs("detection", "a mask"):
        from faster_coco_eval.core import mask
    return mask
