"""`jacobian_records`: the heads of real models, with their real inputs."""

import pytest
import torch
from sklearn.datasets import load_digits
from timm.models.beit import Attention as BeitAttention
from torch import nn

from conditioned_attention import fold, precondition, register_attention, spectral_condition
from conditioned_attention.measure.numbers.jacobian import jacobian_condition
from conditioned_attention.measure.probing.jacobian import jacobian_records
from tests.models import build, inputs, output, tokens, vectors

DIGITS = torch.tensor(load_digits().images[:2], dtype=torch.float32).unsqueeze(1) / 8 - 1


@pytest.mark.one_in(2)
@pytest.mark.parametrize("strength", [None, 0.5])
@pytest.mark.parametrize("wrt", ["query", "key", "value"])
def test_one_head_of_a_vit_on_a_digit(wrt, strength):
    model = build("timm_vit")
    if strength is not None:
        spectral_condition(model, strength)
    precondition(model)  # the Jacobian is that of softmax(q kᵀ) v, before C
    attention, seen = model.blocks[1].attn, []
    handle = attention.register_forward_pre_hook(lambda module, args: seen.append(args[0][0].detach()))
    model(DIGITS)
    handle.remove()
    x = torch.cat((seen[0], torch.ones(len(seen[0]), 1)), 1)
    weight = torch.cat((attention.qkv.weight, attention.qkv.bias[:, None]), 1).detach().unflatten(0, (3, 4, 8))[:, 2]
    if strength is not None:
        weight[:, :, 16:24] += strength * torch.eye(8)
    expected = jacobian_condition(x, *weight, wrt=wrt)
    record = next(r for r in jacobian_records(model, DIGITS) if (r.module, r.head) == ("blocks.1.attn", 2))
    found = getattr(record, wrt)
    assert (found.kappa, found.smallest) == pytest.approx((expected.kappa, expected.smallest), rel=1e-4)
    assert found.zeros == expected.zeros


def test_a_folded_correction_counts_once():
    model = build("timm_vit")
    spectral_condition(model, 0.5)
    before = jacobian_records(model, DIGITS)
    fold(model)
    for record, other in zip(before, jacobian_records(model, DIGITS)):
        assert record.together.kappa == pytest.approx(other.together.kappa, rel=1e-2)


@pytest.mark.parametrize(
    ("name", "probe"),
    [("timm_vit", DIGITS), ("bert", {"input_ids": tokens()}), ("torch_encoder", vectors(7, 2, 32))],
)
def test_every_head_and_the_model_is_left_alone(name, probe):
    model = build(name)
    before = output(model)
    records = jacobian_records(model, probe)
    assert [record.head for record in records] == [0, 1, 2, 3] * 2
    assert all(record.value.kappa > 1 and record.query.zeros >= 0 for record in records)
    assert torch.equal(output(model), before)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_attention_with_something_in_it_is_refused(name):
    """Rotary positions, a causal mask, padding."""
    model = build(name)
    with pytest.raises(ValueError, match="attention here is more than"):
        jacobian_records(model, inputs(model))


class OneWeight(nn.Module):
    """Whose name does not say that it is a weight."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.w, self.out = 2, nn.Parameter(torch.randn(48, 16) / 4), nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = (x @ self.w.t()).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def beit():
    attention = BeitAttention(16, 2, qkv_bias=True)
    nn.init.normal_(attention.q_bias)
    return attention


@pytest.mark.parametrize("attention", [OneWeight, beit])
def test_biases_that_do_not_stand_beside_the_weight(attention):
    register_attention(OneWeight, at="out", projections={"w": "qkv"})
    assert len(jacobian_records(nn.Sequential(attention()), torch.randn(1, 5, 16))) == 2


def test_keys_of_another_width():
    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, kdim=12, vdim=12, batch_first=True)

        def forward(self, x):
            return self.attention(x, x[..., :12], x[..., :12])

    with pytest.raises(
        ValueError, match="attention: queries, keys and values are computed from inputs of different widths"
    ):
        jacobian_records(Cross(), torch.randn(1, 5, 16))
