"""The Long Range Arena as the Nyströmformer's authors run it: how they train, and the recipe ``listops``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from conditioned_attention.experiments.data.lra.listops import VOCABULARY, ListOpsTrees, listops
from conditioned_attention.experiments.data.lra.released import read_listops
from conditioned_attention.experiments.data.lra.sequences import TokenSequences
from conditioned_attention.experiments.data.split import TUNING
from conditioned_attention.experiments.models.lra_encoder import LRAEncoder
from conditioned_attention.experiments.tasks.sequences import SequenceClassification
from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.storage.settings import place

EPOCHS = 100_000  # more than any run has: steps are the authors' budget


def authors_training(steps: int, batch_size: int, warmup_steps: int, evaluate_steps: int, **changes: Any) -> Training:
    """What they have for every task: AdamW at 1e-4 without decay or clipping, by a one-cycle schedule that moves Adam's
    first beta too, and the weights of the best dev accuracy are tested.

    Condition numbers are measured in float64: a fresh model's lie between 10⁹ and 10¹² with 2,048 tokens, and float32
    tells them from infinity up to 4,000.
    """
    settings = {
        "epochs": EPOCHS, "lr": 1e-4, "eps": 1e-6, "weight_decay": 0.0, "clip": None, "schedule": "one_cycle",
        "select": "best", "monitor_precision": "float64",
    }  # fmt: skip
    own = {"max_steps": steps, "batch_size": batch_size, "warmup_steps": warmup_steps, "evaluate_steps": evaluate_steps}
    return Training(**{**settings, **own, **changes})


def check_samples(samples: int | None, test_samples: int | None) -> None:
    for name, count in (("samples", samples), ("test_samples", test_samples)):
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, or None for all, got {count}")


class Parted(Protocol):
    """A data set of which stretches can be taken."""

    def __len__(self) -> int: ...

    def part(self, first: int, count: int) -> Any: ...


Data = TypeVar("Data", bound=Parted)


def first(data: Data, count: int | None) -> Data:
    """The first so many, or all where there are no more."""
    found: Data = data.part(0, min(count or len(data), len(data)))
    return found


def for_a_search(train: Data) -> tuple[Data, Data, None]:
    """What settings are chosen by: the last tenth of the training set scores, and nothing is tested.

    Raises:
        ValueError: it is too small for that.
    """
    kept = len(train) // TUNING
    rest = len(train) - kept
    if not kept:
        raise ValueError(f"{len(train)} samples to train on are too few to hold out one in {TUNING}")
    return train.part(0, rest), train.part(rest, kept), None


_FILES = [f"basic_{name}.tsv" for name in ("train", "val", "test")]


@dataclass(frozen=True)
class ListOps:
    """The Long Range Arena's ListOps (Tay et al. 2021, arXiv 2011.04006) with the Nyströmformer (2102.03902).

    The task is to evaluate nested lists of digits: ten classes.  The lists are made here, once, as the published
    generator makes them, or read from the release.  Training is the authors': 5,000 steps of 32 at 1e-4 by a one-cycle
    schedule, which also moves Adam's first beta; dev accuracy is measured every 50 steps, and the weights with the best
    one are tested.  Unlike in their code, the dev batches are always the same, the whole test set counts, and mixed
    precision is off unless ``--precision`` asks for it.

    Attributes:
        samples: number of lists to train on; fewer than the published 96,000 is a reduced run.
        eval_samples: number of lists by which the weights are chosen.
        test_samples: number of lists on which these weights are tested.
        trees: which lists; shorter ones with ``longer_than`` and ``shorter_than`` are another, reduced task.
        release: the folder with ``basic_train.tsv``, ``basic_val.tsv`` and ``basic_test.tsv``, which are then read
            instead and used as a whole.
        cache_dir: where the lists that were made are kept; default ~/.cache/conditioned-attention.
        model: the network; sequences are padded to its ``length``.
        training: how it is trained.
    """

    samples: int = 96_000
    eval_samples: int = 2_000
    test_samples: int = 2_000
    trees: ListOpsTrees = field(default_factory=ListOpsTrees)
    release: Path | None = place(None)
    cache_dir: Path | None = place(None)
    model: LRAEncoder = field(default_factory=LRAEncoder)
    training: Training = field(
        default_factory=lambda: authors_training(5_000, 32, 1_000, 50, epochs=2, evaluate_batches=62, monitor_every=0.2)
    )

    def __post_init__(self) -> None:
        for name in ("samples", "eval_samples", "test_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.model.length < self.trees.shorter_than - 1:
            raise ValueError(
                f"model.length={self.model.length} is less than lists may have: fewer than trees.shorter_than="
                f"{self.trees.shorter_than} tokens"
            )

    def task(self, *, tuning: bool = False) -> Task:
        """With ``tuning`` the last tenth of the training set scores, and nothing is tested."""
        (train, held, test), notes = self._made() if self.release is None else self._read(self.release)
        sets = for_a_search(train) if tuning else (train, held, test)
        return SequenceClassification(sets, self.model, VOCABULARY, notes=notes)

    def _made(self) -> tuple[list[TokenSequences], list[str]]:
        """Test and evaluation lists are the first, so that they stay the same however many there are to train on."""
        counts = self.test_samples, self.eval_samples, self.samples
        made = listops(sum(counts), self.model.length, self.trees, self.cache_dir)
        test, held, train = (made.part(sum(counts[:i]), count) for i, count in enumerate(counts))
        return [train, held, test], []

    def _read(self, folder: Path) -> tuple[list[TokenSequences], list[str]]:
        read = [read_listops(folder.expanduser() / name, self.model.length) for name in _FILES]
        return [data for data, _ in read], [note for _, notes in read for note in notes]
