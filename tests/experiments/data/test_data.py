"""Data sets: what is there is read exactly, and what is wrong is named."""

import gzip
import struct

import numpy as np
import pytest
import torch
from sklearn import datasets

from conditioned_attention.experiments.data.images import fashion_mnist
from conditioned_attention.experiments.data.images.arrays import ImageArrays
from conditioned_attention.experiments.data.images.digits import load_digits
from conditioned_attention.experiments.data.images.fashion_mnist import load_fashion_mnist


def test_digits_are_scikit_learns_split_once_for_all():
    train, test = load_digits()
    assert (len(train), len(test)) == (1437, 360)
    assert torch.bincount(test.labels).min() >= 34, "stratified"
    assert train.images.mean().abs() < 1e-5
    assert train.images.std() == pytest.approx(1, abs=1e-4)
    again, _ = load_digits()
    assert (again.images == train.images).all()
    whole = torch.cat([train.images, test.images]).flatten(1)
    raw = torch.as_tensor(datasets.load_digits().images, dtype=torch.float32).flatten(1)
    step = (raw[1] - raw[0]).abs().max()
    assert step > 0
    assert sorted(whole.sum(1).argsort().tolist()) == list(range(1797)), "every image once"
    assert whole.unique().numel() == raw.unique().numel() == 17


def test_arrays_hand_out_batches():
    data = ImageArrays(torch.arange(5.0).view(5, 1, 1, 1), torch.arange(5))
    images, labels = data.__getitems__([3, 1])
    assert images.flatten().tolist() == labels.tolist() == [3, 1]
    assert data[2][1] == 2
    with pytest.raises(ValueError, match="do not fit"):
        ImageArrays(torch.ones(3, 1, 1, 1), torch.ones(2))


COUNTS = {"train": 40, "t10k": 20}


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "_COUNTS", COUNTS)
    random = np.random.default_rng(0)
    for split, count in COUNTS.items():
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        (tmp_path / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(idx(labels))  # unpacked: both are fine
    return tmp_path


def test_fashion_mnist(folder):
    train, test = load_fashion_mnist(folder)
    assert train.images.shape == (40, 1, 28, 28)
    assert test.labels.tolist() == [i % 10 for i in range(20)]
    assert train.images.mean().abs() < 1e-5
    few, _ = load_fashion_mnist(folder, train_limit=7)
    assert len(few) == 7
    with pytest.raises(ValueError, match="train_limit must be between 1 and 40"):
        load_fashion_mnist(folder, train_limit=0)


def swap(a, b):
    x, y = a.read_bytes(), b.read_bytes()
    a.write_bytes(y)
    b.write_bytes(x)


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (lambda f: (f / "t10k-labels-idx1-ubyte").unlink(), FileNotFoundError, "t10k-labels-idx1-ubyte.gz is missing"),
        (
            lambda f: (f / "train-images-idx3-ubyte.gz").write_bytes(
                (f / "train-images-idx3-ubyte.gz").read_bytes()[:-500]
            ),
            ValueError,
            "train-images-idx3-ubyte.gz is truncated",
        ),
        (
            lambda f: (f / "train-labels-idx1-ubyte").write_bytes((f / "train-labels-idx1-ubyte").read_bytes()[:-3]),
            ValueError,
            "truncated",
        ),
        (lambda f: (f / "train-images-idx3-ubyte.gz").write_bytes(b"<html>"), ValueError, "no gzip file"),
        (lambda f: (f / "train-labels-idx1-ubyte").write_bytes(b""), ValueError, "should be an idx file"),
        (lambda f: swap(f / "train-labels-idx1-ubyte", f / "t10k-labels-idx1-ubyte"), ValueError, "swapped"),
        (
            lambda f: swap(f / "train-images-idx3-ubyte.gz", f / "t10k-images-idx3-ubyte.gz"),
            ValueError,
            "swapped or renamed",
        ),
        (
            lambda f: (f / "train-labels-idx1-ubyte").write_bytes(idx(np.full(40, 77, np.uint8))),
            ValueError,
            "labels above 9",
        ),
    ],
)
def test_damaged_files_are_named(folder, damage, error, words):
    damage(folder)
    with pytest.raises(error, match=words):
        load_fashion_mnist(folder)


def test_an_empty_folder_says_how_to_get_the_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        load_fashion_mnist(tmp_path)
