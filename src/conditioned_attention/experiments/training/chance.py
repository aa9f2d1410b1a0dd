"""Random numbers that depend on a key alone: the same draws in any process, on any rank, and after any resume."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(*key: object) -> Iterator[None]:
    """Seeds the generators of torch (on the CPU), numpy and Python by ``key``, and restores them afterwards."""
    with generators_kept():
        reseed(*key)
        yield


@contextmanager
def generators_kept() -> Iterator[None]:
    """Restores the global generators afterwards, whatever is drawn inside.

    This costs ten times as much as `reseed`, so many items are fetched inside one such context.
    """
    pythons, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002 - the one that transforms draw from
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(pythons)
            np.random.set_state(numpys)  # noqa: NPY002


def reseed(*key: object) -> None:
    """Seeds the global generators of torch (on the CPU), numpy and Python by ``key``."""
    number = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big")
    torch.default_generator.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002
