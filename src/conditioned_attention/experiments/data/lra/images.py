"""Grey images as sequences: one token per pixel, row by row, whose id is the grey level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from conditioned_attention.experiments.data.lra.sequences import TokenSequences

SIDE = 32  # pixels; so 1,024 tokens
VOCABULARY = 512  # of the authors' model; 256 ids are used
_WEIGHTS = np.array([0.2989, 0.5870, 0.1140], np.float32)  # of red, green and blue


def pixels_as_tokens(pixels: np.ndarray, labels: np.ndarray, origin: Mapping[str, Any]) -> TokenSequences:
    """Images (S, H, W), uint8, as sequences of H · W ids; level 0 is id 0, which the authors' model masks as padding.

    >>> len(pixels_as_tokens(np.zeros((2, 32, 32), np.uint8), np.zeros(2, np.uint8), {}).sequence(1))
    1024
    """
    count = pixels[0].size
    lengths = np.full(len(labels), count, np.int32)
    return TokenSequences(pixels.reshape(-1), lengths, labels.astype(np.uint8), count, origin)


def grey(pixels: np.ndarray) -> np.ndarray:
    """Grey levels (…, H, W) of colours (…, 3, H, W), both uint8, as TensorFlow's ``rgb_to_grayscale`` computes them.

    They are a weighted sum in float32, times 255.5 / 255, truncated to integers.  Pillow's levels differ slightly.

    >>> grey(np.array([255, 0, 255], np.uint8).reshape(3, 1, 1))
    array([[105]], dtype=uint8)
    """
    shares = pixels.astype(np.float32) * np.float32(1 / 255)
    summed = np.tensordot(_WEIGHTS, shares, (0, -3))
    return (summed * np.float32(255.5)).astype(np.uint8)


def framed(pixels: np.ndarray) -> np.ndarray:
    """Images (S, H, W) of at most 32 × 32 pixels, padded with black on all sides: (S, 32, 32)."""
    height, width = (SIDE - side for side in pixels.shape[1:])
    return np.pad(pixels, ((0, 0), (height // 2, height - height // 2), (width // 2, width - width // 2)))
