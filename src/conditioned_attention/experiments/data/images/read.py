"""The only place where pictures are opened: which files are pictures, which are refused, and how they are decoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

# The formats that are read, by Pillow's names, and no others: for PostScript Pillow starts a program, whatever the file
# is called.  They are listed here, since which files make up a data set must not depend on how Pillow was built.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2",),
    "TGA": (".tga",),  # the last, since it has no signature at its beginning
}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
# A file of a few bytes may claim to be enormous, or so long that it becomes enormous when its short side is scaled.
MOST_PIXELS = 2**28 // 3  # a quarter of a GiB in RGB; where Pillow warns
MOST_STRETCHED = 100
RULES = (list(FORMATS), MOST_PIXELS, MOST_STRETCHED)  # plain data: what decides whether a file can be read


def read_rgb(file: str | Path | BinaryIO) -> Image.Image:
    """Reads a whole image as 8-bit RGB: grey is repeated, palettes are looked up, CMYK converted, 16 bits scaled to 8.

    As with torchvision and timm, transparency is dropped, EXIF rotation is not applied, and the first frame of an
    animation is used.

    Raises:
        OSError, ValueError, …: whatever Pillow raises for a damaged file; a format that is not in ``FORMATS``; more
            than ``MOST_PIXELS``, or one side more than ``MOST_STRETCHED`` times the other; floating-point pixels, which
            have no fixed range.
    """
    with opened(file) as picture:
        if picture.mode == "F":
            raise ValueError("floating-point pixels have no fixed range; save the image with 8 or 16 bits")
        if picture.mode.startswith("I"):  # Pillow's own conversion would clip at 255
            pixels = np.asarray(picture)
            if pixels.min() < 0 or pixels.max() > 65535:
                raise ValueError(f"integer pixels must be within 16 bits, got {pixels.min()} to {pixels.max()}")
            return Image.fromarray(np.round(pixels / 257).astype(np.uint8)).convert("RGB")
        if picture.mode == "P" and "transparency" in picture.info:
            return picture.convert("RGBA").convert("RGB")
        return picture.convert("RGB")


def read_on_white(file: str | Path | BinaryIO) -> Image.Image:
    """Reads a whole image as 8-bit RGB, with white behind transparent parts.

    Raises:
        OSError, ValueError, …: as `read_rgb`.
    """
    with opened(file) as picture:
        paper = Image.new("RGBA", picture.size, "white")
        paper.alpha_composite(picture.convert("RGBA"))
        return paper.convert("RGB")


@contextmanager
def opened(file: str | Path | BinaryIO) -> Iterator[Image.Image]:
    """Opens a picture, which must be of a known format and not too large."""
    with Image.open(file, formats=_formats()) as picture:
        _check_size(*picture.size)
        yield picture


@cache
def _formats() -> list[str]:
    """The formats that the installed Pillow supports."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _check_size(width: int, height: int) -> None:
    """Raises ValueError if the size that a file claims is too large, before anything is decoded."""
    short, long = sorted((width, height))
    if width * height > MOST_PIXELS:
        raise ValueError(f"images may have {MOST_PIXELS:,} pixels, got {width:,} × {height:,}")
    if long > MOST_STRETCHED * short:
        raise ValueError(
            f"one side may be {MOST_STRETCHED} times the other, got {width:,} × {height:,}: scaled to the size of the "
            "model it would be enormous"
        )
