"""Data sets that `datasets` has saved: images with labels."""

import io
import pickle
import sys
import unicodedata

import numpy as np
import pytest
from PIL import Image

from conditioned_attention.experiments.data.images.saved import saved_images
from conditioned_attention.experiments.data.images.source import without_unreadable
from conditioned_attention.experiments.data.saved import is_saved_dataset
from conditioned_attention.experiments.recipes.image_folder import ImageFolder
from conditioned_attention.experiments.training.loop import train
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from tests.experiments.recipes.test_image_folder import TINY
from tests.test_cli import call

datasets = pytest.importorskip("datasets")
from sklearn.datasets import load_digits  # noqa: E402  (after the skip)

DIGITS = load_digits()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def encoded(i, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray((DIGITS.images[i] * 15.9).astype("uint8")).save(file, kind)
    return {"bytes": file.getvalue(), "path": None}


def rows(first, count, label=int, damaged=()):
    """A Dataset of digits; the images at ``damaged`` are cut off."""
    picture = [encoded(i) for i in range(first, first + count)]
    for i in damaged:
        picture[i] = {"bytes": picture[i]["bytes"][:60], "path": None}
    data = {"image": picture, "label": [label(DIGITS.target[i]) for i in range(first, first + count)]}
    return datasets.Dataset.from_dict(data).cast_column("image", datasets.Image())


def save(path, **splits):
    datasets.DatasetDict(splits).save_to_disk(str(path))
    return path


@pytest.mark.parametrize("name", ["test", "validation", "valid", "DEV"])
def test_train_and_evaluation(tmp_path, name):
    source = saved_images(save(tmp_path / "d", train=rows(0, 200), **{name: rows(200, 50)}))
    assert source.classes == list("0123456789")
    assert (list(source.train), list(source.evaluation)) == (list(range(200)), list(range(200, 250)))
    assert source.names[203] == f"{name}[3]"
    assert source.labels == DIGITS.target[:250].tolist()
    assert np.array_equal(np.asarray(source.read(203))[..., 1], (DIGITS.images[203] * 15.9).astype("uint8"))


def test_one_without_splits(tmp_path):
    rows(0, 200).save_to_disk(str(tmp_path / "d"))
    source = saved_images(tmp_path / "d")
    assert (len(source.train), len(source.evaluation)) == (160, 40)
    assert set(source.train).isdisjoint(source.evaluation)
    assert is_saved_dataset(tmp_path / "d")
    assert not is_saved_dataset(tmp_path)


def test_class_labels_and_strings(tmp_path):
    names = [f"digit {i}" for i in range(10)]
    features = rows(0, 1).features.copy()
    features["label"] = datasets.ClassLabel(names=[*names, "never seen"])
    source = saved_images(save(tmp_path / "a", train=rows(0, 100).cast(features), test=rows(100, 30).cast(features)))
    assert source.classes == names, "classes that occur"
    strings = saved_images(save(tmp_path / "b", train=rows(0, 100, "n{}".format), test=rows(100, 30, "n{}".format)))
    assert strings.classes == [f"n{i}" for i in range(10)]
    assert strings.labels == source.labels == DIGITS.target[:130].tolist()


def test_rows_in_another_order(tmp_path):
    """A saved selection keeps an index beside the table."""
    order = list(range(99, -1, -1))
    source = saved_images(save(tmp_path / "d", train=rows(0, 100).select(order), test=rows(100, 30)))
    assert source.labels[:100] == DIGITS.target[order].tolist()
    assert np.array_equal(np.asarray(source.read(1))[..., 0], (DIGITS.images[98] * 15.9).astype("uint8"))


def test_columns_are_found_or_asked_for(tmp_path):
    def both(change, name):
        return save(tmp_path / name, train=change(rows(0, 100)), test=change(rows(100, 30)))

    two = both(lambda d: d.add_column("weight", range(len(d))), "two")
    words = r"label_column is not clear, name one: the columns are image \(.*\), label \(int64\), weight \(int64\)"
    with pytest.raises(ValueError, match=words):
        saved_images(two)
    assert saved_images(two, label_column="label").classes == list("0123456789")
    with pytest.raises(ValueError, match=r"label_column='class' is not there: the columns are image"):
        saved_images(two, label_column="class")
    with pytest.raises(ValueError, match=r"label_column='image' must hold class labels, integers or strings"):
        saved_images(two, label_column="image")
    with pytest.raises(ValueError, match=r"image_column='label' must hold images: the columns are image"):
        saved_images(two, image_column="label", label_column="label")
    with pytest.raises(ValueError, match=r"image_column is not clear"):
        saved_images(both(lambda d: d.remove_columns("image"), "none"))
    named = both(lambda d: d.rename_columns({"image": "img", "label": "fine"}).add_column("text", ["x"] * len(d)), "n")
    features = datasets.load_from_disk(str(named))["train"].features
    assert saved_images(named, label_column="fine").labels == DIGITS.target[:130].tolist()
    features["fine"] = datasets.ClassLabel(num_classes=10)
    typed = both(lambda d: datasets.load_from_disk(str(named))["train"].cast(features), "typed")
    assert saved_images(typed).classes == list("0123456789"), "the only one of class labels"


def test_wrong_splits_and_labels(tmp_path):
    with pytest.raises(ValueError, match="has no training set, named train or training, only test"):
        saved_images(save(tmp_path / "a", test=rows(0, 30)))
    several = save(tmp_path / "b", train=rows(0, 100), validation=rows(100, 30), test=rows(130, 40))
    with pytest.raises(ValueError, match="has validation and test; choose one with eval_split"):
        saved_images(several)
    assert len(saved_images(several, eval_split="test").evaluation) == 40
    with pytest.raises(ValueError, match="classes of test that are not in train: 10, 11"):
        saved_images(save(tmp_path / "c", train=rows(0, 50), test=rows(50, 20, lambda t: int(t) + 2)))
    hidden = rows(100, 30, lambda t: None)
    hidden = hidden.cast_column("label", datasets.Value("int64"))
    with pytest.raises(ValueError, match="30 of 30 rows of split 'test' have no label in column 'label'"):
        saved_images(save(tmp_path / "d", train=rows(0, 100), test=hidden))
    with pytest.raises(ValueError, match="split 'test' has no column 'label'"):
        saved_images(save(tmp_path / "e", train=rows(0, 100), test=rows(100, 30).remove_columns("label")))


def test_names_of_splits(tmp_path):
    source = saved_images(save(tmp_path / "a", Training=rows(0, 100), Testing=rows(100, 30)))
    assert (len(source.train), len(source.evaluation)) == (100, 30)
    path = save(tmp_path / "b", train=rows(0, 100), test=rows(100, 30), extra=rows(130, 40))
    with pytest.raises(ValueError, match="has train, test, but also extra, whose names do not say what they are for"):
        saved_images(path)
    chosen = saved_images(path, eval_split="test")
    assert chosen.notes == ["trained on train, evaluated on test", "left out, other splits: extra"]
    with pytest.raises(ValueError, match="has no training set, only the splits corpus"):
        saved_images(save(tmp_path / "c", corpus=rows(0, 100)))


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (
            lambda t: int(t) - 1,
            r"11 of 100 rows of split 'train' have no label in column 'label' \(-1 marks a missing label",
        ),
        (lambda t: "" if t == 3 else str(t), r"12 of 100 rows of split 'train' have no label in column 'label'$"),
    ],
)
def test_rows_that_say_that_they_have_no_label(tmp_path, label, words):
    with pytest.raises(ValueError, match=words):
        saved_images(save(tmp_path / "d", train=rows(0, 100, label), test=rows(100, 30, label)))


