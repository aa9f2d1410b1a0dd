"""Class folders of real image files: what is accepted, what is read, what is refused, and that it trains."""

import io
import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import unicodedata
import warnings
import zlib
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, UnidentifiedImageError

from conditioned_attention.experiments.commands import compare_recipe
from conditioned_attention.experiments.data.images.folder import image_folder
from conditioned_attention.experiments.data.images.read import read_rgb
from conditioned_attention.experiments.data.images.source import LazyImages, without_unreadable
from conditioned_attention.experiments.data.images.transforms import ImageTransform
from conditioned_attention.experiments.models.timm_model import TimmModel
from conditioned_attention.experiments.models.vision_transformer import VisionTransformer
from conditioned_attention.experiments.recipes.image_folder import VIT_S, ImageFolder
from conditioned_attention.experiments.recipes.registry import settings_of
from conditioned_attention.experiments.training.loop import train
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from tests.experiments.pictures import digit, photograph, write_broken, write_digits
from tests.test_cli import call

TINY = VisionTransformer(patch_size=4, hidden_size=32, layers=2, heads=4)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def digits(tmp_path):
    """100 digits to train on, 40 to evaluate."""
    write_digits(tmp_path / "digits" / "train", 0, 100)
    write_digits(tmp_path / "digits" / "val", 400, 40)
    return tmp_path / "digits"


def recipe(folder, **changes):
    settings = {"image_size": 8, "augment": "none", "model": TINY, "training": Training(epochs=2, batch_size=40)}
    return ImageFolder(folder, **{**settings, **changes})


def test_train_and_val(digits):
    source = image_folder(digits)
    assert source.classes == list("0123456789")
    assert (len(source.train), len(source.evaluation)) == (100, 40)
    assert all(source.names[row].startswith(f"train/{source.labels[row]}/") for row in source.train)
    assert all(source.names[row].startswith(f"val/{source.labels[row]}/") for row in source.evaluation)
    row = source.names.index("train/0/0.png")
    assert np.array_equal(np.asarray(source.read(row))[..., 0], np.asarray(digit(0)))
    assert pickle.loads(pickle.dumps(source)) == source, "loader workers may be spawned"


@pytest.mark.one_in(7)
@pytest.mark.parametrize("name", ["val", "test", "validation", "valid", "dev", "Testing", "EVAL"])
@pytest.mark.parametrize("training", ["train", "Training", "TRAIN"])
def test_names_of_the_sets(digits, name, training):
    (digits / "val").rename(digits / name)
    (digits / "train").rename(digits / training)
    source = image_folder(digits)
    assert (len(source.train), len(source.evaluation), len(source.classes)) == (100, 40, 10)
    assert source.notes[0] == f"trained on {training}, evaluated on {name}"


def test_other_sets_are_left_out_only_where_one_is_chosen(digits):
    write_digits(digits / "extra", 520, 60)
    (digits / "docs").mkdir()
    with pytest.raises(ValueError, match=r"has train, val, but also extra, whose names do not say what they are for"):
        image_folder(digits)
    source = image_folder(digits, "VAL")
    assert len(source.evaluation) == 40
    assert source.notes == ["trained on train, evaluated on val", "left out, beside these sets: extra, docs"]
    assert len(image_folder(digits, "extra").evaluation) == 60


def test_which_of_several_must_be_said(digits):
    write_digits(digits / "test", 520, 60)
    with pytest.raises(ValueError, match=r"has test and val; choose one with eval_split"):
        image_folder(digits)
    assert len(image_folder(digits, "test").evaluation) == 60
    with pytest.raises(ValueError, match=r"eval_split='dev' is not in .*; valid are test, val"):
        image_folder(digits, "dev")


