"""How a dash and a disc of Pathfinder look: small pictures, drawn at twice the size and shrunk by Lanczos' filter."""

from __future__ import annotations

from functools import cache

import numpy as np

LENGTH, MARGIN = 2, 1  # of a dash and around it, in pixels
REACH = LENGTH + 1 + MARGIN  # the picture of a dash reaches so far from where it begins; its thickness is half a pixel
DISC_REACH = 5
_FINER = 2  # how much larger it is drawn
_RADIUS = 1.5  # of the disc


def moved(points: np.ndarray, angles: np.ndarray, distance: int) -> np.ndarray:
    """Points (…, 2), rows and columns, that go so far in the direction of angles (…), rounded up: integers."""
    steps = distance * np.stack([np.sin(angles), np.cos(angles)], -1)
    rounded: np.ndarray = np.ceil(points + steps).astype(np.int64)
    return rounded


def dash(angle: float) -> tuple[np.ndarray, np.ndarray]:
    """A dash from the middle in this direction, and what it keeps free: (9, 9) each, levels, uint8."""
    middle = REACH * _FINER
    picture = np.zeros((2 * middle + 1, 2 * middle + 1), np.uint8)
    steps = moved(np.zeros(2), np.array(angle), LENGTH * _FINER)
    count = max(abs(steps))
    for i in range(count + 1):
        row, column = middle + np.floor(steps * i / count + 0.5).astype(int)
        picture[row, column] = 255
    return shrunk(picture, 2 * REACH + 1), shrunk(_grown(picture, MARGIN * _FINER), 2 * REACH + 1)


@cache
def disc() -> np.ndarray:
    """A disc around the middle: (11, 11), levels, uint8."""
    places = np.arange(2 * _FINER * DISC_REACH + _FINER) - _FINER * DISC_REACH
    inside = places[:, None] ** 2 + places**2 <= (_RADIUS * _FINER) ** 2
    return shrunk(255 * inside.astype(np.uint8), 2 * DISC_REACH + 1)


def shrunk(picture: np.ndarray, size: int) -> np.ndarray:
    """A square picture of levels, uint8, at a smaller size, as Pillow's ``resize`` with ``LANCZOS`` has it."""
    weights = _lanczos(len(picture), size)
    narrow = np.clip(np.floor(picture @ weights.T + 0.5), 0, 255)
    small: np.ndarray = np.clip(np.floor(weights @ narrow + 0.5), 0, 255).astype(np.uint8)
    return small


def _lanczos(size: int, smaller: int) -> np.ndarray:
    """(smaller, size): what each old pixel adds to a new one."""
    scale = size / smaller
    centres = (np.arange(smaller) + 0.5) * scale
    distances = (np.arange(size) + 0.5 - centres[:, None]) / scale
    weights = np.where(abs(distances) < 3, np.sinc(distances) * np.sinc(distances / 3), 0.0)
    shares: np.ndarray = weights / weights.sum(1, keepdims=True)
    return shares


def _grown(picture: np.ndarray, radius: int) -> np.ndarray:
    """Every pixel becomes the largest one within this radius."""
    padded, size = np.pad(picture, radius), len(picture)
    steps = [
        (y, x) for y in range(-radius, radius + 1) for x in range(-radius, radius + 1) if y * y + x * x <= radius**2
    ]
    shifted = [padded[radius + y : radius + y + size, radius + x : radius + x + size] for y, x in steps]
    grown: np.ndarray = np.maximum.reduce(shifted)
    return grown
