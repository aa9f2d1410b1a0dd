"""Emoji by two artists, and small images with DeiT's recipe: what is read, drawn and refused."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torchvision.transforms import RandomCrop

from conditioned_attention.experiments.data.images.arrays import Augmented, ImageArrays
from conditioned_attention.experiments.data.images.read import read_on_white
from conditioned_attention.experiments.recipes.emoji import Emoji
from conditioned_attention.experiments.recipes.small_images import FashionMNIST
from conditioned_attention.experiments.training.batches import training_batches
from conditioned_attention.experiments.training.chance import seeded
from conditioned_attention.experiments.training.settings import Training
from tests.experiments.pictures import write_emoji
from tests.test_cli import call


@pytest.fixture
def packages(tmp_path):
    return write_emoji(tmp_path / "node_modules")


def drawn(packages, artist, name):
    return packages / f"emoji-datasource-{artist}" / "img" / artist / "64" / name


def sets(packages, **changes):
    task = Emoji(packages, **changes).task()
    return task.train_data(), task.eval_data(), task


def test_from_one_artist_to_the_other(packages):
    train, evaluation, task = sets(packages)
    assert (len(train), len(evaluation)) == (20, 20)
    assert task.about == "4 classes: kind 0, kind 1, kind 2, kind 3"
    assert train.labels.tolist() == [i % 4 for i in range(20)]
    assert evaluation.labels.tolist() != train.labels.tolist()
    assert evaluation.labels.sort().values.tolist() == train.labels.sort().values.tolist()
    back = sets(packages, split="twitter_to_google")
    assert back[0].origin != train.origin
    assert torch.equal(back[0].labels, train.labels)
    assert task.notes == ["google to twitter; 20 emoji, without 0 drawn like another"]
    for numbers, mean in ((train.images, 0), (train.images.square(), 1)):
        torch.testing.assert_close(numbers.mean((0, 2, 3)), torch.full((3,), float(mean)), atol=1e-3, rtol=1e-3)


def test_pixels_are_those_of_the_drawing_on_white(packages):
    pixels = np.asarray(read_on_white(drawn(packages, "google", "3.png")).convert("RGB"))
    assert Image.open(drawn(packages, "google", "3.png")).mode == "P"
    assert (pixels[:8] == 255).all()
    assert pixels[10, 10].tolist() == [160, 30, 0]
    for side in (64, 32):
        train, _, _ = sets(packages, image_size=side)
        mean, std = train.scale
        image = (train.images[3] * std + mean).permute(1, 2, 0)
        step = 64 // side
        expected = torch.from_numpy(pixels.copy()).float().unfold(0, step, step).unfold(1, step, step).mean((3, 4))
        torch.testing.assert_close(image, expected, atol=0.51, rtol=0)


def test_labels_and_skin_tones(packages):
    assert len(sets(packages, labels="subcategory")[2].classes) == 8
    train, _, _ = sets(packages, skin_tones=True)
    assert len(train) == 20 + 2 * 4
    assert train.labels.tolist()[:4] == [0, 0, 0, 1]


def which(data):
    """Green is the emoji's own in the drawings of both artists, and in all colours of skin."""
    return {round(float(image[1, 10, 6])) for image in data.images * data.scale[1] + data.scale[0]}


@pytest.mark.parametrize("split", ["google_to_twitter", "unseen_emoji"])
def test_drawings_of_one_emoji_are_on_one_side_while_settings_are_chosen(packages, split):
    task = Emoji(packages, split=split, skin_tones=True).task(tuning=True)
    assert len(which(task.eval_data())) == 2
    assert not which(task.train_data()) & which(task.eval_data())


@pytest.mark.parametrize("skin_tones", [False, True])
def test_unseen_emoji(packages, skin_tones):
    """Both drawings of an emoji, and its variants, are on one side."""
    train, evaluation, _ = sets(packages, split="unseen_emoji", skin_tones=skin_tones)
    assert len(train) + len(evaluation) == 2 * (28 if skin_tones else 20)
    assert len(evaluation) >= 8
    assert len(which(train) | which(evaluation)) == 20
    assert not which(train) & which(evaluation)


def test_copies_are_left_out(packages):
    drawn(packages, "twitter", "7.png").write_bytes(drawn(packages, "twitter", "3.png").read_bytes())
    train, evaluation, task = sets(packages)
    assert (len(train), len(evaluation)) == (19, 19)
    assert task.notes == ["google to twitter; 19 emoji, without 1 drawn like another"]