def test_classes_alone_are_split_once_and_for_all(digits):
    source = image_folder(digits / "train")
    assert (len(source.train), len(source.evaluation)) == (80, 20)
    assert sorted([*source.train, *source.evaluation]) == list(range(100))
    for label in range(10):
        held = sum(source.labels[row] == label for row in source.evaluation)
        assert held == pytest.approx(source.labels.count(label) / 5, abs=1)
    assert image_folder(digits / "train") == source
    (digits / "val").rename(digits.parent / "elsewhere")
    assert [n.removeprefix("train/") for n in image_folder(digits).names] == source.names, "a lone train is the same"


def test_other_files_are_ignored_and_suffixes_in_capitals_are_not(digits):
    before = image_folder(digits)
    folder = digits / "train" / "3"
    for name in ("Thumbs.db", "README.txt", ".DS_Store", "._0.png"):
        (folder / name).write_text("x")
    (digits / "train" / ".cache").mkdir()
    (digits / "LICENSE").touch()
    assert image_folder(digits) == before
    (folder / "deeper").mkdir()
    photograph().save(folder / "deeper" / "CHINA.JPEG")
    assert set(image_folder(digits).names) - set(before.names) == {"train/3/deeper/CHINA.JPEG"}


def test_links(digits, tmp_path):
    before = image_folder(digits)
    (digits / "val").rename(tmp_path / "elsewhere")
    (digits / "val").symlink_to(tmp_path / "elsewhere")
    assert image_folder(digits) == before
    (digits / "train" / "1" / "up").symlink_to(digits / "train" / "1")
    assert image_folder(digits) == before, "a link back up ends there"
    for n, place in enumerate((digits, digits / "train", digits / "train" / "2", tmp_path, tmp_path / "elsewhere")):
        (digits / "val" / "1" / f"link{n}").symlink_to(place)
    found = image_folder(digits)
    assert found == before, "a link into the data, or above it, would give pictures a second class"
    (line,) = [note for note in found.notes if "link" in note]
    assert "train/1/up, val/1/link0, val/1/link1, val/1/link2, val/1/link3, val/1/link4" in line
    shutil.copytree(digits / "train" / "0", tmp_path / "more")
    (digits / "val" / "0" / "more").symlink_to(tmp_path / "more")
    (digits / "val" / "1" / "more").symlink_to(tmp_path / "more")
    assert len(image_folder(digits).names) == len(before.names) + 11, "out of the data they are followed, once"


@pytest.mark.parametrize("link", ["train/kitty", "val"])
def test_a_set_or_class_that_is_another_one_under_another_name(digits, link):
    place = digits / link
    if place.exists():
        shutil.rmtree(place)
    else:
        (digits / "val" / place.name).mkdir()
    place.symlink_to(digits / "train" / ("3" if "/" in link else ""))
    with pytest.raises(
        ValueError, match=r"class folders without images: .*; left out, links to folders that are already part"
    ):
        image_folder(digits)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN"])
def test_thumbnails_and_what_was_deleted_are_no_images(digits, name):
    before = image_folder(digits)
    for place in (digits, digits / "train", digits / "train" / "3", digits / "val" / "1"):
        write_digits(place / name, 0, 20)
        digit(0).save(place / name / "a.png")
    found = image_folder(digits)
    assert found == before
    assert f"left out, folders that systems make: {name}, train/{name}, train/3/{name}, val/1/{name}" in found.notes


def test_what_else_is_left_out_is_said(digits):
    digit(0).save(digits / "train" / "loose.png")
    for name in ("a.heic", "b.HEIC", "c.txt", "d"):
        (digits / "train" / "4" / name).touch()
    assert image_folder(digits).notes[1:] == [
        "left out, images beside the folders of classes: train/loose.png",
        "left out, other files by suffix: 1 without a suffix, 2 .heic, 1 .txt",
    ]


def test_accents_are_written_in_two_ways(digits):
    """As a folder copied from a Mac is, and one made here."""
    one, two = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    before = image_folder(digits)
    (digits / "train" / "3").rename(digits / "train" / one)
    (digits / "val" / "3").rename(digits / "val" / two)
    source = image_folder(digits)
    assert source.classes == [*"012456789", one]
    assert sorted(Counter(source.labels).values()) == sorted(Counter(before.labels).values())
    (digits / "train" / "4").rename(digits / "train" / two)
    with pytest.raises(ValueError, match="has two folders 'é' whose accents are written in two ways"):
        image_folder(digits)


