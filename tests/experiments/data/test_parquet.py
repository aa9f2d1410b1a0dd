"""Parquet files of images, as the hub keeps ImageNet-1k."""

import os
import pickle
import sys

import numpy as np
import pytest
import torch

from conditioned_attention.experiments.data.images.parquet import is_parquet_folder, parquet_images
from conditioned_attention.experiments.data.images.saved import RowReader
from conditioned_attention.experiments.data.images.source import LazyImages, without_unreadable
from conditioned_attention.experiments.recipes.image_folder import ImageFolder
from conditioned_attention.experiments.recipes.imagenet import DeiTB
from conditioned_attention.experiments.training.loop import train
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from tests.experiments.data.test_saved_dataset import DIGITS, encoded, rows
from tests.experiments.pictures import write_digits
from tests.experiments.recipes.test_image_folder import TINY
from tests.test_cli import call

datasets = pytest.importorskip("datasets")
import pyarrow as pa  # noqa: E402  (after the skip)
from pyarrow import parquet  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:images of parquet files")
NAMES = [f"digit {i}" for i in range(10)][::-1]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(path, first, count, names=None, damaged=()):
    """A file of digits as ``datasets`` writes it, with the names of classes where there are some."""
    data = rows(first, count, damaged=damaged)
    if names is not None:
        data = data.map(lambda row: {"label": 9 - row["label"]}).cast_column("label", datasets.ClassLabel(names=names))
    path.parent.mkdir(parents=True, exist_ok=True)
    data.to_parquet(str(path))


@pytest.fixture
def snapshot(tmp_path):
    """A snapshot of a repository in the hub's cache: links to files of other names, and the card of the data set."""
    blobs, root = tmp_path / "blobs", tmp_path / "snapshots [1]" / "0123"
    counts = {"train-00000-of-00002": (0, 120, (3,)), "train-00001-of-00002": (120, 80, ()),
              "validation-00000-of-00001": (200, 50, (1,))}  # fmt: skip
    (root / "data").mkdir(parents=True)
    (root / "README.md").write_text("---\ndataset_info: {}\n---\n")
    for i, (name, (first, count, damaged)) in enumerate(counts.items()):
        write(blobs / str(i), first, count, NAMES, damaged)
        (root / "data" / f"{name}.parquet").symlink_to(blobs / str(i))
    return root


def test_a_snapshot_of_the_hub(snapshot, tmp_path):
    assert is_parquet_folder(snapshot)
    source = parquet_images(snapshot, cache_dir=tmp_path / "arrow")
    assert source.classes == sorted(NAMES)
    assert source.labels == DIGITS.target[:250].tolist(), "names of classes are in the files"
    assert (list(source.train), list(source.evaluation)) == (list(range(200)), list(range(200, 250)))
    assert (source.names[3], source.names[121]) == (
        "train-00000-of-00002.parquet[3]",
        "train-00001-of-00002.parquet[1]",
    )
    assert source.notes == ["trained on train, evaluated on validation", "left out, other files by suffix: 1 .md"]
    assert not list(tmp_path.rglob("*.arrow")), "labels are looked at before anything is copied"
    with pytest.warns(UserWarning, match="are copied, once, to") as said:
        assert source.read(7).size == (8, 8)
    copied = [str(warning.message) for warning in said]
    assert [message.split(",")[0] for message in copied] == [f"images of parquet files ({n}" for n in (2, 1)]
    for row in (7, 121, 203):
        assert np.array_equal(np.asarray(source.read(row))[..., 0], (DIGITS.images[row] * 15.9).astype("uint8"))
    assert str(tmp_path / "arrow") in copied[0]
    assert len(list((tmp_path / "arrow").rglob("*.arrow"))) == 2

    with pytest.warns(UserWarning, match="left out: 2 of 250") as said:
        found, notes = without_unreadable(parquet_images(snapshot / "data", cache_dir=tmp_path / "arrow"), 2, None)
    (words,) = (str(warning.message) for warning in said)  # and none on a copy, which is there
    assert "train-00000-of-00002.parquet[3] (" in words
    assert "validation-00000-of-00001.parquet[1] (" in words
    assert (len(found.train), len(found.evaluation), len(notes)) == (199, 49, 3)
    assert found.names == source.names, "wherever one begins"
    assert isinstance(found.load, RowReader), "the copy is not looked for again for each image"
    again = pickle.loads(pickle.dumps(found))  # to workers of a loader
    assert again.load(203) == found.load(203) == encoded(203)["bytes"]
    with pytest.raises(ValueError, match="2 of 250 items cannot be read"):
        without_unreadable(source, 1, None)
    assert LazyImages(found, found.train, np.asarray).fingerprint()["items"] == 199


def test_memory_is_not_filled(snapshot, tmp_path):
    """The table's buffers are parts of a mapped file."""
    before = pa.total_allocated_bytes()
    opened = parquet_images(snapshot, cache_dir=tmp_path / "arrow").opened()
    assert opened.load.rows.data.nbytes > 30_000
    assert pa.total_allocated_bytes() - before < 10_000


@pytest.mark.parametrize("image", ["bytes and path", "bytes"])
def test_files_that_do_not_say_what_their_columns_are(tmp_path, image):
    """As pandas and Spark write them: no names of classes, no word that these are images."""
    for name, first, count in (("train/part-0", 0, 100), ("Valid/part-0", 100, 40)):
        cells = [encoded(i) if image == "bytes and path" else encoded(i)["bytes"] for i in range(first, first + count)]
        table = pa.table({"image": cells, "label": DIGITS.target[first : first + count], "id": ["x"] * count})
        (tmp_path / name).parent.mkdir()
        parquet.write_table(table, tmp_path / f"{name}.parquet")
    named = {} if image == "bytes and path" else {"image_column": "image"}
    source = parquet_images(tmp_path, label_column="label", cache_dir=tmp_path / "a", **named)
    assert (source.classes, len(source.evaluation)) == (list("0123456789"), 40)
    assert source.names[100] == "Valid/part-0.parquet[0]"
    assert source.opened().load(120) == encoded(120)["bytes"]