def test_the_fingerprint_knows_every_pixel(packages):
    first = Emoji(packages).task().fingerprint()
    assert Emoji(packages).task().fingerprint() == first == Emoji(packages, deit=True).task().fingerprint()
    Image.new("RGB", (64, 64), "red").save(drawn(packages, "twitter", "5.png"))
    second = Emoji(packages).task().fingerprint()
    assert second["train"] == first["train"]
    assert second["evaluation"] != first["evaluation"]


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (lambda p: drawn(p, "twitter", "5.png").unlink(), FileNotFoundError, r"5\.png is missing. .*npm install"),
        (lambda p: drawn(p, "google", "5.png").write_bytes(b"PNG"), ValueError, r"5\.png is damaged .*npm install"),
        (
            lambda p: Image.new("RGB", (32, 64)).save(drawn(p, "google", "5.png")),
            ValueError,
            r"64 × 64 pixels, got \(64, 32, 3\)",
        ),
        (
            lambda p: (p / "emoji-datasource-google" / "emoji.json").write_text("[]"),
            ValueError,
            "list different emoji: are they of one version",
        ),
        (
            lambda p: (p / "emoji-datasource-google" / "emoji.json").write_text("["),
            ValueError,
            r"emoji\.json is damaged",
        ),
    ],
)
def test_what_is_missing_or_damaged(packages, damage, error, words):
    damage(packages)
    with pytest.raises(error, match=words):
        sets(packages)


def test_without_the_packages_the_command_says_how_to_get_them(tmp_path, capsys):
    assert call("train", "emoji", "--data-dir", str(tmp_path), "--folder", str(tmp_path / "run")) != 0
    assert "npm install --prefix FOLDER emoji-datasource-google@16.0.0" in " ".join(capsys.readouterr().err.split())


# DeiT's recipe


def grey(channels=1, side=28):
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, channels, side, side)).astype(np.float32))
    scale = torch.full((channels, 1, 1), 70.0), torch.full((channels, 1, 1), 90.0)
    return ImageArrays((pixels - scale[0]) / scale[1], torch.arange(4), scale=scale), pixels


@pytest.mark.parametrize(("side", "shifted"), [(28, True), (32, True), (64, False)])
def test_the_steps_are_timms_with_deits_shift(side, shifted):
    steps = Augmented(grey(3, side)[0]).transform.steps.transforms
    numbers = {"mean": [70 / 255] * 3, "std": [90 / 255] * 3}
    theirs = create_transform(
        side, is_training=True, color_jitter=None, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25, re_mode="pixel",
        interpolation="bicubic", **numbers,
    ).transforms  # fmt: skip
    assert isinstance(steps[0], RandomCrop) == shifted
    assert not shifted or (steps[0].size, steps[0].padding) == ((side, side), 4)
    assert [str(step) for step in steps[shifted:]] == [str(step) for step in theirs[shifted:]]


@pytest.mark.parametrize("channels", [1, 3])
def test_augmented_images(channels):
    arrays, pixels = grey(channels)
    data = Augmented(arrays)
    assert torch.equal(data.pixels.permute(0, 3, 1, 2).float(), pixels), "to the last bit, though they were scaled"
    with seeded("a"):
        first = data[2]
    with seeded("a"):
        again = pickle.loads(pickle.dumps(data))[2]
    with seeded("b"):
        other = data[2]
    assert first[0].shape == (channels, 28, 28)
    assert first[1] == 2
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    data.transform.steps.transforms = data.transform.steps.transforms[3:5]  # no chance: as evaluation sees it
    torch.testing.assert_close(data[2][0], arrays.images[2])


def test_images_whose_pixels_are_not_known_are_refused():
    arrays, _ = grey()
    with pytest.raises(ValueError, match="1 or 3 channels that know how their pixels were scaled"):
        Augmented(ImageArrays(arrays.images, arrays.labels))


def test_a_resumed_run_sees_the_same_batches(packages):
    recipe = Emoji(packages, deit=True, training=Training(batch_size=8))
    task = recipe.task()
    unbroken, resumed = (
        training_batches(task.train_data(), recipe.training, seed=3, collate=task.collate_train) for _ in range(2)
    )
    batches = [next(unbroken) for _ in range(4)]
    resumed.start_at(16)
    for (images, labels), later in zip(batches[2:], resumed):
        assert torch.equal(images, later[0])
        assert torch.equal(labels, later[1])
        torch.testing.assert_close(labels.sum(1), torch.ones(8))
    assert not torch.equal(batches[0][0], batches[2][0])


def test_a_family_trains_by_the_command(packages, tmp_path):
    small = ["--epochs", "1", "--batch-size", "10", "--data-dir", str(packages), "--folder", str(tmp_path / "run")]
    assert call("train", "emoji", "--family", "davit", "--deit", "--variant", "preconditioned", *small) == 0
    settings = json.loads((tmp_path / "run" / "result.json").read_text())["settings"]
    assert settings["family"] == "davit"
    assert settings["deit"] is True


def test_families_of_fashion_mnist():
    with pytest.raises(ValueError, match="deit=True goes with a family, which is not set"):
        FashionMNIST(deit=True)
    model = dataclasses.replace(FashionMNIST().model, layers=2)
    with pytest.raises(ValueError, match="family='swin' takes the place of model, which is set too"):
        FashionMNIST(family="swin", model=model)
    for recipe in (FashionMNIST, Emoji):
        with pytest.raises(ValueError, match="an even number of images at a time, got batch_size=9"):
            recipe(family="vit", deit=True, training=Training(batch_size=9))
        assert recipe(family="vit", training=Training(batch_size=9))
