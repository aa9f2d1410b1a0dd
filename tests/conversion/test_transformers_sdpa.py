"""`attend_like_sdpa` beside transformers' own function: the same numbers, for everything it stands in for."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from transformers.integrations import sdpa_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from conditioned_attention.preconditioner import HeadTransform
from conditioned_attention.sites.transformers import sdpa
from conditioned_attention.sites.transformers.sdpa import attend_like_sdpa, look_up, stands_in_for


@dataclass(frozen=True)
class Unchanged(HeadTransform):
    kind: ClassVar[str] = "unchanged"

    def __call__(self, output, weights=None):
        return output


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("mask", [None, "bool", "float"])
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("module_is_causal", [False, True])
@pytest.mark.parametrize("is_causal", [None, False, True])
@pytest.mark.parametrize("keys", [7, 10])
def test_same_numbers(groups, mask, scaling, module_is_causal, is_causal, keys):
    look_up()
    module = SimpleNamespace(num_key_value_groups=groups, is_causal=module_is_causal)
    query, key, value = torch.randn(2, 4, 7, 8), *torch.randn(2, 2, 4 // groups, keys, 8)
    if mask is not None:
        mask = torch.rand(2, 1, 7, keys) > 0.4 if mask == "bool" else torch.randn(2, 1, 7, keys)
    options = {"dropout": 0.0, "scaling": scaling, "is_causal": is_causal, "position_bias": None, "sliding_window": 3}
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, **options)
    ours, weights = attend_like_sdpa(Unchanged(), module, query, key, value, mask, **options)
    assert weights is None
    assert ours.is_contiguous()
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(
    ("last", "known"),
    [("", True), ("position_bias=None, ", True), ("position_bias=None, cache=None, ", True), ("s=0, ", False)],
)
def test_functions_of_other_releases(last, known, monkeypatch):
    """Those of transformers 5.4, 5.14 and 5.23 are known by their arguments; with others it may be anything."""
    begin = "module, query, key, value, attention_mask, dropout=0.0, scaling=None, is_causal=None, "
    function = eval(f"lambda {begin}{last}**kwargs: None")
    monkeypatch.setattr(sdpa_attention, "sdpa_attention_forward", function)
    monkeypatch.setattr(sdpa, "_module", None)
    look_up()
    assert stands_in_for(function, torch.randn(1, 2, 5, 8), {}) == known


def test_stands_in_for_no_more_than_it_knows():
    look_up()
    query = torch.randn(1, 2, 5, 8)
    assert stands_in_for(sdpa_attention_forward, query, {"sliding_window": 4, "position_bias": None})
    for option in ("position_bias", "cache", "softcap"):
        assert not stands_in_for(sdpa_attention_forward, query, {option: 1.0})
    assert not stands_in_for(lambda *args: None, query, {})
    assert not stands_in_for(sdpa_attention_forward, query[:, :, :1], {})
    assert not stands_in_for(sdpa_attention_forward, query.to("meta"), {})
