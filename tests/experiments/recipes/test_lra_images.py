"""The recipes of images of the Long Range Arena: their sets, their protocol and a run."""

import dataclasses
import json

import numpy as np
import pytest

from conditioned_attention.experiments.data.images import fashion_mnist
from conditioned_attention.experiments.data.lra.pathfinder import PathfinderScenes
from conditioned_attention.experiments.models.lra_encoder import LRAEncoder
from conditioned_attention.experiments.recipes.lra_images import LRAFashion, LRAImage, Pathfinder32
from tests.experiments.data.lra.files import write_cifar10, write_pathfinder
from tests.experiments.data.test_data import idx
from tests.test_cli import call

TINY = LRAEncoder(length=1024, hidden_size=8, mlp_size=8, landmarks=8, convolution=3, layers=1)


def protocol(training):
    return [
        getattr(training, name)
        for name in ("max_steps", "batch_size", "accumulation", "warmup_steps", "evaluate_steps", "evaluate_batches")
    ]


@pytest.mark.parametrize("recipe", [LRAImage, LRAFashion])
def test_the_published_protocol(recipe):
    training = recipe().training
    assert protocol(training) == [35_000, 256, 2, 175, 175, None]
    assert training.full_steps(45_000) == training.full_steps(2_000) == 35_000
    assert (training.lr, training.eps, training.weight_decay, training.clip) == (1e-4, 1e-6, 0, None)
    assert (training.schedule, training.select, training.betas) == ("one_cycle", "best", None)


def test_the_last_tenth_chooses(tmp_path):
    written = write_cifar10(tmp_path)
    task = LRAImage(tmp_path, model=TINY).task()
    train, held, test = task.train_data(), task.eval_data(), task.test_data()
    assert [len(data) for data in (train, held, test)] == [90, 10, 20]
    assert held.labels.tolist() == written["data_batch_5.bin"][10:, 0].tolist()
    assert task.classes[3] == "cat"
    assert task.notes == ["100 and 20 pictures, and CIFAR-10 has 50,000 and 10,000"]
    assert task.build_model()(task.probe()).shape == (8, 10)
    assert LRAImage().model.length == train.padded == task.tokens_per_sample == 1024
    fewer = LRAImage(tmp_path, samples=30, test_samples=7, model=TINY)
    assert [len(fewer.task().train_data()), len(fewer.task().test_data())] == [30, 7]
    assert fewer.task().eval_data().fingerprint() == held.fingerprint()
    search = fewer.task(tuning=True)
    assert [len(search.train_data()), len(search.eval_data()), search.test_data()] == [27, 3, None]
    for name in ("samples", "test_samples"):
        with pytest.raises(ValueError, match=f"^{name} must be at least 1"):
            dataclasses.replace(fewer, **{name: 0})


def test_fashion_has_a_name_and_pixels_of_its_own(tmp_path, monkeypatch):
    counts = {"train": 40, "t10k": 20}
    monkeypatch.setattr(fashion_mnist, "_COUNTS", counts)
    random = np.random.default_rng(0)
    images = {name: random.integers(0, 256, (count, 28, 28), dtype=np.uint8) for name, count in counts.items()}
    for name, count in counts.items():
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(idx(images[name]))
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8) % 10))
    task = LRAFashion(tmp_path, model=TINY).task()
    assert [len(data) for data in (task.train_data(), task.eval_data(), task.test_data())] == [36, 4, 20]
    ids, label = task.eval_data()[1]
    assert (ids.reshape(32, 32)[2:30, 2:30].numpy() == images["train"][37]).all()
    assert label == 7
    assert task.eval_data().fingerprint()["pixels of"] == "fashion_mnist"


@pytest.mark.slow
def test_black_pixels_are_padding_unless_asked_for(tmp_path):
    write_cifar10(tmp_path / "data", black=16)
    sizes = {
        "hidden-size": 8, "mlp-size": 8, "landmarks": 8, "max-steps": 3, "batch-size": 8, "warmup-steps": 2,
        "evaluate-steps": 2, "accumulation": 2, "data-dir": tmp_path / "data",
    }  # fmt: skip
    words = [word for name, number in sizes.items() for word in (f"--{name}", str(number))]
    losses = {}
    for id_0 in ("padding", "token"):
        folder = tmp_path / id_0
        assert call("train", "lra_image", "--folder", str(folder), "--id-0", id_0, "--monitor-every", "0", *words) == 0
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert 0 <= rows[-1]["test_score"] <= 100
        losses[id_0] = rows[0]["eval_loss"]
    assert losses["padding"] != losses["token"]


def test_the_published_protocol_of_pathfinder():
    recipe = Pathfinder32()
    assert protocol(recipe.training) == [62_400, 256, 2, 312, 312, None]
    assert recipe.training.full_steps(160_000) == 62_400
    assert dataclasses.astuple(recipe.scenes)[:6] == (32, 14, 5, 4, 7, 1.0)
    assert (recipe.samples, recipe.eval_samples, recipe.test_samples) == (160_000, 20_000, 20_000)


def test_pictures_that_are_made_and_those_of_the_release(tmp_path):
    small = PathfinderScenes(side=16, path_length=4, distractors=1, distractor_length=2, seed_distance=3)
    model = dataclasses.replace(TINY, length=256)
    sizes = {"samples": 30, "eval_samples": 10, "test_samples": 10, "cache_dir": tmp_path}
    recipe = Pathfinder32(scenes=small, model=model, **sizes)
    task, more = recipe.task(), dataclasses.replace(recipe, samples=40).task()
    assert [len(data) for data in (task.train_data(), task.eval_data(), task.test_data())] == [30, 10, 10]
    assert more.test_data().fingerprint() == task.test_data().fingerprint() != task.eval_data().fingerprint()
    assert task.build_model()(task.probe()).shape == (8, 2)
    search = recipe.task(tuning=True)
    assert [len(search.train_data()), len(search.eval_data()), search.test_data()] == [27, 3, None]
    with pytest.raises(ValueError, match=r"model\.length=1024 is not the number of pixels, scenes\.side² = 256"):
        Pathfinder32(scenes=small)
    write_pathfinder(tmp_path / "release", side=16)
    read = dataclasses.replace(recipe, release=tmp_path / "release").task()
    sets = [read.train_data(), read.eval_data(), read.test_data()]
    assert [len(data) for data in sets] == [16, 2, 2]
    assert len({int(data.sequence(i)[0]) for data in sets for i in range(len(data))}) == 20