def test_accents_written_in_two_ways_are_one_class(tmp_path):
    forms = iter(["NFC", "NFD"] * 100)
    source = saved_images(
        save(tmp_path / "d", train=rows(0, 100, lambda t: unicodedata.normalize(next(forms), f"é{t}")))
    )
    assert source.classes == [f"é{n}" for n in range(10)]


def test_numbers_of_rows_as_labels(tmp_path):
    numbers = iter(range(100))
    rows(0, 100, lambda t: next(numbers)).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(ValueError, match=r"each of the 100 classes has one image\. Are the labels numbers of images"):
        saved_images(tmp_path / "d")


def test_damaged_rows_are_left_out_by_name(tmp_path):
    path = save(tmp_path / "d", train=rows(0, 200, damaged=(3, 77)), test=rows(200, 50, damaged=(1,)))
    with pytest.warns(
        UserWarning, match=r"left out: 3 of 250 items cannot be read: train\[3\] \(.*train\[77\] .*test\[1\]"
    ):
        source, notes = without_unreadable(saved_images(path), 10, None)
    assert (len(source.train), len(source.evaluation), len(notes)) == (198, 49, 4)
    with pytest.raises(ValueError, match="3 of 250 items cannot be read"):
        without_unreadable(saved_images(path), 2, None)


