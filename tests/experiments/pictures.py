"""scikit-learn's digits as files in class folders, and files that are broken in every usual way."""

import functools
import json
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


def write_emoji(root: Path, count: int = 20, classes: int = 4) -> Path:
    """Emoji as the two packages have them: each a rectangle of its own; every fifth in three colours of skin."""
    listed = []
    for i in range(count):
        tones = {tone: {"image": f"{i}-{tone}.png"} for tone in ("1F3FB", "1F3FF")} if i % 5 == 0 else {}
        entry = {"image": f"{i}.png", "category": f"kind {i % classes}", "subcategory": f"sort {i % (2 * classes)}"}
        listed.append({**entry, **({"skin_variations": tones} if tones else {})})
        for entry in (listed[-1], *tones.values()):
            entry |= {"has_img_google": True, "has_img_twitter": True}
    for artist, colour in (("google", 40), ("twitter", 60)):
        package = root / f"emoji-datasource-{artist}"
        folder = package / "img" / artist / "64"
        folder.mkdir(parents=True)
        (package / "emoji.json").write_text(json.dumps(listed))
        for i, entry in enumerate(listed):
            for j, one in enumerate((entry, *entry.get("skin_variations", {}).values())):
                picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
                picture.paste((colour * (1 + i % classes), 10 * i, 90 * j, 255), (8, 8, 20 + i, 40))
                if artist == "google":
                    picture = picture.quantize()
                picture.save(folder / one["image"])
    return root
