"""scikit-learn's digits as files in class folders, and files that are broken in every usual way."""

import functools
from pathlib import Path

from PIL import Image
from sklearn import datasets

load_digits = functools.cache(datasets.load_digits)


def digit(i):
    pixels = load_digits().images[i]
    return Image.fromarray((pixels * 15.9).astype("uint8"))


def write_digits(root: Path, first: int, count: int, classes: int = 10) -> Path:
    """``root/CLASS/INDEX.png`` for these digits."""
    data = load_digits()
    for i in range(first, first + count):
        if data.target[i] < classes:
            folder = root / str(data.target[i])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((data.images[i] * 15.9).astype("uint8")).save(folder / f"{i}.png")
    return root


def write_broken(folder: Path) -> list[str]:
    """Five files that no reader opens; their names."""
    whole = folder / "whole.jpg"
    photograph().save(whole)
    (folder / "truncated.jpg").write_bytes(whole.read_bytes()[:2000])
    whole.unlink()
    (folder / "text.jpg").write_text("I am not an image")
    (folder / "empty.png").touch()
    (folder / "folder.png").mkdir()
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    return ["dangling.png", "empty.png", "folder.png", "text.jpg", "truncated.jpg"]


def photograph() -> Image.Image:
    """A photograph, 640 × 427 pixels."""
    return Image.fromarray(datasets.load_sample_image("china.jpg"))
