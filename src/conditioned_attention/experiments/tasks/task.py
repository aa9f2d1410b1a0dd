"""What differs between experiments: data, model, loss, metric.  The training loop knows nothing else about a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.data import Dataset

from conditioned_attention.experiments.data.fingerprint import fingerprint_of
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.storage.files import spelt


class Evaluator(Protocol):
    """Scores a model on batches, and remembers what it needs of earlier ones; every evaluation has a new evaluator."""

    def update(self, model: nn.Module, batch: Any, gather: Callable[[Any], Any]) -> None:
        """Takes in one batch; the model is in evaluation mode, and gradients are off.

        ``gather`` collects tensors, or lists of other objects, from all processes, without the samples that only fill
        up the last batch.
        """

    def compute(self) -> dict[str, float]:
        """Returns ``{"score": …}`` in the unit of `Task.metric`, and whatever else is worth logging."""


def number_of(data: Any) -> int | None:
    """How many samples a data set has; None for a stream of unknown length."""
    try:
        return len(data)
    except TypeError:
        return None


class Task(ABC):
    """One learning problem.

    The training loop decides the order of the data, and controls randomness: it fetches each item with the global
    generators of torch, numpy and Python seeded by seed, epoch and index.  So random transforms may simply draw from
    them, and a resumed run sees the same data as an uninterrupted one.  A data set with ``__getitems__`` returns whole
    batches, without randomness.  What is random in a training batch, such as mixup or masking, belongs in
    `collate_train` or `loss`.
    """

    metric: Metric
    tokens_per_sample: int = 1  # the unit of budgets and throughput; 1 where samples are counted
    causal: bool = False  # whether no token may depend on later ones, as it would by a transform that mixes rows
    left_alone: tuple[str, ...] = ()  # patterns of names of attention modules that no variant changes
    classes: Sequence[str] = ()  # names of a classifier's classes, in the order of its logits
    mixes_pairs: bool = False  # whether `collate_train` mixes first and last sample, second and last but one, …
    about: str = ""  # what the data are, in a few words
    notes: Sequence[str] = ()  # what a report should say about the data, such as items that are left out

    @abstractmethod
    def build_model(self) -> nn.Module:
        """A freshly initialised model; it draws from torch's global generator, which the loop has seeded."""

    @abstractmethod
    def train_data(self) -> Dataset[Any]:
        """The training set, which has a length; for ``order="streamed"`` an iterable data set."""

    @abstractmethod
    def eval_data(self) -> Dataset[Any]:
        """The set on which a run is scored while it trains; it never trains on it."""

    def test_data(self) -> Dataset[Any] | None:
        """The set on which a run is scored once, at its end; None if there is only `eval_data`, and for tuning."""
        return None

    @cached_property
    def data_fingerprint(self) -> dict[str, Any]:
        """`fingerprint`, computed once: every run of the task needs it, and for a million images it takes a second."""
        return self.fingerprint()

    def fingerprint(self) -> dict[str, Any]:
        """Identifies the data, as plain data that are the same on every machine; part of the identity of a run."""
        sets = {"train": self.train_data(), "evaluation": self.eval_data(), "test": self.test_data()}
        return {name: fingerprint_of(data) for name, data in sets.items() if data is not None}

    def data_in_words(self) -> list[str]:
        """What a run prints about its data before training, and records: the sets in a line, and `notes`."""
        return [spelt(line) for line in (self._sets_in_words(), *self.notes)]

    def _sets_in_words(self) -> str:
        sets = {"to train": self.train_data(), "to evaluate": self.eval_data(), "to test": self.test_data()}
        counts = {use: number_of(data) for use, data in sets.items() if data is not None}
        words = [f"{'a stream' if n is None else f'{n:,}'} {use}" for use, n in counts.items()]
        return f"{self.about + '; ' if self.about else ''}{', '.join(words)}"

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor | Mapping[str, Tensor]:
        """The training loss of a batch: the mean over its samples or tokens, a scalar.

        Or several losses by name, which are added up, and logged one by one.
        """

    @abstractmethod
    def evaluator(self) -> Evaluator:
        """A new evaluator, which scores the model on `eval_data` or `test_data`."""

    @abstractmethod
    def probe(self) -> Any:
        """The inputs with which the condition monitor calls the model: a few samples, always the same."""

    def calibration(self) -> Any:
        """A few training inputs, in the form of `probe`, for variants that measure what a fresh model does with them.

        Default: None, with which such variants raise ValueError.
        """
        return None

    def collate(self, items: Any) -> Any:
        """Makes a batch from a list of items, without randomness; default: as PyTorch does; a batch stays as it is."""
        from torch.utils.data import default_collate

        return default_collate(items) if isinstance(items, list) else items

    def collate_train(self, items: Any) -> Any:
        """Makes a training batch; randomness is allowed here, such as mixup.  Default: `collate`.

        Each of several processes makes its share, with random numbers of its own; with `mixes_pairs` all of them draw
        the numbers that a single process would draw, and mix the same pairs.
        """
        return self.collate(items)

    def preprocessing(self) -> dict[str, Any] | None:
        """How an image is prepared for a trained model, in timm's terms; None if that is not known."""
        return None

    def no_weight_decay(self) -> Collection[str]:
        """Patterns of names of parameters that do not decay, such as ``"*norm*"``, besides those the model names."""
        return ()

    def finish(self, model: nn.Module) -> Mapping[str, str | bytes]:
        """Texts or pictures that show what a trained model does, by file name; default: none.

        Called when a run ends, in evaluation mode, without gradients and with torch's generator set by the run's seed.
        """
        return {}