def test_one_class_and_numbers_of_images_as_classes(digits, tmp_path):
    write_digits(tmp_path / "one", 0, 30)
    for folder in (tmp_path / "one").iterdir():
        if folder.name != "3":
            shutil.rmtree(folder)
    for number in range(10):
        digit(0).save(tmp_path / "one" / "3" / f"{number}.png")
    with pytest.raises(ValueError, match="there is one class only, 3: nothing to tell apart"):
        without_unreadable(image_folder(tmp_path / "one"), 10, None)
    for split, place in ((split, digits / split / str(n)) for split in ("train", "val") for n in range(10)):
        for file in sorted(place.iterdir())[1 + (place.name == "7" and split == "train") :]:
            file.unlink()
    with pytest.warns(UserWarning, match="9 of 10 classes have one training image: are the labels numbers of images"):
        _, notes = without_unreadable(image_folder(digits), 10, None)
    assert any("9 of 10 classes have one training image" in note for note in notes)
    (digits / "train" / "7" / sorted(os.listdir(digits / "train" / "7"))[0]).unlink()
    with pytest.raises(ValueError, match=r"each of the 10 classes has one image\. Are the labels numbers of images"):
        image_folder(digits / "train")


def _move(folder, to):
    to.mkdir(parents=True)
    for part in ("train", "val"):
        (folder / part).rename(to / part)
    (to.parent / "dog").mkdir()
    to.parent.rename(folder / "a")
    for part in ("cat", "dog"):
        (folder / "a" / part).rename(folder / part)
    (folder / "a").rmdir()


def _remove(folder):
    for file in folder.iterdir():
        file.unlink()


@pytest.mark.one_in(5)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: _remove(d / "train" / "3"), r"train: class folders without images: 3 \(1 of 10\); known suffixes"),
        (lambda d: _remove(d / "val" / "7"), r"val: class folders without images: 7"),
        (lambda d: (d / "train" / "7").rename(d / "train" / "seven"), "7 only in val, seven not in val"),
        (lambda d: (d / "train").rename(d / "first"), "has no training set, named train or training, only first, val"),
        (
            lambda d: (d / "train").rename(d / "train2"),
            "has no training set, named train or training, only train2, val",
        ),
        (lambda d: [f.rename(d / f"t{f.name}") for f in (d / "train").iterdir()], "has train, val, but also t0"),
        (lambda d: [shutil.rmtree(f) for f in (d / "train").iterdir()], "train has no class folders"),
        (lambda d: (d / "train" / "7").rename(d / "more"), "has train, val, but also more, whose names do not say"),
        (
            lambda d: (d / "val").rename(d / "Training"),
            "has several training sets, Training and train; there can be only one",
        ),
        (
            lambda d: _move(d, d.parent / "a" / "cat"),
            "cat would be read as a class, but it contains train, val, the name of a set",
        ),
    ],
)
def test_a_wrong_tree(digits, change, words):
    change(digits)
    with pytest.raises(ValueError, match=words):
        image_folder(digits)


