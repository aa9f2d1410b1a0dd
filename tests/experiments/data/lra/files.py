"""Small folders in the forms in which the Long Range Arena's data come."""

import numpy as np
from PIL import Image

RECORD = 3073


def write_cifar10(folder, per_file=20, black=0):
    """The six files of the binary version, at random below so many black rows; records (S, 3073) by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    random, written = np.random.default_rng(0), {}
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        records = random.integers(0, 256, (per_file, RECORD), dtype=np.uint8)
        records[:, 1:].reshape(-1, 3, 32, 32)[:, :, :black] = 0
        records[:, 0] = np.arange(per_file) % 10
        (folder / name).write_bytes(records.tobytes())
        written[name] = records
    return written


def write_reviews(folder, per_class=12):
    """IMDb's folders: texts whose first byte is their class, of growing length, and some without a label."""
    for split in ("train", "test"):
        for label in ("pos", "neg", "unsup")[: 3 if split == "train" else 2]:
            place = folder / split / label
            place.mkdir(parents=True, exist_ok=True)
            for i in range(per_class):
                (place / f"{i}_7.txt").write_text(label[0] + f" {split}<br />\n" * i)
    (folder / "train" / "urls_pos.txt").write_text("http://")
    (folder / "README").write_text("x")


def write_pairs(folder, lines=12):
    """The three files of pairs, with a quote that never ends in each line."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "eval", "test"):
        rows = [f'{i % 2}.0\tP{i}\tQ{i}\t"a {name} {i}\t{"b" if i % 2 else "a"} {name} {i}' for i in range(lines)]
        (folder / f"new_aan_pairs.{name}.tsv").write_text("\n".join([*rows, ""]))


def write_pathfinder(folder, count=20, side=32):
    """Pictures of the release in two lists, as text; the first pixel tells their number: list 10 comes after 2."""
    for batch in (10, 2):
        (folder / "imgs" / str(batch)).mkdir(parents=True)
        (folder / "metadata").mkdir(exist_ok=True)
        lines = []
        for i in range(count // 2):
            picture = np.zeros((side, side), np.uint8)
            picture[0, 0] = i + (100 if batch == 10 else 0)
            Image.fromarray(picture).save(folder / "imgs" / str(batch) / f"sample_{i}.png")
            lines.append(f"imgs/{batch} sample_{i}.png {i} {i % 2} 1.0 14 4 2 0.5 1 1")
        (folder / "metadata" / f"{batch}.npy").write_text("\n".join([*lines, ""]))
