"""Converted models on `lean`, which the table would give them from half a million numbers on."""

import pytest
import torch

from conditioned_attention import functional, precondition
from conditioned_attention.attention.lean import attend as lean
from conditioned_attention.profiling.memory import held_bytes
from tests.models import MODELS, build, inputs, output, weigh
from tests.oracle import NormalisedRows

# It adds a learned position bias to the logits.
WITHOUT_LEAN = {"t5"}


@pytest.fixture
def rows_of_lean(monkeypatch):
    """Prefers `lean` at any size, and lists the rows (B · H · N) of each call."""
    monkeypatch.setattr(functional, "_AUTO", (functional._Rule("cpu", 0, "lean", "a test"),))
    calls = []

    def attend(transform, arguments):
        calls.append(arguments.query[..., 0].numel())
        return original(transform, arguments)

    original = lean.attend
    monkeypatch.setattr(lean, "attend", attend)
    return calls


def outcome(model):
    """Output and the gradients of all parameters."""
    model.zero_grad()
    result = output(model)
    weigh(result).backward()
    return [result.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", sorted(set(MODELS) - WITHOUT_LEAN))
def test_same_as_the_outside_oracle_and_one_float_a_row_more(name, rows_of_lean):
    model = build(name)
    exist = [*model.parameters(), *model.buffers(), *(t for t in inputs(model).values() if isinstance(t, torch.Tensor))]
    plain = held_bytes(lambda: output(model), exist)
    with NormalisedRows():
        expected = outcome(model)
    assert not rows_of_lean
    precondition(model)
    largest = max(theirs.abs().max().item() for theirs in expected)  # the gradient of a key's bias is 0 and rounding
    for ours, theirs in zip(outcome(model), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * largest)
    assert len(rows_of_lean) == MODELS[name][1]
    rows = sum(rows_of_lean)
    # torch.nn's own module spreads its masks over the heads and keeps that; ours does not, and keeps even less.
    assert held_bytes(lambda: output(model), exist) - plain <= 4 * rows


@pytest.mark.parametrize("name", sorted(WITHOUT_LEAN))
def test_models_that_it_cannot_serve_take_the_other(name, rows_of_lean):
    model = build(name)
    precondition(model)
    outcome(model)
    assert not rows_of_lean
