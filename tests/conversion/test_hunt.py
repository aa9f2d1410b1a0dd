"""Random sequences of operations on random models: a few here, as many as one likes by ``tests.conversion.hunt``."""

import pytest

from tests.conversion.hunt import compiled, convert, deepcopied, draw, follow, hooked, take_back, trained, wrapped

# What the hunt has found: accelerate's hooks before a conversion, and between it and its end
FOUND = [
    ("torch_mha", (hooked, convert)),
    ("timm_vit", (wrapped, hooked, convert)),
    ("torch_transformer", (convert, hooked, trained, take_back)),
    ("torch_transformer", (deepcopied, hooked, convert)),
]


@pytest.mark.parametrize(("name", "operations"), FOUND)
def test_what_was_found_stays_mended(name, operations):
    follow(name, operations)


def seeds():
    """Some, without torch.compile, in the quick suite."""
    for seed in range(60):
        quick = seed < 16 and compiled not in draw(seed)[1]
        yield pytest.param(seed, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize("seed", seeds())
def test_a_model_is_what_it_says_whatever_is_done_to_it(seed):
    follow(*draw(seed), seed)
