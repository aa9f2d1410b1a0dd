"""The batches a run trains on, which depend on the seed and their place in the run alone.

They do not depend on loader workers, ranks, or where the run was resumed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, Subset

from conditioned_attention.experiments.training.chance import generators_kept, reseed, seeded
from conditioned_attention.experiments.training.order import Key, SampleOrder, from_both_ends
from conditioned_attention.experiments.training.settings import Batch
from conditioned_attention.experiments.training.stream import StreamedItems

Place = dict[str, Any]


class TrainingBatches(Iterator[Any]):
    """The micro-batches of a run, one after another and without end; see `training_batches`.

    Attributes:
        loader: the loader that they come from; to be replaced by what ``Accelerator.prepare`` makes of it.
        place: plain data from which `start_at` finds the position in a stream; None for the other orders.
    """

    def __init__(self, loader: DataLoader[Any], keys: _Keys, items: SeededItems | StreamedItems) -> None:
        self.loader, self._keys, self._items = loader, keys, items
        self.start_at(0)

    def start_at(self, samples: int, place: Place | None = None) -> None:
        """Makes the next batch begin after this many samples.

        Args:
            samples: samples that all processes have taken since the beginning of the run.
            place: what the attribute was at that point; without it a stream is read from the beginning of the run.
        """
        self._keys.start, self.place = samples, place
        if isinstance(self._items, StreamedItems):
            self._items.start_at(place)
        self._loading: Iterator[tuple[Place | None, Any]] | None = None

    def __next__(self) -> Any:
        if self._loading is None:
            self._loading = iter(self.loader)
        self.place, batch = next(self._loading)
        return batch


def training_batches(
    data: Any, batch: Batch, *, seed: int, collate: Callable[[Any], Any], pairs: bool = False, workers: int = 0
) -> TrainingBatches:
    """Returns the micro-batches of a run.

    The samples that do not fill a batch are left out of an epoch.  In a stream, a batch may begin in one epoch and end
    in the next.

    Accelerate splits each micro-batch over the processes in the order of its samples, and each process collates its own
    share, with random numbers of its own.  So the copies of ``"repeated"`` are neighbours in one process, or in two if
    the border lies between them.  With ``pairs`` the micro-batch is split from both ends, so that a share's first and
    last sample, its second and its last but one, … are such pairs of the whole micro-batch, and all shares use the
    random numbers of the whole.  A collate that mixes these pairs by numbers drawn once per batch then gives the same
    on any number of processes.

    Args:
        data: has a length and items by index; for ``order="streamed"`` it is iterated, and its ``set_epoch``, if any,
            is called.
        batch: which samples make up an optimizer step, and in which order they come.
        seed: seed of the order, and of all random numbers in items and batches.
        collate: makes a batch from items, and may draw from the global generators.
        pairs: split micro-batches from both ends; streams are never split so.
        workers: processes that prepare batches, 0 for none.  Each reads the whole of a stream, so for streams they help
            only if ``collate`` is what takes the time.

    Raises:
        ValueError: the data do not support the order, or there are too few for a batch.
    """
    items: SeededItems | StreamedItems
    if batch.order == "streamed":
        if not hasattr(data, "__iter__"):
            raise ValueError(f"order='streamed' needs data to iterate over, and {type(data).__name__} has no __iter__")
        items, keys = StreamedItems(data, seed), _Keys(itertools.count)
    else:
        if isinstance(data, IterableDataset) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
            raise ValueError(
                f"order={batch.order!r} needs data with a length and an index, and {type(data).__name__} lacks them; "
                "order='streamed' takes data sets that are iterated"
            )
        used = len(data) // batch.batch_size * batch.batch_size
        if not used:
            raise ValueError(f"batch_size={batch.batch_size} leaves no batch of {len(data)} samples")
        order = SampleOrder(batch.order, len(data), seed, used, batch.repeats)
        items, together = SeededItems(data, seed, pairs=pairs), batch.micro_batch if pairs else 1
        keys = _Keys(lambda start: from_both_ends(order.keys(start), together))
    loader = DataLoader(
        items,
        batch.micro_batch,
        sampler=keys,
        collate_fn=SeededCollate(collate, seed),  # type: ignore[arg-type]
        num_workers=workers,
        # its own: a loader otherwise draws from the global one, which a resumed run would find in another state
        generator=torch.Generator(),
    )
    return TrainingBatches(loader, keys, items)


class _Keys(Sampler[Any]):
    """Keys of an order, or numbers in a stream, from sample ``start`` on and without end."""

    def __init__(self, of: Callable[[int], Iterator[Any]]) -> None:
        self.of, self.start = of, 0

    def __iter__(self) -> Iterator[Any]:
        return self.of(self.start)


class SeededItems(Dataset[Any]):
    """A data set whose items are fetched with all global generators seeded by seed and key.

    Random transforms of torchvision, timm or the user's own draw from the generators of torch, numpy and Python; so
    they give the same picture in any worker, on any rank, and after any resume.  A data set with ``__getitems__``
    returns whole batches: there the generators are seeded by the first key, so the draws depend on the batch as well.

    Keys come as `from_both_ends` yields them; with ``pairs``, in groups of a micro-batch.
    """

    def __init__(self, data: Any, seed: int, *, pairs: bool) -> None:
        self.data, self.seed, self.pairs = data, seed, pairs
        while isinstance(data, Subset):  # has __getitems__, and hands out one item after another
            data = data.dataset
        self.in_batches = hasattr(data, "__getitems__")

    def __getitems__(self, found: Sequence[tuple[Key, Key]]) -> tuple[Key, None, Any]:
        first, keys = found[0][0], [key for _, key in found]
        if self.pairs:
            keys = keys[::2] + keys[1::2][::-1]  # for the whole micro-batch, this restores its order
        with generators_kept():
            if self.in_batches:
                reseed(self.seed, *keys[0])
                return first, None, self.data.__getitems__([key[1] for key in keys])
            items = []
            for key in keys:
                reseed(self.seed, *key)
                items.append(self.data[key[1]])
            return first, None, items


class SeededCollate:
    """Makes a batch with the global generators seeded by the seed and the batch's first sample."""

    def __init__(self, collate: Callable[[Any], Any], seed: int) -> None:
        self.collate, self.seed = collate, seed

    def __call__(self, fetched: tuple[Key, Place | None, Any]) -> tuple[Place | None, Any]:
        first, place, items = fetched
        with seeded(self.seed, "batch", *first):
            return place, self.collate(items)
