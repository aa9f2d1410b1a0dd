"""Pathfinder from the Long Range Arena's release: folders of PNG files, and lists of them with their labels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from conditioned_attention.experiments.data.images.read import opened
from conditioned_attention.experiments.data.lra.images import pixels_as_tokens
from conditioned_attention.experiments.data.lra.sequences import TokenSequences
from conditioned_attention.experiments.data.scan import reason_of
from conditioned_attention.experiments.data.split import listed

HARD = "curv_contour_length_14"


def read_pathfinder(folder: Path, side: int) -> tuple[TokenSequences, list[str]]:
    """Reads all pictures of a variant, shuffled, always in the same way, and what a report should say about them.

    The lists of pictures are ``metadata/*.npy``.  In the release these are text in spite of their name, with one line
    per picture: folder, file, a number, the label and more, separated by single spaces.  The generator itself writes
    arrays, which can be read too.  Pictures that are empty (as one or more in the release are), missing, damaged or of
    another size are named and left out.

    Args:
        folder: such as ``pathfinder32/curv_contour_length_14``, or the folder that contains it.
        side: of the pictures, in pixels.

    Raises:
        FileNotFoundError: there are no lists.
        ValueError: no picture can be read.
    """
    folder = folder / HARD if (folder / HARD).is_dir() else folder
    lists = sorted((folder / "metadata").glob("*.npy"), key=lambda file: (len(file.name), file.name))
    if not lists:
        raise FileNotFoundError(
            f"{folder} has no metadata/*.npy: name a folder of the release such as pathfinder32/{HARD}"
        )
    pixels, labels, broken, left_out = [], bytearray(), list[str](), list[str]()
    for file in lists:
        for where, row in _rows(file, broken):
            if len(row) < 4 or row[3] not in ("0", "1"):
                broken.append(f"{where} has {'no label' if len(row) < 4 else f'the label {row[3][:20]!r}, not 0 or 1'}")
                continue
            picture = _picture(folder / row[0] / row[1], side)
            if isinstance(picture, str):
                left_out.append(f"{row[0]}/{row[1]} {picture}")
                continue
            pixels.append(picture)
            labels.append(int(row[3]))
    notes = [f"{len(broken)} broken lines are left out: {listed(broken, '; ')}"] if broken else []
    notes += [f"{len(left_out)} pictures are left out: {listed(left_out, '; ')}"] if left_out else []
    if not pixels:
        raise ValueError(f"{folder} has no picture that can be read: {'; '.join(notes) or 'its lists are empty'}")
    order = np.random.RandomState(0).permutation(len(pixels))
    origin = {"folder": folder.name, "left out": len(broken) + len(left_out)}
    return pixels_as_tokens(np.stack(pixels)[order], np.frombuffer(labels, np.uint8)[order], origin), notes


def _rows(file: Path, broken: list[str]) -> list[tuple[str, list[str]]]:
    """What to call each line of a list in messages, and its fields."""
    data, name = file.read_bytes(), f"metadata/{file.name}"
    if not data.startswith(b"\x93NUMPY"):
        lines = data.decode(errors="replace").split("\n")
        return [(f"{name} line {i}", line.split()) for i, line in enumerate(lines, 1) if line.strip()]
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)  # pickles may run code
    except ValueError as error:
        broken.append(f"{name} cannot be read ({reason_of(error)})")
        return []
    return [(f"{name} row {i}", [str(field) for field in np.ravel(row)]) for i, row in enumerate(array, 1)]


def _picture(file: Path, side: int) -> np.ndarray | str:
    """The levels of a picture, (side, side), uint8, or what is wrong with it."""
    from PIL import UnidentifiedImageError

    try:
        data = file.read_bytes()
        if not data:
            return "has no bytes"
        with opened(io.BytesIO(data)) as picture:
            levels = np.asarray(picture.convert("L"))
    except FileNotFoundError:
        return "is missing"
    except UnidentifiedImageError:  # whose own message has a memory address
        return "is no picture"
    except Exception as error:  # damaged files fail in as many ways as there are readers
        return f"cannot be read ({reason_of(error)})"
    return levels if levels.shape == (side, side) else f"has {levels.shape[1]} × {levels.shape[0]} pixels"
