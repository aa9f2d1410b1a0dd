"""Pathfinder of the Long Range Arena (Linsley et al. 2018; arXiv 2011.04006): are two discs on one path of dashes?

Paths are drawn dash by dash as in drewlinsley/pathfinder (``snakes2.py``), but in thousands of pictures at a time: a
path that cannot be completed is given up, since there are enough others.  Scene b is row b of every array.  For the
first dash of a path, pixels outside the picture count as taken; the original leaves this to OpenCV.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from conditioned_attention.experiments.data.lra.dashes import DISC_REACH, LENGTH, MARGIN, REACH, dash, disc, moved
from conditioned_attention.experiments.data.lra.images import pixels_as_tokens
from conditioned_attention.experiments.data.lra.sequences import TokenSequences
from conditioned_attention.experiments.data.made import kept_or_made, parts_of

_SCENES = 2**11  # begun at a time
_TRIALS, _RETRIES = 3, 5  # of a dash, and of a distractor
_PATH, _DISTRACTOR = 1.5, 2.0  # contrasts: that of the two paths is 3/4 of that of distractors
_CROWDED = 1.8  # two dashes may keep the same pixel free as long as their levels add up to less than this
_FREE, _TOO_FULL = 0.3, 0.01  # a pixel is free up to this level; with a smaller share of these no distractor begins
_VERSION = 1  # of the numbers: raise it with every change that alters them


@dataclass(frozen=True)
class PathfinderScenes:
    """Which pictures are drawn: by default the published ones of the hard variant, ``curv_contour_length_14``.

    Two paths of dashes begin near each other.  One disc marks the beginning of one of them, and another disc marks the
    end of the same path or of the other one; the task is to say which.  Shorter paths distract.  A dash is 2 pixels
    long and half a pixel thick.

    Attributes:
        side: side of a picture in pixels.
        path_length: number of dashes in each of the two paths.
        distractors: largest number of other paths; there are fewer where there is no room.
        distractor_length: number of dashes in each of those.
        seed_distance: distance between the beginnings of the two paths, and half of the distance from the border.
        continuity: how straight paths are; at 1 a dash turns by up to a right angle.
        stream: number of the random stream; its pictures are the same whatever the number of processes.
    """

    side: int = 32
    path_length: int = 14
    distractors: int = 5
    distractor_length: int = 4
    seed_distance: int = 7
    continuity: float = 1.0
    stream: int = 0

    def __post_init__(self) -> None:
        if min(self.path_length, self.distractor_length) < 2 or min(self.distractors, self.stream) < 0:
            raise ValueError(
                "path_length and distractor_length must be at least 2, distractors and stream not negative, got "
                f"{self.path_length}, {self.distractor_length}, {self.distractors} and {self.stream}"
            )
        if self.seed_distance < 2 or self.side < 4 * self.seed_distance + 4:
            raise ValueError(
                "seed_distance must be at least 2, and side at least 4 · seed_distance + 4, got "
                f"{self.seed_distance} and {self.side}"
            )
        if not self.continuity >= 1:
            raise ValueError(f"continuity must be at least 1, got {self.continuity}")


class Scenes(NamedTuple):
    """Pictures (S, side, side), labels (S,), the tips of both paths (S, 2, dashes, 2) and the discs (S, 2, 2)."""

    pixels: np.ndarray  # uint8
    labels: np.ndarray  # uint8, 1 where both discs are on one path
    paths: np.ndarray  # int8, rows and columns; the first is where the path begins
    discs: np.ndarray  # int8, where one path begins, and where one ends


class _Kept(NamedTuple):
    pixels: np.ndarray
    labels: np.ndarray


def pathfinder(
    count: int, scenes: PathfinderScenes | None = None, cache_dir: Path | None = None, processes: int = 1
) -> TokenSequences:
    """``count`` pictures as sequences, one token per pixel; the first pictures are the same for every count.

    They are made at the first call and kept in a file.

    Args:
        count: number of pictures.
        scenes: which pictures; default the published ones.
        cache_dir: folder for the file, which may be deleted at any time; default
            `conditioned_attention.experiments.data.scan.default_cache_dir`.
        processes: how many processes make the pictures; they are spawned, so with more than one a script needs a
            ``__main__`` guard.

    Raises:
        ValueError: ``count`` or ``processes`` is below 1.
        OSError: ``cache_dir`` cannot be written.
    """
    scenes = scenes or PathfinderScenes()
    made = {"version": _VERSION, **asdict(scenes)}
    kept = kept_or_made("pathfinder", _Kept, made, count, processes, cache_dir, lambda: _made(count, scenes, processes))
    return pixels_as_tokens(*kept, made)


def _made(count: int, scenes: PathfinderScenes, processes: int) -> _Kept:
    pixels, labels, found = [], [], 0
    with parts_of(partial(drawn, scenes), processes) as parts:
        for part in parts:
            pixels.append(part.pixels)
            labels.append(part.labels)
            found += len(part.labels)
            if found >= count:
                return _Kept(np.concatenate(pixels)[:count], np.concatenate(labels)[:count])
    raise AssertionError("parts have no end")


def drawn(scenes: PathfinderScenes, part: int) -> Scenes:
    """Begins `_SCENES` pictures and returns those that can be completed; they depend on ``part`` and the stream."""
    random = np.random.Generator(np.random.Philox(key=[scenes.stream, part]))
    board, paths = _two_paths(random, scenes)
    for _ in range(scenes.distractors):
        _distract(random, scenes, board)
    return _marked(random, board, paths)


@dataclass
class _Board:
    """Pictures and the areas that are kept free in them, with a margin of ``REACH`` pixels that does not count."""

    image: np.ndarray  # (B, side + 2 REACH, …), float32, in units of a dash at contrast 1
    taken: np.ndarray  # the same, uint8 levels

    @property
    def side(self) -> int:
        return int(self.taken.shape[1]) - 2 * REACH

    def of(self, rows: np.ndarray) -> _Board:
        return _Board(self.image[rows], self.taken[rows])

    def window(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Indices of the pixels around points (B, 2), for either array: (B, 9, 9)."""
        near = np.arange(2 * REACH + 1)
        rows = np.arange(len(points))[:, None, None]
        return rows, (points[:, 0, None] + near)[:, :, None], (points[:, 1, None] + near)[:, None]

    def take(self, path: _Path) -> None:
        """Marks the area that the last dash of a path keeps free."""
        place = self.window(path.tip)
        self.taken[place] = np.maximum(self.taken[place], self._room(path.shape, place))

    def crowded(self, shapes: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Whether dashes of these shapes would come too near to other dashes: (B,)."""
        place = self.window(points)
        levels = self.taken[place].astype(np.int16) + self._room(shapes, place)
        crowded: np.ndarray = levels.max((1, 2)) >= 255 * _CROWDED
        return crowded

    def _room(self, shapes: np.ndarray, place: tuple[np.ndarray, ...]) -> np.ndarray:
        inside = np.pad(np.ones((self.side, self.side), np.uint8), REACH)
        room: np.ndarray = _shapes().room[shapes] * inside[place[1:]]
        return room

    def draw(self, shapes: np.ndarray, points: np.ndarray, contrast: float) -> None:
        place = self.window(points)
        self.image[place] = np.maximum(self.image[place], contrast * _shapes().line[shapes])


@dataclass
class _Path:
    """The current ends of paths: everything that their next dash depends on."""

    pivot: np.ndarray  # (B, 2), from which the last dash went
    angle: np.ndarray  # (B,), of the last dash
    shape: np.ndarray  # (B,), which of `_shapes` it is
    tip: np.ndarray  # (B, 2), where its picture stands

    def of(self, rows: np.ndarray) -> _Path:
        return _Path(self.pivot[rows], self.angle[rows], self.shape[rows], self.tip[rows])


class _Shapes(NamedTuple):
    """Dashes: one per degree for the first dash of a path, and one per place of a next tip, pointing back from it."""

    line: np.ndarray  # (360 + K, 9, 9), float32
    room: np.ndarray  # the same, uint8 levels
    places: np.ndarray  # (K, 2), next tips around the pivot
    angles: np.ndarray  # (K,), of these


@cache
def _shapes() -> _Shapes:
    radius = LENGTH + MARGIN
    turns = np.arange(0, 360, 360 / (2 * np.pi * radius)) * np.pi / 180  # about a pixel apart
    places = np.unique(np.floor(radius * np.stack([np.sin(turns), np.cos(turns)], 1)).astype(int), axis=0)
    angles = np.arctan2(places[:, 0], places[:, 1])
    back = np.where(angles < 0, angles + np.pi, angles - np.pi)
    dashes = [dash(angle) for angle in [*_degrees(np.arange(360)), *back]]
    line = np.stack([one for one, _ in dashes]).astype(np.float32) / np.float32(255)
    return _Shapes(line, np.stack([room for _, room in dashes]), places, angles)


def _degrees(shapes: np.ndarray) -> np.ndarray:
    """The angles of the first 360 shapes, from -π up."""
    angles: np.ndarray = (shapes - 180) * np.pi / 180
    return angles


def _two_paths(random: np.random.Generator, scenes: PathfinderScenes) -> tuple[_Board, np.ndarray]:
    """The scenes in which two paths of full length have found room, and all tips of these paths."""
    outer = scenes.side + 2 * REACH
    board = _Board(np.zeros((_SCENES, outer, outer), np.float32), np.zeros((_SCENES, outer, outer), np.uint8))
    board.taken[:] = np.pad(
        np.pad(np.zeros((scenes.side - 2, scenes.side - 2), np.uint8), 1, constant_values=255), REACH
    )
    first, begun = _begin(random, board, 2 * scenes.seed_distance)
    board, first = board.of(begun), first.of(begun)
    around = random.integers(0, 360, len(first.tip)) * np.pi / 180
    away = scenes.seed_distance * np.stack([np.sin(around), np.cos(around)], 1)
    second = _beginning(np.rint(first.tip + away).astype(int), random.integers(0, 360, len(first.tip)))
    for path in (first, second):
        board.draw(path.shape, path.tip, _PATH)
    paths, tips = [first, second], np.stack([first.tip, second.tip], 1)[:, :, None]
    for _ in range(scenes.path_length - 1):
        for i in (0, 1):
            paths[i], good = _extended(random, scenes, board, paths[i], _PATH)
            board, tips, paths = board.of(good), tips[good], [path.of(good) for path in paths]
        tips = np.concatenate([tips, np.stack([path.tip for path in paths], 1)[:, :, None]], 2)
    board.take(paths[1])  # the area of the first path's last dash is not kept free, as in the original
    return board, tips


def _distract(random: np.random.Generator, scenes: PathfinderScenes, board: _Board) -> None:
    """Adds one short path to every scene that has room for it."""
    rows = np.arange(len(board.image))
    for _ in range(_RETRIES):
        some = board.of(rows)
        path, good = _begin(random, some, 1)
        places, some, path = rows[good], some.of(good), path.of(good)
        some.draw(path.shape, path.tip, _DISTRACTOR)
        for _ in range(scenes.distractor_length - 1):
            path, good = _extended(random, scenes, some, path, _DISTRACTOR)
            places, some, path = places[good], some.of(good), path.of(good)
        some.take(path)
        board.image[places], board.taken[places] = some.image, some.taken
        rows = np.setdiff1d(rows, places)


def _begin(random: np.random.Generator, board: _Board, border: int) -> tuple[_Path, np.ndarray]:
    """First dashes, at random where there is room, and which rows have one; ``border`` pixels at the edge stay free."""
    count, inner = len(board.taken), slice(REACH, -REACH)
    levels = board.taken[:, inner, inner].copy()
    enough = (levels <= 255 * _FREE).mean((1, 2)) >= _TOO_FULL
    levels[:, :border], levels[:, -border:], levels[:, :, :border], levels[:, :, -border:] = 255, 255, 255, 255
    path = _beginning(np.zeros((count, 2), int), np.zeros(count, int))
    good = np.zeros(count, bool)
    for _ in range(_TRIALS):
        rows = np.flatnonzero(enough & ~good)
        shapes = random.integers(0, 360, len(rows))
        free = _grown(levels[rows], shapes) <= 255 * _FREE
        numbers = free.reshape(len(rows), board.side**2).cumsum(1)
        chosen = (random.random(len(rows)) * numbers[:, -1]).astype(int) + 1
        tips = np.stack(np.divmod((numbers >= chosen[:, None]).argmax(1), board.side), 1)
        found = _beginning(tips, shapes)
        ends = np.stack([moved(found.tip, found.angle, LENGTH), found.pivot], 1)
        fits = ((ends >= 0) & (ends < board.side)).all((1, 2)) & (numbers[:, -1] > 0)
        enough[rows[numbers[:, -1] == 0]] = False  # the original gives up here, too
        for name in ("pivot", "angle", "shape", "tip"):
            getattr(path, name)[rows[fits]] = getattr(found, name)[fits]
        good[rows[fits]] = True
    return path, good


def _beginning(tips: np.ndarray, shapes: np.ndarray) -> _Path:
    """Dashes that begin at tips, with angles in whole degrees."""
    angles = _degrees(shapes)
    back = np.where(angles < 0, angles + np.pi, angles - np.pi)
    return _Path(moved(moved(tips, angles, LENGTH), back, LENGTH + MARGIN), angles, shapes, tips)


def _grown(levels: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """The largest level (B, side, side) within the area that a dash of these shapes keeps fully free."""
    core, reach, side = _shapes().room[shapes, :-2, :-2] == 255, REACH - 1, levels.shape[1]
    frame = (0, 0), (reach, reach), (reach, reach)
    padded, grown = np.pad(levels, frame, constant_values=255), np.zeros_like(levels)
    for y, x in np.argwhere(core.any(0)):
        rows = np.flatnonzero(core[:, y, x])
        grown[rows] = np.maximum(grown[rows], padded[rows, y : y + side, x : x + side])
    return grown


def _extended(
    random: np.random.Generator, scenes: PathfinderScenes, board: _Board, path: _Path, contrast: float
) -> tuple[_Path, np.ndarray]:
    """Adds a dash to each path; also says which paths have found one, the board being invalid for the others."""
    pivot = moved(path.pivot, path.angle, LENGTH + 2 * MARGIN)
    chances = _chances(scenes, board, pivot, path.angle)
    total = chances.sum(1)
    shape, tip, good = np.zeros_like(path.shape), np.zeros_like(path.tip), np.zeros(len(total), bool)
    for _ in range(_TRIALS):
        rows = np.flatnonzero((total >= 1e-4) & ~good)
        summed = chances[rows].cumsum(1)
        chosen = (summed > random.random(len(rows))[:, None] * summed[:, -1:]).argmax(1)
        shape[rows], tip[rows] = 360 + chosen, pivot[rows] + _shapes().places[chosen]
        good[rows] = ~_Board(board.image[:0], board.taken[rows]).crowded(shape[rows], tip[rows])
    angle = np.where(good, _shapes().angles[np.maximum(shape - 360, 0)], path.angle)
    tip = np.where(good[:, None], tip, path.tip)
    board.draw(shape, tip, contrast)
    board.take(path)
    return _Path(pivot, angle, shape, tip), good


def _chances(scenes: PathfinderScenes, board: _Board, pivot: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Probability of each place for the next tip, up to a factor, (B, K): largest straight on, zero where full."""
    places, angles = _shapes().places, _shapes().angles
    points = pivot[:, None] + places
    inside = ((points >= 0) & (points < board.side)).all(-1)
    y, x = (points.clip(0, board.side - 1) + REACH).transpose(2, 0, 1)
    rows = np.arange(len(pivot))[:, None]
    near = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
    level = np.maximum.reduce([board.taken[rows, y + dy, x + dx] for dy, dx in near])
    turn = abs(angles - angle[:, None])
    turn = np.minimum(np.minimum(turn, 2 * np.pi - turn) * scenes.continuity, np.pi / 2)
    chances: np.ndarray = inside * (1 - level / 255) * np.cos(turn) ** 2
    return chances


def _marked(random: np.random.Generator, board: _Board, paths: np.ndarray) -> Scenes:
    """Adds a disc at the beginning of a path and one at the end of the same or the other path; scales levels to 255."""
    rows = np.arange(len(paths))
    begins, same = random.integers(0, 2, (2, len(paths)))
    ends = np.where(same, begins, 1 - begins)
    discs = np.stack([paths[rows, begins, 0], paths[rows, ends, -1]], 1)
    side, more = board.side, DISC_REACH - REACH
    image = np.pad(board.image, ((0, 0), (more, more), (more, more)))
    near = np.arange(2 * DISC_REACH + 1)
    for i in (0, 1):
        place = rows[:, None, None], (discs[:, i, 0, None] + near)[:, :, None], (discs[:, i, 1, None] + near)[:, None]
        image[place] = np.maximum(image[place], disc() / np.float32(255))
    image = image[:, DISC_REACH : DISC_REACH + side, DISC_REACH : DISC_REACH + side]
    largest = image.max((1, 2), keepdims=True)
    pixels = (image * (255 / largest) + 0.5).astype(np.uint8)
    return Scenes(pixels, same.astype(np.uint8), paths.astype(np.int8), discs.astype(np.int8))
