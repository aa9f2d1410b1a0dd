"""Spectra of attention weights, beside the matrices of the paper's own equations."""

import pytest
import torch

from conditioned_attention import reference
from conditioned_attention.measure.numbers.attention_weights import _Weights, attention_spectrum


def heads(n=70, m=70, d=8):
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 3, length, d, generator=generator) for length in (n, m))
    return 2 * query, key


MASKS = {
    "none": {},
    "causal": {"is_causal": True},
    "boolean": {"attn_mask": torch.arange(70) < 50},
    "additive": {"attn_mask": torch.linspace(-3, 3, 70)},
    "scale": {"scale": 1.0},
}


@pytest.mark.parametrize("options", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("leading", [None, 5])
def test_values_are_those_of_the_weights(options, leading):
    query, key = heads()
    weights = reference.attention_weights(query.double(), key.double(), **options)
    exact = torch.linalg.svdvals(weights)[..., :leading]
    found = attention_spectrum(query, key, leading=leading, block=16, **options)
    assert ((found.singular_values - exact).abs() <= found.error + 1e-9).all(), "within the error that is stated"
    torch.testing.assert_close(found.singular_values[..., :2], exact[..., :2], rtol=1e-3, atol=0)
    torch.testing.assert_close(
        found.stable_rank, weights.square().sum((-2, -1)) / exact[..., 0] ** 2, rtol=1e-3, atol=0
    )
    assert found.singular_values.shape == (2, 3, leading or 70)


def test_more_keys_than_queries():
    query, key = heads(n=33, m=90)
    exact = torch.linalg.svdvals(reference.attention_weights(query.double(), key.double()))
    torch.testing.assert_close(attention_spectrum(query, key).singular_values, exact)
    found = attention_spectrum(query, key, leading=33)
    assert ((found.singular_values - exact).abs() <= found.error + 1e-9).all()


def test_a_row_that_may_attend_to_nothing_is_zero():
    query, key = heads()
    mask = torch.ones(70, 70, dtype=torch.bool)
    mask[5] = False
    exact = torch.linalg.svdvals(reference.attention_weights(query.double(), key.double(), mask))
    torch.testing.assert_close(attention_spectrum(query, key, mask).singular_values, exact)


def test_no_more_rows_than_a_block_exist_at_one_time(monkeypatch):
    query, key = heads(n=500, m=400)
    seen = []
    original = _Weights.blocks

    def noted(self):
        for rows, part in original(self):
            seen.append(tuple(part.shape))
            yield rows, part

    monkeypatch.setattr(_Weights, "blocks", noted)
    attention_spectrum(query, key, leading=2, block=64)
    assert max(rows for rows, _ in seen) == 64
    monkeypatch.setattr(torch, "cat", lambda parts: pytest.fail("P in one piece") if parts[0].shape[1] == 400 else None)
    with pytest.raises(pytest.fail.Exception):
        attention_spectrum(query, key)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((torch.ones(1, 2, 3, 4), "k"), {}, TypeError, "key must be a floating-point tensor, got str"),
        ((torch.ones(2, 3, 4), torch.ones(2, 3, 4)), {}, ValueError, r"query must be \(B, H, N, D\)"),
        ((torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 5)), {}, ValueError, "must differ in N alone"),
        ((torch.ones(1, 2, 3, 4),) * 2, {"leading": 4}, ValueError, "leading must be from 1 to 3"),
        ((torch.ones(1, 2, 3, 4),) * 2, {"block": 0}, ValueError, "block must be at least 1"),
    ],
)
def test_wrong_input(arguments, options, error, words):
    with pytest.raises(error, match=words):
        attention_spectrum(*arguments, **options)