def test_no_tree(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        image_folder(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no class folders; images go to"):
        image_folder(tmp_path / "empty")
    with pytest.raises(ValueError, match="eval_split='val' needs a training set beside it"):
        image_folder(tmp_path / "empty", "val")


def test_broken_files_are_left_out_by_name(digits):
    whole = image_folder(digits)
    broken = [f"train/5/{name}" for name in write_broken(digits / "train" / "5")]
    with pytest.warns(UserWarning, match="left out: 5 of 145 items cannot be read: train/5/dangling.png") as warned:
        source, notes = without_unreadable(image_folder(digits), 10, None)
    assert len(warned) == 1
    assert notes[0] == "trained on train, evaluated on val"
    assert len(notes) == 6
    notes = notes[1:]
    assert all(name in note for name, note in zip(broken, notes))
    reasons = (
        "FileNotFoundError",
        "UnidentifiedImageError",
        "IsADirectoryError",
        "UnidentifiedImageError",
        "truncated",
    )
    assert all(reason in note for reason, note in zip(reasons, notes))
    kept = [source.names[row] for row in source.train]
    assert sorted(kept) == sorted(whole.names[row] for row in whole.train)
    with pytest.raises(ValueError, match=r"5 of 145 items cannot be read: .*max_unreadable=4"):
        without_unreadable(image_folder(digits), 4, None)


def test_a_changed_file_makes_a_new_scan(digits, tmp_path):
    cache = tmp_path / "cache" / "conditioned-attention"

    def scan():
        without_unreadable(image_folder(digits), 10, None)
        return len(list(cache.glob("*.json")))

    assert [scan(), scan()] == [1, 1]
    os.utime(digits / "val" / "1" / next(iter(os.listdir(digits / "val" / "1"))), ns=(1, 1))
    assert scan() == 2


def test_a_class_whose_every_image_is_broken(digits):
    for file in list((digits / "train" / "4").iterdir())[3:]:
        file.unlink()
    for file in (digits / "train" / "4").iterdir():
        file.write_bytes(b"x")
    with (
        pytest.warns(UserWarning, match="left out: 3"),
        pytest.raises(ValueError, match="no readable training image of 4"),
    ):
        without_unreadable(image_folder(digits), 10, None)


def test_a_file_that_breaks_later_is_named(digits):
    source, _ = without_unreadable(image_folder(digits), 10, None)
    data = LazyImages(source, source.train, ImageTransform(8, "none"))
    (digits / source.names[source.train[7]]).write_bytes(b"x")
    assert data[6][0].shape == (3, 8, 8)
    with pytest.raises(RuntimeError, match=rf"{source.names[source.train[7]]} could be read .* the run resumes"):
        data[7]
    photograph().save(digits / source.names[source.train[8]])
    with pytest.raises(RuntimeError, match=rf"{source.names[source.train[8]]} has changed since the data were scanned"):
        data[8]


def _pixels(path):
    picture = read_rgb(path)
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(int)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif", "ppm", "tif"])
def test_formats(tmp_path, suffix):
    photograph().resize((64, 48)).save(tmp_path / f"a.{suffix}")
    difference = _pixels(tmp_path / f"a.{suffix}") - np.asarray(photograph().resize((64, 48)))
    assert abs(difference).mean() < (0.1 if suffix in ("png", "bmp", "ppm", "tif") else 12)


@pytest.mark.parametrize("mode", ["L", "1", "RGBA", "LA", "P", "CMYK", "YCbCr"])
def test_modes(tmp_path, mode):
    """Each is the photograph again, up to what the mode can hold."""
    small = photograph().resize((64, 48))
    path = tmp_path / {"CMYK": "a.jpg", "YCbCr": "a.jpg"}.get(mode, "a.png")
    small.convert(mode).save(path, quality=95)
    expected = small.convert("L").convert("RGB") if mode in ("L", "LA", "1") else small
    assert abs(_pixels(path) - np.asarray(expected)).mean() < {"1": 128, "P": 20}.get(mode, 6)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    grey = np.asarray(digit(3)).astype(np.uint16)
    Image.fromarray(grey * 257).save(tmp_path / f"a.{suffix}")
    assert Image.open(tmp_path / f"a.{suffix}").mode.startswith("I")
    assert (_pixels(tmp_path / f"a.{suffix}") == grey[..., None]).all()


def test_pixels_without_a_range(tmp_path):
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "f.tif")
    with pytest.raises(ValueError, match="floating-point pixels have no fixed range"):
        read_rgb(tmp_path / "f.tif")
    Image.fromarray(np.full((8, 8), 2**20, dtype=np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(ValueError, match="must be within 16 bits, got 1048576 to 1048576"):
        read_rgb(tmp_path / "i.tif")


def test_a_picture_that_starts_a_program_is_refused(tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    started = []
    monkeypatch.setattr(subprocess, "check_call", lambda *args, **kwargs: started.append(args))
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    photograph().resize((64, 48)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(OSError, match="cannot identify"):  # what the program has not written
        Image.open(tmp_path / "a.jpg").load()
    assert started, "else nothing is shown below"
    started.clear()
    for file in (tmp_path / "a.jpg", io.BytesIO((tmp_path / "a.jpg").read_bytes())):
        with pytest.raises(UnidentifiedImageError):
            read_rgb(file)
    assert not started


@pytest.mark.parametrize(
    ("size", "words"),
    [((2, 60_000), "one side may be 100 times the other, got 2 × 60,000"), ((60_000, 9_000), "89,478,485 pixels")],
)
def test_a_small_file_of_an_enormous_picture_is_refused(tmp_path, monkeypatch, size, words):
    """By what its header says: no pixel is decoded."""
    width, height = size
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(486))), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in parts]
    file = tmp_path / "a.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as somebody may do for pictures of his own
    with pytest.raises(ValueError, match=words):
        read_rgb(file)


def test_a_palette_with_transparency_is_quiet(tmp_path):
    picture = photograph().resize((16, 16)).convert("P")
    picture.save(tmp_path / "a.png", transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (_pixels(tmp_path / "a.png") == np.asarray(picture.convert("RGB"))).all()


def _seed():
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 (the global generator is what timm draws from)


def test_augmentations():
    picture = photograph()
    evaluation = ImageTransform(64, "none")(picture)
    assert evaluation.shape == (3, 64, 64)
    for augment in ("light", "strong"):
        transform = ImageTransform(64, augment)
        views = [transform(picture) for _ in range(4)]
        assert all(view.shape == (3, 64, 64) for view in views)
        assert not torch.equal(views[0], views[1])
        _seed()
        first = transform(picture)
        _seed()
        assert torch.equal(transform(picture), first), "everything is drawn from the global generators"
    names = str(ImageTransform(64, "strong").steps)
    assert all(word in names for word in ("RandAugment", "RandomErasing(p=0.25, mode=pixel", "bicubic"))
    assert "RandAugment" not in str(ImageTransform(64, "light").steps)
    assert "size=73" in str(ImageTransform(64, "none").steps), "64 / 0.875"


def test_the_strongest_posterisation_is_black_and_no_error():
    """One draw in a few hundred: 0 bits are kept, which Pillow refuses since version 13."""
    step = next(step for step in ImageTransform(64, "strong").steps.transforms if hasattr(step, "ops"))
    (posterize,) = (op for op in step.ops if op.name.startswith("Posterize"))
    posterize.prob, posterize.magnitude_std = 1.0, 0.0
    levels = []
    for posterize.magnitude in (0, 9, 10):
        levels.append(len(np.unique(np.asarray(posterize(photograph())))))
    assert levels == [16, 2, 1]
    assert np.asarray(posterize(photograph())).max() == 0


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"augment": "wild"}, "augment='wild' is unknown; valid are 'none', 'light', 'strong'"),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
        ({"timm_model": "vit_tinny_patch16_224", "model": VIT_S}, r"unknown to timm .*vit_tiny_patch16_224"),
        ({"timm_model": "vit_tiny_patch16_224"}, "takes the place of model, which is set too"),
        ({"label_column": "label"}, "are for saved data sets and parquet files, and .* is neither"),
    ],
)
def test_wrong_settings(digits, changes, words):
    with pytest.raises(ValueError, match=words):
        recipe(digits, **changes).task()


