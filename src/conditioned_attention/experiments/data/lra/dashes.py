"""The dashes and discs of Pathfinder: small pictures, drawn at twice the size and reduced with a Lanczos filter."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

LENGTH, MARGIN = 2, 1  # of a dash and around it, in pixels
REACH = LENGTH + 1 + MARGIN  # the picture of a dash reaches so far from where it begins; its thickness is half a pixel
DISC_REACH = 5
_FINER = 2  # how much larger it is drawn
_RADIUS = 1.5  # of the disc


def moved(points: np.ndarray, angles: np.ndarray, distance: int) -> np.ndarray:
    """Moves points (…, 2), rows and columns, by a distance in the direction of angles (…); rounded up to integers."""
    steps = distance * np.stack([np.sin(angles), np.cos(angles)], -1)
    rounded: np.ndarray = np.ceil(points + steps).astype(np.int64)
    return rounded


def dash(angle: float) -> tuple[np.ndarray, np.ndarray]:
    """A dash from the middle in this direction, and the area that it keeps free: (9, 9) levels each, uint8."""
    middle = REACH * _FINER
    picture = np.zeros((2 * middle + 1, 2 * middle + 1), np.uint8)
    steps = moved(np.zeros(2), np.array(angle), LENGTH * _FINER)
    count = max(abs(steps))
    for i in range(count + 1):
        row, column = middle + np.floor(steps * i / count + 0.5).astype(int)
        picture[row, column] = 255
    return _shrunk(picture, 2 * REACH + 1), _shrunk(_grown(picture, MARGIN * _FINER), 2 * REACH + 1)


@cache
def disc() -> np.ndarray:
    """A disc around the middle: (11, 11) levels, uint8."""
    places = np.arange(2 * _FINER * DISC_REACH + _FINER) - _FINER * DISC_REACH
    inside = places[:, None] ** 2 + places**2 <= (_RADIUS * _FINER) ** 2
    return _shrunk(255 * inside.astype(np.uint8), 2 * DISC_REACH + 1)


def _shrunk(picture: np.ndarray, size: int) -> np.ndarray:
    """A square picture of levels, uint8, reduced to a smaller size."""
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.LANCZOS))


def _grown(picture: np.ndarray, radius: int) -> np.ndarray:
    """Replaces every pixel by the largest one within this radius."""
    from scipy.ndimage import grey_dilation

    steps = np.arange(-radius, radius + 1)
    within = steps[:, None] ** 2 + steps**2 <= radius**2
    grown: np.ndarray = grey_dilation(picture, footprint=within, mode="constant")
    return grown
