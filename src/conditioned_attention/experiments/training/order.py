"""The order in which a run sees its training samples, which depends on the seed and the position in the run alone."""

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

IN_MEMORY = 2**20  # up to this length, a permutation (8 MiB) is kept; beyond, every index is computed when needed
_CHUNK = 2**14  # indices computed at a time
_ROUNDS = 8


@dataclass(frozen=True)
class SampleOrder(Choices):
    """The order of a data set whose samples have an index: shuffled, repeated or as stored.

    ``"shuffled"`` is a new permutation every epoch.  ``"repeated"`` is repeated augmentation, as in DeiT and timm's
    ``RepeatAugSampler``: each sample of the permutation comes ``repeats`` times in a row, each time with other random
    numbers; an epoch is as long as a plain one, so it has only 1/``repeats`` of the samples.  ``"stored"`` is the order
    of the data set, the same in every epoch.

    Three things differ from timm's sampler on purpose.  An epoch consists of whole batches, not of a multiple of 256
    samples (for ImageNet with batches of 1,024, both are 1,281,024 samples).  The permutation depends on the run's seed
    and the epoch, while timm's seed is the epoch alone (for up to 2²⁰ samples, seed 0 gives exactly timm's order).  The
    copies of a sample stay neighbours in one process, while timm distributes them over the processes, which does not
    change any step's samples.

    Attributes:
        order: one of these three.
        length: samples in the data set.
        seed: seed of the permutations.
        used: samples per epoch; less than ``length`` if those that do not fill a batch are left out.
        repeats: copies of each sample.
    """

    order: Literal["shuffled", "repeated", "stored"]
    length: int
    seed: int
    used: int
    repeats: int = 3

    def keys(self, start: int = 0) -> Iterator[Key]:
        """Yields keys without end, from sample ``start`` on, counted since the beginning of the run."""
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
    """Reorders every ``size`` keys from both ends: the first and the last, the second and the last but one, ….

    Each key is yielded together with the first one of its group.

    >>> [key for _, (key,) in from_both_ends(((i,) for i in range(6)), 6)]
    [0, 5, 1, 4, 2, 3]
    """
    while some := list(itertools.islice(keys, size)):
        for i in range(len(some)):
            yield some[0], some[-1 - i // 2 if i % 2 else i // 2]


def permutation(length: int, seed: int, epoch: int) -> Callable[[Array], Array]:
    """Returns a permutation of ``range(length)``, set by seed and epoch, as a function from positions to indices."""
    if length <= IN_MEMORY:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        return torch.randperm(length, generator=generator).numpy().__getitem__
    digest = hashlib.blake2b(repr((seed, epoch)).encode(), digest_size=8 * _ROUNDS).digest()
    return functools.partial(_permuted, length, np.frombuffer(digest, "<u8"))


def _permuted(length: int, round_keys: Array, positions: Array) -> Array:
    """Permutes by a Feistel network over a rectangle that just holds ``length`` numbers (Black and Rogaway, 2002).

    A number is a pair (left, right), and each round adds a hash of one half to the other.  This can be undone, so the
    network permutes the rectangle.  A number that lands outside ``length`` goes through the network again until it is
    inside, which is rare because the rectangle has less than one row too many.
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
