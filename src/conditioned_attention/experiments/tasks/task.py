"""What differs between experiments: data, model, loss, metric.  The training loop knows nothing else about a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from conditioned_attention.experiments.evidence.metric import Metric


class Task(ABC):
    """One learning problem.

    The order of the data is the loop's business.  So is chance: the loop fetches each item with the global generators
    of torch, numpy and Python set by seed, epoch and index, so random transforms may simply draw from them, and a
    resumed run sees what an unbroken one saw.  A data set with ``__getitems__`` hands out whole batches, without
    chance.  What happens between a batch and its loss, such as mixup or masking, belongs into `loss` and `collate`.
    """

    metric: Metric
    tokens_per_sample: int = 1  # the unit of budgets and throughput; 1 where samples are counted
    causal: bool = False  # whether a token may know nothing of later ones, as a transform that mixes rows would let it
    notes: Sequence[str] = ()  # what a report should say about the data, such as items that are left out

    @abstractmethod
    def build_model(self) -> nn.Module:
        """A freshly initialised model; it draws from torch's global generator, which the loop has seeded."""

    @abstractmethod
    def train_data(self) -> Dataset[Any]:
        """The training set, with a length."""

    @abstractmethod
    def eval_data(self) -> Dataset[Any]:
        """What the score is measured on, never trained on."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The training loss of a batch, a scalar: the mean over its samples or tokens."""

    @abstractmethod
    def evaluate(self, model: nn.Module, batches: Iterable[Any], gather: Callable[[Any], Any]) -> dict[str, float]:
        """``{"score": …}`` in the unit of `metric`, and whatever else is worth logging.  Gradients are off.

        ``gather`` collects tensors of all processes, without the samples that even out the last batch.
        """

    @abstractmethod
    def probe(self) -> Any:
        """What the condition monitor calls the model with: a few samples, always the same."""

    def collate(self, items: Any) -> Any:
        """Makes a batch of items; default: PyTorch's."""
        from torch.utils.data import default_collate

        return default_collate(items)

    def finish(self, model: nn.Module) -> dict[str, str]:
        """What there is to show of a trained model, as texts by file name; default: nothing.

        Called when a run ends, in evaluation mode, without gradient and with torch's generator set by the run's seed.
        """
        return {}
