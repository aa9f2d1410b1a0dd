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
    """Scores a model on batches; what it knows of earlier ones is its own business.  A new one for every evaluation."""

    def update(self, model: nn.Module, batch: Any, gather: Callable[[Any], Any]) -> None:
        """Takes in one batch; the model is in evaluation mode, and gradients are off.

        ``gather`` collects tensors, or lists of other objects, of all processes, without the samples that even out the
        last batch.
        """

    def compute(self) -> dict[str, float]:
        """``{"score": …}`` in the unit of `Task.metric`, and whatever else is worth logging."""


def number_of(data: Any) -> int | None:
    """How many samples a data set has; None for a stream that does not know."""
    try:
        return len(data)
    except TypeError:
        return None


class Task(ABC):
    """One learning problem.

    The order of the data is the loop's business.  So is chance: the loop fetches each item with the global generators
    of torch, numpy and Python set by seed, epoch and index, so random transforms may simply draw from them, and a
    resumed run sees what an unbroken one saw.  A data set with ``__getitems__`` hands out whole batches, without
    chance.  What is random in a training batch, such as mixup or masking, belongs into `collate_train` or `loss`.
    """

    metric: Metric
    tokens_per_sample: int = 1  # the unit of budgets and throughput; 1 where samples are counted
    causal: bool = False  # whether a token may know nothing of later ones, as a transform that mixes rows would let it
    left_alone: tuple[str, ...] = ()  # patterns of names of attention modules that no variant changes
    classes: Sequence[str] = ()  # names of what a classifier tells apart, in the order of its logits
    mixes_pairs: bool = False  # whether `collate_train` mixes first and last sample, second and last but one, …
    about: str = ""  # what the data are, in a few words
    notes: Sequence[str] = ()  # what a report should say about the data, such as items that are left out

    @abstractmethod
    def build_model(self) -> nn.Module:
        """A freshly initialised model; it draws from torch's global generator, which the loop has seeded."""

    @abstractmethod
    def train_data(self) -> Dataset[Any]:
        """The training set, with a length; for ``order="streamed"`` an iterable one."""

    @abstractmethod
    def eval_data(self) -> Dataset[Any]:
        """What a run is scored on while it trains, and never trained on."""

    def test_data(self) -> Dataset[Any] | None:
        """What a run is scored on once, when it has ended; None where `eval_data` is all there is, and for tuning."""
        return None

    @cached_property
    def data_fingerprint(self) -> dict[str, Any]:
        """`fingerprint`, taken once: every run of the task asks for it, and of a million images it takes a second."""
        return self.fingerprint()

    def fingerprint(self) -> dict[str, Any]:
        """What the data are, as plain data that are the same on every machine: part of what makes a run this one."""
        sets = {"train": self.train_data(), "evaluation": self.eval_data(), "test": self.test_data()}
        return {name: fingerprint_of(data) for name, data in sets.items() if data is not None}

    def data_in_words(self) -> list[str]:
        """What a run says of its data before it trains, and records: the sets in a line, and `notes`."""
        return [spelt(line) for line in (self._sets_in_words(), *self.notes)]

    def _sets_in_words(self) -> str:
        sets = {"to train": self.train_data(), "to evaluate": self.eval_data(), "to test": self.test_data()}
        counts = {use: number_of(data) for use, data in sets.items() if data is not None}
        words = [f"{'a stream' if n is None else f'{n:,}'} {use}" for use, n in counts.items()]
        return f"{self.about + '; ' if self.about else ''}{', '.join(words)}"

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor | Mapping[str, Tensor]:
        """The training loss of a batch: the mean over its samples or tokens, a scalar.

        Or several by name, which are added up, and logged one by one.
        """

    @abstractmethod
    def evaluator(self) -> Evaluator:
        """What scores the model on `eval_data` and `test_data`."""

    @abstractmethod
    def probe(self) -> Any:
        """What the condition monitor calls the model with: a few samples, always the same."""

    def calibration(self) -> Any:
        """A few training inputs, in the form of `probe`, for variants that look at what a fresh model does with them.

        Default: none, and such variants raise ValueError.
        """
        return None

    def collate(self, items: Any) -> Any:
        """Makes a batch of a list of items, without chance; default: PyTorch's, and what is a batch stays as it is."""
        from torch.utils.data import default_collate

        return default_collate(items) if isinstance(items, list) else items

    def collate_train(self, items: Any) -> Any:
        """Makes a training batch; here chance has its place, such as mixup.  Default: `collate`.

        Of several processes each makes its share, with other chance; with `mixes_pairs` all of them have that of one
        process, and pairs that it has too.
        """
        return self.collate(items)

    def preprocessing(self) -> dict[str, Any] | None:
        """What is done to an image before a trained model sees it, in timm's words; None if that is not known."""
        return None

    def no_weight_decay(self) -> Collection[str]:
        """Patterns of names of parameters that do not decay, such as ``"*norm*"``, beside those the model names."""
        return ()

    def finish(self, model: nn.Module) -> Mapping[str, str | bytes]:
        """What there is to show of a trained model, as texts or pictures by file name; default: nothing.

        Called when a run ends, in evaluation mode, without gradient and with torch's generator set by the run's seed.
        """
        return {}
