"""Small folders in the forms in which the Long Range Arena's data come."""

import numpy as np

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
