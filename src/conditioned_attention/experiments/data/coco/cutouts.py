"""Cut-outs with transparency, by class, from which scenes are composed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from conditioned_attention.experiments.data.fingerprint import checksum_of_bytes
from conditioned_attention.experiments.data.images.read import SUFFIXES, opened
from conditioned_attention.experiments.data.scan import reason_of
from conditioned_attention.experiments.data.split import EVALUATION, hold_out, listed
from conditioned_attention.experiments.data.walk import Walk

HOW_TO_GET = (
    "Debian's packages tuxpaint-stamps-default and mate-backgrounds hold cut-outs and photographs: 'apt-get install' "
    "them, or 'apt-get download' and 'dpkg-deb -x FILE FOLDER', and name the folders with --cutouts and --photographs."
)
# folders of tuxpaint-stamps-default that make a class each
STAMPS = {
    "bird": "animals/birds", "building": "town/houses", "fruit": "food/fruit", "insect": "animals/insects",
    "mammal": "animals/mammals", "music": "hobbies/music", "plant": "plants", "vehicle": "vehicles",
}  # fmt: skip
_OPAQUE = 127  # pixels with a larger alpha count as visible
_FEWEST = 100  # pixels that a cut-out must have


@dataclass(frozen=True)
class Cutout:
    """A picture (H, W, 4), uint8, cropped to its opaque part; the number of its class; its name."""

    pixels: np.ndarray
    label: int
    name: str


@dataclass(frozen=True)
class Cutouts:
    """The cut-outs of the training and of the evaluation scenes, which share none; names of the classes; and notes."""

    train: tuple[Cutout, ...]
    evaluation: tuple[Cutout, ...]
    classes: tuple[str, ...]
    notes: tuple[str, ...]

    def checksum(self) -> str:
        """A checksum of all pixels."""
        return checksum_of_bytes(b"".join(one.pixels.tobytes() for one in (*self.train, *self.evaluation)))


def read_cutouts(folder: Path) -> Cutouts:
    """The cut-outs below a folder: ``stamps`` of tuxpaint-stamps-default, or a folder for every class.

    A fixed fifth of each class is for evaluation.  Pictures without transparency or with next to no visible pixels are
    left out, and so are duplicates.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no classes, or one of them has too few cut-outs for both sets.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"cutouts={folder} is not a folder. {HOW_TO_GET}")
    walk = Walk(folder, SUFFIXES)
    places = STAMPS if all((folder / place).is_dir() for place in STAMPS.values()) else walk.folders()
    found: dict[bytes, Cutout] = {}
    left_out = []
    for label, place in enumerate(places.values()):
        for file in walk.files(place):
            try:
                pixels = _seen(folder / file.name)
            except (OSError, SyntaxError, ValueError) as error:
                left_out.append(f"{file.name} ({reason_of(error)})")
                continue
            found.setdefault(pixels.tobytes(), Cutout(pixels, label, file.name))
    some = list(found.values())
    if len(some) < EVALUATION:
        raise ValueError(f"cutouts={folder} has {len(some)} cut-outs in folders of classes. {HOW_TO_GET}")
    parts = hold_out([one.label for one in some], EVALUATION)
    train, held = (tuple(some[i] for i in part) for part in parts)
    there = [{one.label for one in part} for part in (train, held)]
    few = [name for label, name in enumerate(places) if any(label not in labels for labels in there)]
    if few:
        raise ValueError(f"cutouts={folder} has too few cut-outs of {listed(few)}. {HOW_TO_GET}")
    notes = (f"{len(left_out)} pictures are no cut-outs: {listed(left_out)}",) if left_out else ()
    return Cutouts(train, held, tuple(places), notes)


def _seen(file: Path) -> np.ndarray:
    with opened(file) as picture:
        pixels = np.asarray(picture.convert("RGBA"))
    rows, columns = np.nonzero(pixels[:, :, 3] > _OPAQUE)
    if len(rows) < _FEWEST or len(rows) == pixels[:, :, 3].size:
        raise ValueError("it has no transparent pixels, or hardly any visible ones")
    return pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def read_photographs(folder: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The photographs below a folder, (H, W, 3), uint8: for training scenes, and every fifth for evaluation scenes.

    They are reduced to a short side of about 512 pixels.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has fewer than two photographs.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"photographs={folder} is not a folder. {HOW_TO_GET}")
    names = [file.name for file in Walk(folder, SUFFIXES).files()]
    if len(names) < 2:
        raise ValueError(f"photographs={folder} holds {len(names)} pictures; both sets need one. {HOW_TO_GET}")
    found = [_reduced(folder / name) for name in names]
    held = found[::EVALUATION]
    return [one for i, one in enumerate(found) if i % EVALUATION], held


def _reduced(file: Path) -> np.ndarray:
    with opened(file) as picture:
        small = picture.convert("RGB")
        return np.asarray(small.reduce(max(1, min(small.size) // 512)))


def checksum_of(pictures: Sequence[np.ndarray]) -> str:
    """A checksum of the pixels of pictures."""
    return checksum_of_bytes(b"".join(one.tobytes() for one in pictures))


def resized(cutout: Cutout, longest: int, flipped: bool) -> np.ndarray:
    """The pixels of a cut-out, resized to this long side and flipped if asked."""
    height, width = cutout.pixels.shape[:2]
    scale = longest / max(height, width)
    picture = Image.fromarray(cutout.pixels, "RGBA")
    small = picture.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BILINEAR)
    return np.asarray(small)[:, ::-1] if flipped else np.asarray(small)
