"""Large cases are judged in part: the very call that is timed, some heads of it against float64."""

import dataclasses

import pytest
import torch

from conditioned_attention.bench.cases import CASES, GPU_CASES, Case
from conditioned_attention.bench.contestants import Contestant, contestants
from conditioned_attention.bench.judge import judge
from conditioned_attention.bench.part import Part, part_of
from tests.bench.tiny import three_lines

CPU = torch.device("cpu")
CASE = Case("grouped", (3, 6, 5, 4), "nowhere", key_heads=3)
HEAD = 8 * 5 * 5  # bytes of a head's weights


def inputs(case):
    return case.inputs(CPU, torch.float32)


@pytest.mark.parametrize(
    ("heads", "batches", "key_heads"),
    [(1, [2], [2]), (2, [2], [2]), (5, [2], [2, 0]), (6, [2], [2, 1, 0]), (12, [2, 0], [2, 1, 0])],
)
def test_as_many_heads_as_are_affordable_the_last_ones_first(heads, batches, key_heads):
    """Two query heads share a key head, so heads come in pairs."""
    assert part_of(inputs(CASE), heads * HEAD) == Part(batches, key_heads, 3)


def test_what_is_compared_whole():
    assert part_of(inputs(CASE), 18 * HEAD) is None
    assert part_of(inputs(dataclasses.replace(CASE, mask="bias")), HEAD) is None
    for case in CASES.values():  # the committed numbers of a CPU were judged whole
        batch, heads, n, _ = case.query
        assert 8 * batch * heads * n * (case.keys or n) <= 2**30, case.name
    assert any(8 * heads * n * n * batch > 2**30 for batch, heads, n, _ in (c.query for c in GPU_CASES.values()))


@pytest.mark.parametrize("mask", ["none", "padding"])
def test_attention_of_a_part_is_the_part_of_attention(mask):
    case = dataclasses.replace(CASE, mask=mask)
    whole, attend = inputs(case), contestants(case, compiled=False)[0].attend
    part = Part([2, 0], [2, 0], 3)
    some = part.inputs(whole)
    torch.testing.assert_close(part.cut(attend(*whole.arguments)), attend(*some.arguments))
    assert some.query.shape == (2, 4, 5, 4)
    gradients = torch.autograd.grad(attend(*whole.arguments), whole.leaves, whole.upstream)
    of_some = torch.autograd.grad(attend(*some.arguments), some.leaves, some.upstream)
    for a, b in zip(gradients, of_some):
        torch.testing.assert_close(part.cut(a), b)


@pytest.mark.parametrize(
    ("batch", "value", "status"), [(0, 2.0, "measured"), (2, 2.0, "wrong"), (0, torch.nan, "wrong")]
)
def test_the_part_is_judged_and_the_rest_must_be_finite(batch, value, status):
    case = Case("whole", (3, 2, 5, 4), "nowhere")

    def attend(*arguments):
        return three_lines(*arguments) * torch.ones(3, 1, 1, 1).index_fill(0, torch.tensor(batch), value)

    usual = contestants(case, compiled=False)
    verdict = judge([usual[0], Contestant("other", attend, usual[1].oracle)], inputs(case), 2 * HEAD)["other"]
    assert verdict.status == status
