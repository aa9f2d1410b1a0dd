"""Encodes figures as PNG files."""

from __future__ import annotations

import io
from typing import Any

DPI = 200  # twice what a figure has by itself: sharp on screens with two pixels in the place of one


def png(figure: Any, dpi: int = DPI) -> bytes:
    """A figure as a PNG file of 256 colours, which lines, text and a colour scale do not exceed to the eye.

    Args:
        figure: of matplotlib.
        dpi: pixels an inch.
    """
    from PIL import Image

    drawn, kept = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, dpi=dpi)
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(kept, "PNG", optimize=True)
    return kept.getvalue()
