"""Texts of the Long Range Arena, a token a byte: the recipes ``lra_text`` and ``lra_retrieval``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from conditioned_attention.choices import Choices
from conditioned_attention.experiments.data.lra.released import read_pairs
from conditioned_attention.experiments.data.lra.texts import VOCABULARY, read_labelled
from conditioned_attention.experiments.models.lra_encoder import LRAEncoder
from conditioned_attention.experiments.recipes.long_range_arena import (
    authors_training,
    check_samples,
    first,
    for_a_search,
)
from conditioned_attention.experiments.tasks.sequences import PairClassification, SequenceClassification
from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.storage.settings import place


@dataclass(frozen=True)
class LRAText(Choices):
    """The Long Range Arena's Text task with the Nyströmformer (arXiv 2102.03902): IMDb reviews or your texts, as bytes.

    Each byte is a token; the first 4,000 of a text are used, and padded to 4,096.  Training is the authors': 20,000
    steps of 32, of which 8,000 are warm-up, and dev accuracy every 500 steps on 781 batches, here always the same ones.
    Unlike in their code, the whole test set counts, and mixed precision is off unless ``--precision`` asks for it.

    Attributes:
        data_dir: folder with a folder for each class in ``train`` and in ``test``, as in IMDb's aclImdb; or without
            these sets, and then a fixed fifth is the test set.
        eval_split: the folder of the test set, if there are several beside the training set.
        dev: what chooses the weights: ``"test"``, the test set itself, as published, which flatters the score;
            or ``"held_out"``, a fixed tenth of the training set.
        cut: number of bytes of a text that are read; the authors' script says 1,000, and their published scores are
            for 4,000.
        samples: train on this many texts, the first in a fixed order; None for all, and fewer is a reduced run.
        test_samples: test on this many texts, chosen in the same way; None for all.
        max_unreadable: texts that cannot be read are left out; more than this many in one set are an error.
        model: the network; texts are padded to its ``length``.
        training: how it is trained.
    """

    data_dir: Path = place(Path("aclImdb"))
    eval_split: str | None = None
    dev: Literal["test", "held_out"] = "test"
    cut: int = 4_000
    samples: int | None = None
    test_samples: int | None = None
    max_unreadable: int = place(10)
    model: LRAEncoder = field(default_factory=lambda: LRAEncoder(length=4096))
    training: Training = field(
        default_factory=lambda: authors_training(20_000, 32, 8_000, 500, evaluate_batches=781, monitor_every=0.5)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_samples(self.samples, self.test_samples)
        check_cut(self.cut, self.model)

    def task(self, *, tuning: bool = False) -> Task:
        """With ``tuning`` the last tenth of what is trained on scores, and nothing is tested."""
        folder, length = self.data_dir.expanduser(), self.model.length
        train, test, classes, notes = read_labelled(folder, self.cut, length, self.max_unreadable, self.eval_split)
        dev = test = first(test, self.test_samples)
        if self.dev == "held_out":
            train, dev, _ = for_a_search(train)
        else:
            notes.append("the test set chooses the weights too, as published; --dev held_out does not let it")
        train = first(train, self.samples)
        sets = for_a_search(train) if tuning else (train, dev, test)
        return SequenceClassification(sets, self.model, VOCABULARY, classes, notes)


@dataclass(frozen=True)
class LRARetrieval:
    """The Long Range Arena's Retrieval task with the Nyströmformer (arXiv 2102.03902): does one paper cite the other?

    The data are pairs of papers from the ACL Anthology Network, as bytes; the first 4,000 of each are used, and padded
    to 4,096.  Both papers go through one encoder.  Training is the authors': 30,000 steps of 32, of which 800 are
    warm-up, and dev accuracy every 300 steps on 565 batches, here always the same ones.  Unlike in their code, the
    whole test set counts, and mixed precision is off unless ``--precision`` asks for it.

    Attributes:
        data_dir: folder with ``new_aan_pairs.train.tsv``, ``new_aan_pairs.eval.tsv`` and ``new_aan_pairs.test.tsv``, as
            in the release.
        cut: number of bytes of a text that are read.
        samples: train on this many pairs, from the first; None for all, and fewer is a reduced run.
        test_samples: test on this many pairs, from the first; None for all.
        model: the network; texts are padded to its ``length``.
        training: how it is trained.
    """

    data_dir: Path = place(Path("tsv_data"))
    cut: int = 4_000
    samples: int | None = None
    test_samples: int | None = None
    model: LRAEncoder = field(default_factory=lambda: LRAEncoder(length=4096))
    training: Training = field(
        default_factory=lambda: authors_training(30_000, 32, 800, 300, evaluate_batches=565, monitor_every=0.2)
    )

    def __post_init__(self) -> None:
        check_samples(self.samples, self.test_samples)
        check_cut(self.cut, self.model)

    def task(self, *, tuning: bool = False) -> Task:
        """With ``tuning`` the last tenth of what is trained on scores, and nothing is tested."""
        files = [self.data_dir.expanduser() / f"new_aan_pairs.{name}.tsv" for name in ("train", "eval", "test")]
        if missing := [file for file in files if not file.is_file()]:
            raise FileNotFoundError(f"{missing[0]} is missing: the release (lra_release.gz) has it in its tsv_data")
        read = [read_pairs(file, self.cut, self.model.length) for file in files]
        train, dev, test = (data for data, _ in read)
        train, test = first(train, self.samples), first(test, self.test_samples)
        sets = for_a_search(train) if tuning else (train, dev, test)
        notes = [note for _, notes in read for note in notes]
        return PairClassification(sets, self.model, VOCABULARY, ("unrelated", "related"), notes)


def check_cut(cut: int, model: LRAEncoder) -> None:
    if not 1 <= cut <= model.length:
        raise ValueError(f"cut must be between 1 and model.length={model.length}, got {cut}")
