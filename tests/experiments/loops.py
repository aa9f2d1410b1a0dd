"""Loops of a user, in a module that worker processes can import quickly; what they yield needs no training."""

import os
import signal
import time

import torch
from torch.utils.data import DataLoader


def scores(variant, seed):
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(1, 4):
        noise = torch.rand((), generator=generator).item()
        yield {
            "epoch": epoch,
            "score": 50 + 10 * epoch + noise + ((5 + seed / 10) if variant.name == "preconditioned" else 0),
        }


def fails_on_seed_1(variant, seed):
    yield {"score": 1.0}
    if seed == 1 and variant.name == "preconditioned":
        raise ArithmeticError("seed 1 went wrong")
    yield {"score": 2.0}


def peaks_at_a_rate(variant, seed, lr):
    """Best at 4e-3 for the baseline and at 1e-3 for the others; from 0.1 on the loss is not finite."""
    if lr >= 0.1:
        raise FloatingPointError("the training loss is nan")
    best = 4e-3 if variant.name.startswith("baseline") else 1e-3
    yield {"score": 100.0}
    yield {"score": 90 - 10 * abs(torch.tensor(lr / best).log2().item()) + seed % 10}


def of_many_fates(variant, seed):
    """By its seed a run is killed, ends its process, raises, or has a process of its own for its data."""
    yield {"score": 1.0}
    if seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if seed == 2:
        os._exit(9)
    if seed == 3:
        raise ArithmeticError("seed 3 went wrong")
    loader = DataLoader(torch.arange(4.0), num_workers=1)
    yield {"score": sum(batch.item() for batch in loader)}


def trivial(variant, seed):
    yield {"score": float(seed)}


def stubborn(variant, seed):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield {"score": 1.0}
    time.sleep(1000)
    yield {"score": 1.0}


class NowhereToBeImported:
    """Pickles well, and ends the process that wants it back."""

    def __call__(self, variant, seed):
        yield {"score": 1.0}

    def __reduce__(self):
        return os._exit, (3,)
