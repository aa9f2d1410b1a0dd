"""Random sequences of operations on random models: a few here, as many as one likes by ``tests.conversion.hunt``."""

import pytest

from tests.conversion.hunt import (
    compiled,
    convert,
    convert_with_guard,
    correct,
    deepcopied,
    draw,
    folded,
    follow,
    hooked,
    offloaded,
    take_back,
    trained,
    wrapped,
)

# What the hunt has found: accelerate's hooks before a conversion, and between it and its end; weights that it moves
FOUND = [
    ("torch_mha", (hooked, convert)),
    ("timm_vit", (wrapped, hooked, convert)),
    ("torch_transformer", (convert, hooked, trained, take_back)),
    ("torch_transformer", (deepcopied, hooked, convert)),
    ("llama", (correct, offloaded)),
    ("bert", (correct, offloaded, folded)),
]


@pytest.mark.parametrize(("name", "operations"), FOUND)
def test_what_was_found_stays_mended(name, operations):
    outcomes = follow(name, operations)
    assert outcomes[:-1] == ["done"] * (len(operations) - 1)
    assert outcomes[-1] == ("refused" if operations[-1] is folded else "done")


def seeds():
    """In the quick suite those without torch.compile."""
    for seed in range(100):
        yield pytest.param(seed, marks=pytest.mark.slow if compiled in draw(seed)[1] else ())


@pytest.mark.one_in(10)
@pytest.mark.parametrize("seed", [*seeds()])
def test_a_model_is_what_it_says_whatever_is_done_to_it(seed):
    name, operations = draw(seed)
    outcomes = follow(name, operations, seed)
    if operations[0] in (convert, convert_with_guard, correct):
        assert outcomes[0] == "done", "no fresh model is refused"