@pytest.mark.parametrize(
    ("name", "takes_size"), [("vit_tiny_patch16_224", True), ("xcit_nano_12_p16_224", True), ("test_resnet", False)]
)
def test_models_of_timm(name, takes_size):
    model = TimmModel(name).build(32, 3, 7)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    if takes_size:
        assert model.patch_embed.num_patches == 4


def test_the_task(digits):
    task = recipe(digits, image_size=16, augment="light").task()
    image, label = task.train_data()[0]
    assert image.shape == (3, 16, 16)
    assert label in range(10)
    assert task.probe().shape == (8, 3, 16, 16)
    labels = [task.eval_data()[i][1] for i in range(8)]
    assert len(set(labels)) > 3, "the monitor's samples are of many classes"
    assert task.notes == ["trained on train, evaluated on val"]
    assert task.data_in_words()[0] == "10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9; 100 to train, 40 to evaluate"
    images, labels = task.collate([task.train_data()[i] for i in range(4)])
    assert task.build_model()(images).logits.shape == (4, 10)
    assert task.loss(task.build_model(), (images, labels)).item() > 0


def test_tuning_leaves_the_evaluation_set_alone(digits):
    full, tuning = recipe(digits).task(), recipe(digits).task(tuning=True)
    rows = set(tuning.train_data().rows), set(tuning.eval_data().rows)
    assert (len(rows[0]), len(rows[1])) == (90, 10)
    assert rows[0] | rows[1] == set(full.train_data().rows)
    assert not (rows[0] | rows[1]) & set(full.eval_data().rows)
    assert tuning.eval_data().transform is not tuning.train_data().transform
    again = recipe(digits).task(tuning=True)
    assert again.eval_data().rows == tuning.eval_data().rows


