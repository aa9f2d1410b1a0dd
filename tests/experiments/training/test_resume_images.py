"""DeiT's recipe, with repeated augmentation, mixup and random augmentations, is killed within an epoch and goes on."""

import dataclasses
import os
import signal

import pytest
from safetensors.torch import load_file

from conditioned_attention.experiments.recipes.imagenet import DeiTB
from conditioned_attention.experiments.training import loop
from conditioned_attention.experiments.training.launch import Launch
from conditioned_attention.experiments.training.loop import train
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from conditioned_attention.storage.json_lines import JsonLines
from conditioned_attention.storage.ownership import checkpoints_in
from tests.experiments.pictures import write_digits
from tests.processes import Forked

STEPS, EPOCH = 10, 4  # optimizer steps, of 40 of the 43 images an epoch; a batch begins in the middle of three copies
STRIKES = 6  # in the middle of the second epoch


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    write_digits(root / "train", 0, 43)
    write_digits(root / "val", 60, 40)
    return root


def run(images, folder, workers, checkpoint_seconds=0.0):
    """The recipe as it is but for the size of batch and model; a row an epoch."""
    whole = DeiTB(images)
    training = dataclasses.replace(whole.training, batch_size=10, epochs=3, max_steps=STEPS)
    assert (training.order, training.repeats, whole.augment, whole.mixing.mixup) == ("repeated", 3, "strong", 0.8)
    small = {"timm_model": "test_vit", "image_size": 32, "classes": 10, "cache_dir": images / ".cache"}
    recipe = dataclasses.replace(whole, training=training, **small)
    launch = Launch(loader_workers=workers, checkpoint_seconds=checkpoint_seconds, log_every=1)
    return list(train(recipe.task(), training, VARIANTS["preconditioned"], 0, folder, launch))


def struck(images, folder, workers, number):
    """The same, in a process that gets this signal as soon as it has taken so many steps."""
    take_step, taken = loop._Run.take_step, []

    def strikes(self, *args):
        take_step(self, *args)
        taken.append(1)
        if len(taken) == STRIKES:
            os.kill(os.getpid(), number)

    loop._Run.take_step = strikes
    run(images, folder, workers, 0.0 if number == signal.SIGKILL else 1e9)


def without_time(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def unbroken(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, run(images, folder, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "number", "newest"),
    [
        (0, 0, signal.SIGKILL, STRIKES - 1),  # the checkpoint of that step was not written yet
        pytest.param(2, 0, signal.SIGKILL, STRIKES - 1, marks=pytest.mark.slow),
        pytest.param(0, 2, signal.SIGTERM, STRIKES, marks=pytest.mark.slow),
        pytest.param(2, 2, signal.SIGINT, STRIKES, marks=pytest.mark.slow),
    ],
)
def test_it_goes_on_to_the_bit(images, unbroken, tmp_path, before, after, number, newest):
    folder = tmp_path / "run"
    process = Forked(tmp_path / "said", struck, images, folder, before, number)
    codes = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 1, signal.SIGTERM: 143}
    assert process.wait(timeout=200) == codes[number], process.said.read_text()
    assert checkpoints_in(folder)[-1].name == f"checkpoint-{newest:08}"
    assert EPOCH < newest < 2 * EPOCH
    assert without_time(run(images, folder, after)) == without_time(unbroken[1])
    losses = [[row["loss"] for row in JsonLines(path / "train.jsonl").read()] for path in (folder, unbroken[0])]
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == STEPS
    left, right = (load_file(checkpoints_in(path)[-1] / "model.safetensors") for path in (folder, unbroken[0]))
    assert left.keys() == right.keys()
    assert all(left[key].equal(right[key]) for key in left)
