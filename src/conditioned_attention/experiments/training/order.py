"""In which order a run sees its training samples: set by the seed and the position in the run alone."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from conditioned_attention.choices import Choices

Order = Literal["shuffled", "repeated", "stored", "streamed"]
Key = tuple[int, ...]  # epoch, index in the data set, and the number of the copy where samples are repeated
Array = np.ndarray[Any, Any]

IN_MEMORY = 2**20  # a permutation of so many samples, 8 MiB, is kept; of more, every index is computed when needed
_CHUNK = 2**14  # indices computed at a time
_ROUNDS = 8


@dataclass(frozen=True)
class SampleOrder(Choices):
    """The order of a data set whose samples have an index: shuffled, repeated or as stored.

    ``"shuffled"`` is a new permutation every epoch.  ``"repeated"`` is repeated augmentation, as in DeiT and timm's
    ``RepeatAugSampler``: each sample of the permutation comes ``repeats`` times in a row, with other chance each time;
    an epoch is as long as a plain one, so it has only a ``repeats``-th of the samples.  ``"stored"`` is the order of
    the data set, alike in every epoch.

    On purpose not as in timm's sampler: whole batches make up an epoch, not multiples of 256 samples (of ImageNet at
    1,024 a batch both are 1,281,024 samples); the run's seed counts besides the epoch, whose number alone is timm's
    seed (of up to 2²⁰ samples seed 0 gives timm's very order); and the copies of a sample stay neighbours in one
    process, where timm deals them out to different ones, which changes no step's samples.

    Attributes:
        order: one of these three.
        length: samples in the data set.
        seed: of the permutations.
        used: samples an epoch; less than ``length`` where those that do not fill a batch are left out.
        repeats: copies of a sample.
    """

    order: Literal["shuffled", "repeated", "stored"]
    length: int
    seed: int
    used: int
    repeats: int = 3

    def keys(self, start: int = 0) -> Iterator[Key]:
        """Keys without end, from this sample on, counted since the beginning of the run."""
        epoch, first = divmod(start, self.used)
        while True:
            permuted = None if self.order == "stored" else permutation(self.length, self.seed, epoch)
            for begin in range(first, self.used, _CHUNK):
                positions = np.arange(begin, min(begin + _CHUNK, self.used))
                if permuted is None:
                    yield from ((epoch, index) for index in positions.tolist())
                elif self.order == "shuffled":
                    yield from ((epoch, index) for index in permuted(positions).tolist())
                else:
                    which, copies = np.divmod(positions, self.repeats)
                    yield from ((epoch, i, copy) for i, copy in zip(permuted(which).tolist(), copies.tolist()))
            epoch, first = epoch + 1, 0


def from_both_ends(keys: Iterator[Key], size: int) -> Iterator[tuple[Key, Key]]:
    """Every ``size`` keys, each behind the first of them: the first and the last, the second and the last but one, ….

    >>> [key for _, (key,) in from_both_ends(((i,) for i in range(6)), 6)]
    [0, 5, 1, 4, 2, 3]
    """
    while some := list(itertools.islice(keys, size)):
        for i in range(len(some)):
            yield some[0], some[-1 - i // 2 if i % 2 else i // 2]


def permutation(length: int, seed: int, epoch: int) -> Callable[[Array], Array]:
    """A permutation of ``range(length)``, set by seed and epoch: a function from positions to indices."""
    if length <= IN_MEMORY:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        return torch.randperm(length, generator=generator).numpy().__getitem__
    digest = hashlib.blake2b(repr((seed, epoch)).encode(), digest_size=8 * _ROUNDS).digest()
    return functools.partial(_permuted, length, np.frombuffer(digest, "<u8"))


def _permuted(length: int, round_keys: Array, positions: Array) -> Array:
    """A Feistel network over a rectangle that just holds ``length`` numbers (Black and Rogaway, 2002).

    A number is a pair (left, right), and each round adds to one half what a hash makes of the other, which can be
    undone: so it permutes the rectangle.  Who lands outside ``length`` goes through it again until inside: as the
    rectangle has less than one row too many, that is rare.
    """
    columns = math.isqrt(length - 1) + 1
    rows = -(-length // columns)

    def network(numbers: Array) -> Array:
        left, right = np.divmod(numbers, columns)
        for i, key in enumerate(round_keys):
            if i % 2:
                right = (right + _mixed(left ^ key) % columns) % columns
            else:
                left = (left + _mixed(right ^ key) % rows) % rows
        return left * columns + right

    found = network(positions.astype(np.uint64))
    while (outside := found >= length).any():
        found[outside] = network(found[outside])
    return found.astype(np.int64)


def _mixed(numbers: Array) -> Array:
    """The mixer of SplitMix64: every bit of the result depends on every bit of the number."""
    numbers = (numbers ^ (numbers >> 30)) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> 27)) * np.uint64(0x94D049BB133111EB)
    numbers ^= numbers >> 31
    return numbers
