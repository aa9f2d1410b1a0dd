"""Batches that depend on the seed and their place in training alone: not on workers, ranks, or where a run resumed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

Order = Literal["shuffled", "repeated", "stored", "streamed"]

Key = tuple[int, int]  # epoch, index in the data set


class EpochSampler(Sampler[Key]):
    """A new permutation every epoch, set by the seed and the epoch alone, from any position in it.

    It yields (epoch, index), so that random augmentation can be another one in every epoch.  Only whole batches: the
    last ``length % batch_size`` samples of each permutation are left out.
    """

    def __init__(self, length: int, seed: int, batch_size: int = 1) -> None:
        self.length, self.seed = length, seed
        self.used = length // batch_size * batch_size
        self.epoch, self.start = 0, 0

    def start_at(self, epoch: int, start: int) -> None:
        """The next iteration is over this epoch, from this sample on."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return self.used - self.start

    def __iter__(self) -> Iterator[Key]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.length, generator=generator)[self.start : self.used].tolist()
        return iter([(self.epoch, index) for index in order])


class SeededItems(Dataset[Any]):
    """A data set whose items are fetched with every global generator set by (seed, epoch, index).

    Random transforms of torchvision, timm or the user's own draw from the generators of torch, numpy and Python; so
    they give the same picture in any worker, on any rank, and after any resume.  A data set with ``__getitems__``
    hands out whole batches, which must not be random; `SeededCollate` sees to what is random in a batch.
    """

    def __init__(self, data: Dataset[Any], seed: int) -> None:
        self.data, self.seed = data, seed
        self.fetch: Callable[[list[int]], Any] | None = getattr(data, "__getitems__", None)

    def __getitems__(self, keys: Sequence[Key]) -> tuple[Key, Any]:
        if self.fetch is not None:
            return keys[0], self.fetch([index for _, index in keys])
        return keys[0], [self._item(key) for key in keys]

    def _item(self, key: Key) -> Any:
        with seeded(self.seed, *key):
            return self.data[key[1]]

    def __getitem__(self, key: Key) -> Any:  # the loader asks for whole batches
        return self.__getitems__([key])


class SeededCollate:
    """Makes a batch with the global generators set by the seed and the batch's first sample."""

    def __init__(self, collate: Callable[[Any], Any], seed: int) -> None:
        self.collate, self.seed = collate, seed

    def __call__(self, fetched: tuple[Key, Any]) -> Any:
        first, items = fetched
        with seeded(self.seed, "batch", *first):
            return self.collate(items)


@contextmanager
def seeded(*key: object) -> Iterator[None]:
    """The generators of torch (on the CPU), numpy and Python start from ``key``, and afterwards are as they were."""
    import numpy as np

    number = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big")
    pythons, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002 - the one that transforms draw from
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(number)
        random.seed(number)
        np.random.seed(number % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(pythons)
            np.random.set_state(numpys)  # noqa: NPY002


def training_loader(
    data: Dataset[Any], sampler: EpochSampler, batch_size: int, collate: Callable[[Any], Any], workers: int
) -> DataLoader[Any]:
    """The loader of the training set.

    It has a generator of its own: a loader otherwise draws from the global one, which a resumed run would find in
    another state.
    """
    return DataLoader(
        SeededItems(data, sampler.seed),
        batch_size,
        sampler=sampler,
        collate_fn=SeededCollate(collate, sampler.seed),  # type: ignore[arg-type]
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator(),
    )
