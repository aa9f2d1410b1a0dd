"""Images of the Long Range Arena, a token a pixel: the recipes ``lra_image``, ``lra_fashion`` and ``pathfinder32``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from conditioned_attention.experiments.data.images.fashion_mnist import read_pixels
from conditioned_attention.experiments.data.lra.cifar10 import CLASSES, read_cifar10
from conditioned_attention.experiments.data.lra.images import VOCABULARY, framed, pixels_as_tokens
from conditioned_attention.experiments.data.lra.pathfinder import PathfinderScenes, pathfinder
from conditioned_attention.experiments.data.lra.pathfinder_files import read_pathfinder
from conditioned_attention.experiments.data.lra.sequences import TokenSequences
from conditioned_attention.experiments.models.lra_encoder import LRAEncoder
from conditioned_attention.experiments.recipes.long_range_arena import (
    authors_training,
    check_samples,
    first,
    for_a_search,
)
from conditioned_attention.experiments.tasks.sequences import SequenceClassification
from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.storage.settings import place

Sets = tuple[TokenSequences, TokenSequences, TokenSequences]
Labelled = tuple[np.ndarray, np.ndarray]  # (S, 32, 32) and (S,), uint8


def _training() -> Training:
    return authors_training(35_000, 256, 175, 175, accumulation=2, monitor_every=5)


@dataclass(frozen=True)
class LRAImage:
    """The Long Range Arena's Image task with the Nyströmformer (arXiv 2102.03902): CIFAR-10 in grey, a token per pixel.

    Grey levels are computed as in TensorFlow, not as in Pillow.  Of the training pictures, in the order of the files,
    the first nine tenths (45,000) are trained on and the last tenth (5,000) chooses the weights, which are then tested
    on the 10,000 of the test set; the original uses the order of tensorflow_datasets.  Training is the authors': 35,000
    steps of 256 in two micro-batches, dev accuracy every 175 steps.  Unlike in their code, which leaves out what does
    not fill a batch, the whole dev and test sets count, and mixed precision is off unless ``--precision`` asks for it.

    Black pixels have id 0 and so count as padding, as in the original, which hides them from attention and from the
    mean; with ``--id-0 token`` the model sees them.

    Attributes:
        data_dir: folder with the six files of CIFAR-10's binary version, or the folder that contains it.
        samples: train on this many pictures, from the first; None for all, and fewer is a reduced run.
        test_samples: test on this many pictures, from the first; None for all.
        model: the network.
        training: how it is trained.
    """

    data_dir: Path = place(Path("cifar-10-batches-bin"))
    samples: int | None = None
    test_samples: int | None = None
    model: LRAEncoder = field(default_factory=lambda: LRAEncoder(length=1024))
    training: Training = field(default_factory=_training)

    def __post_init__(self) -> None:
        check_samples(self.samples, self.test_samples)

    def task(self, *, tuning: bool = False) -> Task:
        """With ``tuning`` the last tenth of what is trained on scores, and nothing is tested."""
        train, test = read_cifar10(self.data_dir.expanduser())
        notes = [*train.notes, *test.notes]
        counts = len(train.labels), len(test.labels)
        if counts != (50_000, 10_000):
            notes.append(f"{counts[0]:,} and {counts[1]:,} pictures, and CIFAR-10 has 50,000 and 10,000")
        sets = _sets(train[:2], test[:2], "cifar10", self)
        return _task(sets, self.model, CLASSES, notes, tuning)


@dataclass(frozen=True)
class LRAFashion(LRAImage):
    """Grey Fashion-MNIST, one token per pixel: not in the Long Range Arena, but a stand-in for its Image task.

    It needs no CIFAR-10.  The 28 × 28 pixels get a frame of two black pixels, which makes 1,024 tokens.  Of the 60,000
    training images the last tenth chooses the weights, which are tested on the 10,000 of the test set.  Everything else
    is as in ``lra_image``: six in ten pixels are black and so count as padding, unless ``--id-0 token`` is given.

    Attributes:
        data_dir: folder with the four files (Debian's package dataset-fashion-mnist puts them there).
        samples: train on this many images, from the first; None for all.
        test_samples: test on this many images, from the first; None for all.
        model: the network.
        training: how it is trained.
    """

    data_dir: Path = place(Path("/usr/share/datasets/fashion-mnist"))

    def task(self, *, tuning: bool = False) -> Task:
        """With ``tuning`` the last tenth of what is trained on scores, and nothing is tested."""
        train, test = ((framed(pixels), labels) for pixels, labels in read_pixels(self.data_dir.expanduser()))
        return _task(_sets(train, test, "fashion_mnist", self), self.model, 10, [], tuning)


@dataclass(frozen=True)
class Pathfinder32:
    """The Long Range Arena's Pathfinder with the Nyströmformer (arXiv 2102.03902): are two discs on one dashed path?

    A token is a pixel.  The pictures are of the hard variant (``curv_contour_length_14``), made here, once, as the
    published generator makes them, or read from the release.  Training is the authors': 62,400 steps of 256 in two
    micro-batches, dev accuracy every 312 steps.  Unlike in their code, the whole dev and test sets count, and each
    picture once, the split of the release is always the same, and mixed precision is off unless ``--precision`` asks
    for it.

    Black pixels, half of each picture, have id 0 and so count as padding, as in the original, which hides them from
    attention and from the mean; with ``--id-0 token`` the model sees them.

    Attributes:
        samples: number of pictures to train on; fewer than the published 160,000 is a reduced run.
        eval_samples: number of pictures by which the weights are chosen.
        test_samples: number of pictures on which these weights are tested.
        scenes: which pictures; smaller ones or shorter paths are another, reduced task.
        release: the folder pathfinder32/curv_contour_length_14, which is read instead: eight tenths of it are trained
            on, or the first ``samples`` of these, a tenth chooses the weights, and a tenth tests them.
        cache_dir: where the pictures that were made are kept; default ~/.cache/conditioned-attention.
        processes: number of processes that make the pictures; one takes about seven minutes.
        model: the network; its ``length`` is the number of pixels.
        training: how it is trained.
    """

    samples: int = 160_000
    eval_samples: int = 20_000
    test_samples: int = 20_000
    scenes: PathfinderScenes = field(default_factory=PathfinderScenes)
    release: Path | None = place(None)
    cache_dir: Path | None = place(None)
    processes: int = place(1)
    model: LRAEncoder = field(default_factory=lambda: LRAEncoder(length=1024))
    training: Training = field(
        default_factory=lambda: authors_training(62_400, 256, 312, 312, accumulation=2, monitor_every=2)
    )

    def __post_init__(self) -> None:
        for name in ("samples", "eval_samples", "test_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.model.length != self.scenes.side**2:
            raise ValueError(
                f"model.length={self.model.length} is not the number of pixels, scenes.side² = {self.scenes.side**2}"
            )

    def task(self, *, tuning: bool = False) -> Task:
        """With ``tuning`` the last tenth of the training set scores, and nothing is tested."""
        sets, notes = self._made() if self.release is None else self._read(self.release)
        return _task(sets, self.model, ("two paths", "one path"), notes, tuning)

    def _made(self) -> tuple[Sets, list[str]]:
        """Test and evaluation pictures are the first, so that they stay the same however many there are to train on."""
        tested, held = self.test_samples, self.eval_samples
        made = pathfinder(tested + held + self.samples, self.scenes, self.cache_dir, self.processes)
        return (made.part(tested + held, self.samples), made.part(tested, held), made.part(0, tested)), []

    def _read(self, folder: Path) -> tuple[Sets, list[str]]:
        whole, notes = read_pathfinder(folder.expanduser(), self.scenes.side)
        tenth = len(whole) // 10
        if not tenth:
            raise ValueError(f"{folder} has {len(whole)} pictures, too few for a tenth to evaluate and a tenth to test")
        rest = len(whole) - 2 * tenth
        train = whole.part(0, min(rest, self.samples))
        return (train, whole.part(rest, tenth), whole.part(rest + tenth, tenth)), notes


def _sets(train: Labelled, test: Labelled, name: str, wanted: LRAImage) -> Sets:
    """Training, dev and test set; dev is the last tenth, however many are trained on."""
    whole, tested = (pixels_as_tokens(*images, {"pixels of": name}) for images in (train, test))
    rest, held, _ = for_a_search(whole)
    return first(rest, wanted.samples), held, first(tested, wanted.test_samples)


def _task(sets: Sets, model: LRAEncoder, classes: int | Sequence[str], notes: list[str], tuning: bool) -> Task:
    return SequenceClassification(for_a_search(sets[0]) if tuning else sets, model, VOCABULARY, classes, notes)