@pytest.mark.slow
def test_it_learns_from_files_some_of_which_are_broken(digits, tmp_path):
    write_digits(digits / "train", 100, 300)
    write_broken(digits / "train" / "0")
    with pytest.warns(UserWarning, match="left out: 5"):
        task = recipe(digits).task()
    rows = list(
        train(task, Training(epochs=6, batch_size=40, lr=4e-3), VARIANTS["preconditioned"], 0, tmp_path / "run")
    )
    assert rows[-1]["score"] > 50, "chance is 10"
    assert rows[-1]["train_loss"] < 0.7 * rows[0]["train_loss"]


@pytest.mark.slow
def test_a_comparison_with_a_model_of_timm(tmp_path):
    """Strong augmentation, two variants, and the cost of a step."""
    write_digits(tmp_path / "digits" / "train", 0, 60)
    write_digits(tmp_path / "digits" / "val", 60, 30)
    training = Training(epochs=1, batch_size=20, monitor_every=0)
    chosen = recipe(
        tmp_path / "digits", image_size=32, augment="strong", timm_model="test_vit", model=VIT_S, training=training
    )
    result = compare_recipe(chosen, ["baseline", "preconditioned"], 1, tmp_path / "runs", progress=False)
    assert not result.failures
    assert result.cost["variants"].keys() == {"baseline", "preconditioned"}


def test_settings_do_not_say_where_data_lie(digits, tmp_path):
    settings = settings_of(recipe(digits, cache_dir=tmp_path, max_unreadable=3))
    assert settings["recipe"] == "image_folder"
    assert settings["image_size"] == 8
    assert not {"data_dir", "cache_dir", "max_unreadable"} & settings.keys()
    json.dumps(settings)


def test_the_command(digits, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_broken(digits / "train" / "0")
    command = ["train", "image_folder", "--data-dir", str(digits), "--image-size", "8", "--patch-size", "4"]
    tiny = ["--hidden-size", "16", "--layers", "1", "--heads", "4", "--epochs", "1", "--cache-dir", str(tmp_path / "c")]
    with pytest.warns(UserWarning, match="left out: 5"):
        assert call(*command, *tiny) == 0
    assert list((tmp_path / "c").glob("scan-*.json"))
    assert call(*command, *tiny, "--max-unreadable", "2") == 2
    assert "5 of 145 items cannot be read" in capsys.readouterr().err
    assert call("train", "image_folder") == 2
    assert "--data-dir" in capsys.readouterr().err