def test_sets_and_files_that_are_not_clear(tmp_path):
    def files(root, *names):
        for i, name in enumerate(names):
            write(tmp_path / root / f"{name}.parquet", 50 * i, 50)
        return tmp_path / root

    several = files("a", "data/train-00000-of-00001", "data/test-00000-of-00001", "data/validation-00000-of-00001")
    with pytest.raises(ValueError, match="has test and validation; choose one with eval_split"):
        parquet_images(several)
    chosen = parquet_images(several, eval_split="validation")
    assert chosen.notes == ["trained on train, evaluated on validation", "left out, other sets: test"]
    assert chosen.labels[50:] == DIGITS.target[100:150].tolist()
    with pytest.raises(ValueError, match=r"parquet files of train in large/train, small/train: these may be several"):
        parquet_images(files("b", "large/train/0000", "small/train/0000", "small/test/0000"))
    with pytest.raises(ValueError, match=r"train/test-0.parquet contains the names of several sets, train and test"):
        parquet_images(files("c", "train/test-0"))
    with pytest.raises(ValueError, match="but also extra, whose names do not say what they are for"):
        parquet_images(files("d", "train-0", "test-0", "extra-00000-of-00002"))
    with pytest.raises(ValueError, match="has no training set, only the parquet files of cats, dogs"):
        parquet_images(files("e", "cats-0", "dogs-0"))
    alone = parquet_images(files("f", "part-00000", "part-00001"))
    assert (len(alone.train), len(alone.evaluation)) == (80, 20)
    with pytest.warns(UserWarning, match="2 of the 4 files of train are not there: 00000, 00002"):
        parquet_images(files("g", "train-00001-of-00004-0123456789abcdef", "train-00003-of-00004-0123456789abcdef"))


def test_files_that_are_damaged_or_have_no_labels(tmp_path):
    write(tmp_path / "data" / "train-0.parquet", 0, 100)
    held = tmp_path / "data" / "test-0.parquet"
    rows(100, 30, lambda _: -1).to_parquet(str(held))
    with pytest.raises(
        ValueError, match=r"30 of 30 rows of .*test-0\.parquet have no label .*-1 marks a missing label"
    ):
        parquet_images(tmp_path)
    rows(100, 30).rename_column("label", "class").to_parquet(str(held))
    with pytest.raises(ValueError, match=r"test-0\.parquet has no column 'label': the columns are image .*, class"):
        parquet_images(tmp_path)
    write(held, 100, 30, NAMES)
    table = parquet.read_table(held)
    parquet.write_table(table.set_column(1, table.schema.field(1), pa.array([10] * 30)), held)
    with pytest.raises(ValueError, match=r"test-0\.parquet has label 10 in column 'label', and 10 classes"):
        parquet_images(tmp_path)
    os.truncate(held, 1000)
    with pytest.raises(ValueError, match=r"test-0\.parquet cannot be read: it is damaged, or not a parquet file"):
        parquet_images(tmp_path)
    write(held, 100, 30)
    data = bytearray(held.read_bytes())
    data[200:400] = bytes(200)  # among the images; labels and the list of what is where are whole
    held.write_bytes(data)
    source = parquet_images(tmp_path, cache_dir=tmp_path / "arrow")
    with pytest.raises(
        ValueError, match=r"the parquet files in .*data could not be copied to the cache of datasets \("
    ):
        source.opened()


def test_a_table_beside_images_is_no_data_set(tmp_path):
    write_digits(tmp_path / "train", 0, 50)
    parquet.write_table(pa.table({"file_name": ["0.png"]}), tmp_path / "train" / "metadata.parquet")
    assert not is_parquet_folder(tmp_path)
    assert len(ImageFolder(tmp_path)._source().train) == 40


def test_it_trains_on_them(snapshot, tmp_path):
    settings = {"image_size": 8, "augment": "light", "model": TINY, "cache_dir": tmp_path / "arrow"}
    recipe = ImageFolder(snapshot, **settings, training=Training(epochs=1, batch_size=50))
    with pytest.warns(UserWarning, match="left out: 2"):
        task = recipe.task()
    (row,) = train(task, recipe.training, VARIANTS["preconditioned"], 0, tmp_path / "run")
    assert 0 <= row["score"] <= 100
    assert torch.equal(task.eval_data()[0][0], recipe.task().eval_data()[0][0])


def test_counts_that_are_not_those_of_imagenet_are_said(tmp_path):
    picture = encoded(0)
    data = {"image": [picture] * 2000, "label": [i % 1000 for i in range(2000)]}
    for name in ("train", "val"):
        datasets.Dataset.from_dict(data).cast_column("image", datasets.Image()).to_parquet(
            str(tmp_path / f"{name}.parquet")
        )
    notes = DeiTB(tmp_path)._source().notes
    assert notes[-1] == "2,000 images to train and 2,000 to evaluate; ImageNet-1k has 1,281,167 and 50,000"
    with pytest.raises(ValueError, match="has 1000 classes, and classes=10 were expected"):
        DeiTB(tmp_path, classes=10)._source()


def test_a_missing_package_is_named(snapshot, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert call("train", "image_folder", "--data-dir", str(snapshot)) == 2
    said = capsys.readouterr().err
    assert f"what is in the parquet files of {snapshot} needs: pip install 'conditioned-attention[datasets]'" in said
