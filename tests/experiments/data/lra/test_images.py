"""CIFAR-10 and Fashion-MNIST as grey pixels, a token each."""

from decimal import Decimal

import numpy as np
import pytest

from conditioned_attention.experiments.data.lra.cifar10 import read_cifar10
from conditioned_attention.experiments.data.lra.images import framed, grey, pixels_as_tokens
from tests.experiments.data.lra.files import RECORD, write_cifar10


def test_grey_is_the_published_weights_cut_off():
    """With exact decimals, where no level lies so near to a whole number that float32 could miss it."""
    colours = np.random.default_rng(0).integers(0, 256, (500, 3, 1, 1), dtype=np.uint8)
    exact = [
        sum(int(level) * Decimal(weight) for level, weight in zip(colour.ravel(), ("0.2989", "0.587", "0.114")))
        * Decimal("255.5")
        / 255
        for colour in colours
    ]
    clear = [i for i, level in enumerate(exact) if abs(level - round(level)) > Decimal("0.001")]
    assert len(clear) > 450
    assert [int(grey(colours)[i, 0, 0]) for i in clear] == [int(exact[i]) for i in clear]
    same = np.arange(256, dtype=np.uint8).reshape(256, 1, 1, 1).repeat(3, 1)
    assert (grey(same).ravel() == np.arange(256)).all()


def test_cifar10_record_by_record(tmp_path):
    written = write_cifar10(tmp_path / "cifar-10-batches-bin")
    train, test = read_cifar10(tmp_path)
    assert train.notes == test.notes == []
    assert train.pixels.shape == (100, 32, 32)
    assert test.labels.tolist() == written["test_batch.bin"][:, 0].tolist()
    third = written["data_batch_3.bin"][7]
    red, green, blue = (int(third[1 + 1024 * channel + 32 * 5 + 9]) for channel in range(3))
    level = int(np.float32(0.2989 * red + 0.587 * green + 0.114 * blue) * 255.5 / 255)
    assert train.pixels[47, 5, 9] == level
    assert train.labels[47] == 7
    sequences = pixels_as_tokens(*train[:2], {})
    ids, label = sequences[47]
    assert (ids.shape, label, ids[32 * 5 + 9]) == ((1024,), 7, level)


def test_broken_records_are_named(tmp_path):
    write_cifar10(tmp_path)
    file = tmp_path / "data_batch_2.bin"
    data = bytearray(file.read_bytes())
    data[3 * RECORD] = 10
    file.write_bytes(data[:-1])
    train, _ = read_cifar10(tmp_path)
    assert len(train.labels) == 98
    assert train.notes == [
        "data_batch_2.bin: 2 broken records are left out: record 4 has the label 10, not 0 to 9; the last 3072 bytes "
        "are no whole record of 3073"
    ]
    file.write_bytes(b"12345")
    with pytest.raises(ValueError, match=r"data_batch_2\.bin holds 5 bytes, less than one picture of 3073\. "):
        read_cifar10(tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_2\.bin is missing\. CIFAR-10's binary version is six"):
        read_cifar10(tmp_path)


def test_the_version_for_python_is_not_opened(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    for folder in (tmp_path, tmp_path / "cifar-10-batches-py"):
        (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"cos\nsystem\n(S'exit'\ntR.")
        with pytest.raises(FileNotFoundError, match=r"is CIFAR-10 for Python .*or Matlab.*cifar-10-binary"):
            read_cifar10(folder)


def test_smaller_images_get_a_black_frame():
    images = np.random.default_rng(0).integers(1, 256, (3, 28, 28), dtype=np.uint8)
    whole = framed(images)
    assert whole.shape == (3, 32, 32)
    assert (whole[:, 2:30, 2:30] == images).all()
    assert (whole > 0).sum() == images.size
