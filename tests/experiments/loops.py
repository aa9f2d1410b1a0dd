"""Loops of a user, in a module that worker processes can import quickly; what they yield needs no training."""

import os

import torch


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


def dies_on_seed_1(variant, seed):
    yield {"score": 1.0}
    if seed == 1:
        os._exit(9)
