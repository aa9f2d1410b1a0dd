"""Emoji drawn by two artists: 1,911 each, 64 × 64 in colour, with the same names and labels (graphics CC BY 4.0)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from conditioned_attention.experiments.data.fingerprint import checksum_of_bytes
from conditioned_attention.experiments.data.images.arrays import ImageArrays
from conditioned_attention.experiments.data.images.read import read_on_white
from conditioned_attention.experiments.data.split import EVALUATION, hold_out

Split = Literal["google_to_twitter", "twitter_to_google", "unseen_emoji"]
Labels = Literal["category", "subcategory"]

ARTISTS = ("google", "twitter")
HOW_TO_GET = (
    "The drawings are two packages of npm: 'npm install --prefix FOLDER emoji-datasource-google@16.0.0 "
    "emoji-datasource-twitter@16.0.0' puts both into FOLDER/node_modules. Name that with --data-dir."
)
_SIDE = 64


@dataclass(frozen=True)
class Emoji:
    """An emoji as the packages list it.

    Attributes:
        image: name of its file.
        label: its category or subcategory.
        base: number of the emoji itself, or of the one that it is a variant of.
    """

    image: str
    label: str
    base: int


def load_emoji(
    folder: Path, split: Split, labels: Labels, skin_tones: bool, side: int
) -> tuple[ImageArrays, ImageArrays, list[int], list[str], list[str]]:
    """Training set, evaluation set, emoji of the training set, names of the classes and notes, from the two packages.

    The third are numbers, which all drawings of an emoji and of its variants in other skin tones have in common.
    Transparent drawings are put on white.  An emoji that one of the artists draws exactly like an earlier one, such as
    the flags of Norway and Bouvet Island, is left out.  Channels are scaled so that the training set has mean 0 and
    standard deviation 1.

    Args:
        folder: holds ``emoji-datasource-google`` and ``emoji-datasource-twitter``.
        split: trains on all emoji by one artist and evaluates on those by the other; or trains on four fifths of the
            emoji by both and evaluates on the others.
        labels: which of the two labels.
        skin_tones: whether to include variants in other skin tones; they are in the same set as their emoji.
        side: of the images, 64, or 32, where each pixel is the mean of four.

    Raises:
        FileNotFoundError: a package or a drawing is missing; the message says how to get them.
        ValueError: the packages list different emoji, or a drawing is damaged.
    """
    lists = [_emoji(_read_list(folder, artist), artist, labels, skin_tones) for artist in ARTISTS]
    if lists[0] != lists[1]:
        raise ValueError(f"the two packages in {folder} list different emoji: are they of one version? {HOW_TO_GET}")
    emoji = lists[0]
    drawings = {artist: [_read(folder, artist, one.image) for one in emoji] for artist in ARTISTS}
    kept = _without_copies(drawings.values())
    names = sorted({emoji[row].label for row in kept})
    rows = _rows(emoji, kept, split)
    pictures = [[drawings[artist][row] for artist, row in some] for some in rows]
    numbers = [torch.tensor([names.index(emoji[row].label) for _, row in some]) for some in rows]
    notes = [f"{split.replace('_', ' ')}; {len(kept):,} emoji, without {len(emoji) - len(kept)} drawn like another"]
    return *_scaled(pictures, numbers, side), [emoji[row].base for _, row in rows[0]], names, notes


def _read_list(folder: Path, artist: str) -> list[dict[str, Any]]:
    path = folder / f"emoji-datasource-{artist}" / "emoji.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. {HOW_TO_GET}")
    try:
        found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}). {HOW_TO_GET}") from error
    return found


def _emoji(listed: Sequence[dict[str, Any]], artist: str, labels: Labels, skin_tones: bool) -> list[Emoji]:
    found = []
    for base, entry in enumerate(listed):
        variants = entry.get("skin_variations", {}).values() if skin_tones else ()
        for one in (entry, *variants):
            if one[f"has_img_{artist}"]:
                found.append(Emoji(one["image"], entry[labels], base))
    return found


def _read(folder: Path, artist: str, name: str) -> np.ndarray:
    """The pixels of a drawing (64, 64, 3)."""
    path = folder / f"emoji-datasource-{artist}" / "img" / artist / str(_SIDE) / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. {HOW_TO_GET}")
    try:
        pixels = np.asarray(read_on_white(path))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's words for broken PNGs
        raise ValueError(f"{path} is damaged ({error}). {HOW_TO_GET}") from error
    if pixels.shape != (_SIDE, _SIDE, 3):
        raise ValueError(f"{path} should have {_SIDE} × {_SIDE} pixels, got {pixels.shape}. {HOW_TO_GET}")
    return pixels


def _without_copies(drawings: Any) -> list[int]:
    """The rows in which no drawing equals an earlier one by the same artist."""
    kept = set(range(min(map(len, drawings))))
    for ones in drawings:
        first: dict[bytes, int] = {}
        kept &= {row for row, pixels in enumerate(ones) if first.setdefault(pixels.tobytes(), row) == row}
    return sorted(kept)


def _rows(emoji: Sequence[Emoji], kept: Sequence[int], split: Split) -> list[list[tuple[str, int]]]:
    """(artist, row) of the training and the evaluation set."""
    if split == "unseen_emoji":
        bases = {emoji[row].base: emoji[row].label for row in kept}
        numbers = list(bases)
        parts = hold_out(np.unique(list(bases.values()), return_inverse=True)[1].tolist(), EVALUATION)
        chosen = [{numbers[i] for i in part} for part in parts]
        pairs = [[(artist, row) for artist in ARTISTS for row in kept if emoji[row].base in some] for some in chosen]
    else:
        pairs = [[(artist, row) for row in kept] for artist in split.split("_to_")]
    # shuffled, so that the first few, which the monitor looks at, are of many classes
    pairs[1] = [pairs[1][i] for i in np.random.RandomState(0).permutation(len(pairs[1]))]
    return pairs


def _scaled(
    pictures: Sequence[Sequence[np.ndarray]], labels: Sequence[torch.Tensor], side: int
) -> tuple[ImageArrays, ImageArrays]:
    origins = [checksum_of_bytes(np.stack(some)) for some in pictures]
    small = [[np.asarray(Image.fromarray(one).reduce(_SIDE // side)) for one in some] for some in pictures]
    pixels = [torch.from_numpy(np.stack(some)).permute(0, 3, 1, 2).float() for some in small]
    std, mean = torch.std_mean(pixels[0], dim=(0, 2, 3))
    scale = mean[:, None, None], std[:, None, None]
    train, evaluation = (
        ImageArrays((images - scale[0]) / scale[1], numbers, origin, scale)
        for images, numbers, origin in zip(pixels, labels, origins)
    )
    return train, evaluation