def test_a_row_without_an_image_is_unreadable(tmp_path):
    data = datasets.Dataset.from_dict({"image": [None, *(encoded(i) for i in range(99))], "label": [0] * 50 + [1] * 50})
    data = data.cast_column("image", datasets.Image())
    with pytest.warns(UserWarning, match=r"train\[0\] \(ValueError: the row has no image\)"):
        without_unreadable(saved_images(save(tmp_path / "d", train=data, test=data.select(range(1, 100)))), 10, None)


def test_images_that_are_named_by_path_are_watched(tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(100)]
    for i, file in enumerate(files):
        file.write_bytes(encoded(i)["bytes"])
    image = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"image": image, "label": datasets.Value("int64")})
    data = {"image": [{"bytes": None, "path": str(file)} for file in files], "label": [0, 1] * 50}
    datasets.Dataset.from_dict(data, features).save_to_disk(str(tmp_path / "d"))
    before = saved_images(tmp_path / "d", "image")
    assert saved_images(tmp_path / "d", "image").stamp == before.stamp
    files[3].write_bytes(encoded(103)["bytes"])
    assert saved_images(tmp_path / "d", "image").stamp != before.stamp


def test_it_trains_and_goes_to_loader_workers(tmp_path):
    path = save(tmp_path / "d", train=rows(0, 200, damaged=(3,)), test=rows(200, 50))
    recipe = ImageFolder(path, image_size=8, augment="light", model=TINY, training=Training(epochs=1, batch_size=50))
    with pytest.warns(UserWarning, match="left out: 1"):
        task = recipe.task()
    assert len(task.notes) == 2
    (row,) = train(task, recipe.training, VARIANTS["preconditioned"], 0, tmp_path / "run")
    assert 0 <= row["score"] <= 100
    data, collate = pickle.loads(pickle.dumps((task.eval_data(), task.collate)))  # loader workers may be spawned
    assert collate([data[i] for i in range(25)])[0].shape == (25, 3, 8, 8)


def test_a_missing_package_is_named(tmp_path, monkeypatch, capsys):
    path = save(tmp_path / "d", train=rows(0, 20), test=rows(20, 10))
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert call("train", "image_folder", "--data-dir", str(path)) == 2
    said = capsys.readouterr().err
    assert f"error: the saved data set {path} needs: pip install 'conditioned-attention[datasets]'" in said
    assert "Traceback" not in said


def test_a_data_set_that_cannot_be_loaded(tmp_path):
    path = save(tmp_path / "d", train=rows(0, 20), test=rows(20, 10))
    (file,) = (path / "train").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"the saved data set .* cannot be loaded, it is damaged or empty"):
        saved_images(path)
    rows(0, 20).select([]).save_to_disk(str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"the saved data set .* cannot be loaded, it is damaged or empty"):
        saved_images(tmp_path / "none")
