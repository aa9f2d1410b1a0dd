"""Row weights by D-optimal design: against the definition in float64, step by step, and where they are refused."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

from conditioned_attention import (
    apply_conditioning,
    condition_number,
    conditioning,
    log_complexity,
    precondition_rows,
    reference,
    restore,
)
from conditioned_attention.conversion import convert
from conditioned_attention.d_optimal import DOptimal, d_optimal_weights
from conditioned_attention.functional import attend
from conditioned_attention.preconditioner import RowNorm
from conditioned_attention.sites import find_sites
from tests.models import build, inputs, output

COUNTEREXAMPLE = torch.tensor([[1.0, 0.0], [0.0, 0.5**0.5], [0.0, 0.5**0.5]], dtype=torch.float64)


def heads(*shape, seed=0, spread=True):
    """float64, with rows of very different norms, all above eps."""
    generator = torch.Generator().manual_seed(seed)
    matrices = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return matrices * torch.logspace(0, 6, shape[-2], dtype=torch.float64).unsqueeze(-1) if spread else matrices


def one_step(head, p):
    """The definition, for one head of full column rank."""
    unit = head / head.norm(dim=-1, keepdim=True)
    inverse = torch.linalg.inv(unit.T @ torch.diag(p) @ unit)
    return p * torch.stack([u @ inverse @ u for u in unit]) / head.shape[-1]


def test_one_step_repairs_the_counterexample_of_theorem_4_4():
    assert reference.complexity(COUNTEREXAMPLE).item() == pytest.approx(2)
    assert reference.complexity(DOptimal(0)(COUNTEREXAMPLE)).item() == pytest.approx(1.5 * 2**0.5)
    for steps in (1, 2, 50):
        assert d_optimal_weights(COUNTEREXAMPLE, steps).tolist() == pytest.approx([0.5, 0.25, 0.25])
        assert reference.complexity(DOptimal(steps)(COUNTEREXAMPLE)).item() == pytest.approx(2)
    assert reference.condition_number(DOptimal(1)(COUNTEREXAMPLE)).item() == pytest.approx(1)


@pytest.mark.parametrize("shape", [(3, 2, 9, 4), (2, 197, 64), (7, 1)])
def test_steps_are_those_of_the_definition(shape):
    matrices = heads(*shape)
    expected = torch.full(shape[:-1], 1 / shape[-2], dtype=torch.float64)
    for steps in range(4):
        found = d_optimal_weights(matrices, steps)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)
        flat = (
            [one_step(*pair) for pair in zip(matrices.flatten(0, -3), expected.flatten(0, -2))]
            if len(shape) > 2
            else [one_step(matrices, expected)]
        )
        expected = torch.stack(flat).view(shape[:-1])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(1, 30), st.integers(0, 10**6))
def test_no_step_raises_mu_and_each_lowers_it_by_what_the_proof_says(d, more, seed):
    """log μ falls by at least k/2 · KL(new p ‖ old p); the ridge of 1e-12 moves it by that times κ² or so."""
    head = heads(d + more, d, seed=seed)
    p, log_mu = d_optimal_weights(head, 0), log_complexity(DOptimal(0)(head))
    slack = 1e-9 + 1e-11 * condition_number(DOptimal(0)(head)) ** 2
    for steps in (1, 2, 3, 4):
        new, new_log_mu = d_optimal_weights(head, steps), log_complexity(DOptimal(steps)(head))
        assert new.sum().item() == pytest.approx(1, abs=1e-12)
        divergence = torch.special.xlogy(new, new / p).sum()
        assert new_log_mu <= log_mu - d / 2 * divergence + slack
        p, log_mu = new, new_log_mu


def test_many_steps_reach_the_optimum():
    """Kiefer and Wolfowitz: at the optimum, and only there, no u_iᵀ M⁻¹ u_i exceeds k."""
    head = heads(40, 5)
    unit, p = head / head.norm(dim=-1, keepdim=True), d_optimal_weights(head, 1000)
    leverages = ((unit @ torch.linalg.inv(unit.T @ torch.diag(p) @ unit)) * unit).sum(-1)
    assert leverages.max().item() == pytest.approx(5, rel=1e-3)
    assert condition_number(DOptimal(1000)(head)).item() == pytest.approx(1, rel=1e-3), "so many rows can be balanced"


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(0, 8), st.integers(0, 10**6))
def test_uniform_weights_are_optimal_for_no_more_rows_than_columns(n, more, seed):
    """They come back as they are, and no other weights have a smaller μ."""
    head = heads(n, n + more, seed=seed)
    assert torch.equal(d_optimal_weights(head, 7), torch.full((n,), 1 / n, dtype=torch.float64))
    torch.testing.assert_close(DOptimal(7)(head), precondition_rows(head), rtol=1e-15, atol=0)
    other = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1e-3
    others = other.sqrt().unsqueeze(-1) * precondition_rows(head)
    assert log_complexity(precondition_rows(head)) <= log_complexity(others) + 1e-9


# Heads that are not of full rank, or not finite


@pytest.mark.parametrize("rank", [1, 3])
def test_rank_deficient_heads_lower_the_product_over_the_directions_that_there_are(rank):
    head = heads(2, 20, rank) @ heads(2, rank, 8, seed=1, spread=False)
    before = None
    for steps in (0, 1, 5):
        p = d_optimal_weights(head, steps)
        torch.testing.assert_close(p.sum(-1), torch.ones(2, dtype=torch.float64))
        logs = torch.linalg.svdvals(DOptimal(steps)(head))[..., :rank].log().sum(-1)
        assert before is None or (logs >= before - 1e-9).all()
        before = logs
    within = d_optimal_weights(heads(2, 20, rank), 5) if rank == 1 else None
    assert within is None or torch.allclose(p, within, rtol=1e-6)


def test_rows_of_zero_keep_their_weight_and_the_others_share_the_rest():
    head = heads(2, 12, 3)
    padded = torch.cat([head, torch.zeros(2, 4, 3, dtype=torch.float64)], dim=-2)
    found = d_optimal_weights(padded, 5)
    torch.testing.assert_close(found[:, 12:], torch.full((2, 4), 1 / 16, dtype=torch.float64))
    torch.testing.assert_close(found[:, :12], d_optimal_weights(head, 5) * 12 / 16)
    torch.testing.assert_close(DOptimal(5)(padded)[:, :12], DOptimal(5)(head))
    nothing = torch.zeros(5, 2)
    assert d_optimal_weights(nothing, 3).tolist() == pytest.approx([0.2] * 5)
    assert torch.equal(DOptimal(3)(nothing), nothing)
    tiny = torch.full((5, 2), 1e-300, dtype=torch.float64)
    assert d_optimal_weights(tiny, 3).tolist() == pytest.approx([0.2] * 5)


def test_a_head_that_is_not_finite_spoils_no_other():
    head = heads(3, 9, 4)
    head[0, 2, 1], head[1, 0, 0] = math.nan, math.inf
    found = d_optimal_weights(head, 2)
    assert found[:2].isnan().all()
    torch.testing.assert_close(found[2], d_optimal_weights(head[2], 2))


def test_ill_conditioned_heads_of_lower_precision():
    """κ = 1e9 and rounding to float32 below that: weights are finite, sum to 1, and μ of what is above falls."""
    u, _ = torch.linalg.qr(heads(60, 8, spread=False))
    head = (u @ torch.diag(torch.logspace(0, -9, 8, dtype=torch.float64))).float()
    before, p = precondition_rows(head.double()), d_optimal_weights(head, 10)
    assert p.isfinite().all()
    assert p.sum().item() == pytest.approx(1)
    logs = [torch.linalg.svdvals(matrix)[:4].log().sum() for matrix in (before, DOptimal(10)(head.double()))]
    assert logs[1] > logs[0]


# The transform


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-6), (torch.float16, 6.1e-5)])
def test_it_scales_rows_without_gradient_and_rounds_once(dtype, eps):
    head = heads(2, 3, 20, 4, spread=False).to(dtype).requires_grad_()
    upstream = heads(2, 3, 20, 4, seed=1, spread=False).to(dtype)
    scale = (20 * d_optimal_weights(head, 2, eps=eps)).sqrt().unsqueeze(-1) / head.detach().double().norm(
        dim=-1, keepdim=True
    )
    result = DOptimal(2)(head)
    assert result.dtype == dtype
    within = (2.0 if dtype == torch.float32 else 0.51) * torch.finfo(dtype).eps
    torch.testing.assert_close(result.double(), scale * head.detach().double(), rtol=within, atol=1e-7)
    result.backward(upstream)
    torch.testing.assert_close(
        head.grad.double(), scale * upstream.double(), rtol=4 * torch.finfo(dtype).eps, atol=1e-7
    )


def test_no_steps_are_the_preconditioner_to_the_bit():
    head = heads(2, 3, 20, 4).float()
    head[0, 0, 1] = 0.0
    assert torch.equal(DOptimal(0)(head), RowNorm()(head))
    assert not torch.allclose(DOptimal(1)(head), RowNorm()(head), rtol=1e-2)


def test_it_lowers_mu_of_real_heads_and_a_model_remembers_it():
    """17 rows of width 8, a vision transformer's; and every row in the layer depends on the others."""
    model = ViTModel(ViTConfig(image_size=8, patch_size=2, num_channels=1, hidden_size=32, num_hidden_layers=1,
                               num_attention_heads=4, intermediate_size=64)).eval()  # fmt: skip
    x = torch.randn(2, 1, 8, 8)
    plain = output(model, pixel_values=x)
    convert(model, DOptimal(3), strict=True)
    changed = output(model, pixel_values=x)
    assert not torch.allclose(changed, plain, atol=1e-3)
    record = json.loads(json.dumps(conditioning(model)))
    assert record["transforms"][0] | {"modules": []} == {"kind": "d_optimal", "steps": 3, "eps": 1e-6, "modules": []}
    restore(model)
    assert torch.equal(output(model, pixel_values=x), plain)
    apply_conditioning(model, record)
    assert torch.equal(output(model, pixel_values=x), changed)
    q, k, v = torch.randn(3, 2, 4, 17, 8)
    attended = attend(DOptimal(3), q, k, v).double(), attend(RowNorm(), q, k, v).double()
    assert (log_complexity(attended[0]) < log_complexity(attended[1])).all()
    assert (condition_number(attended[0]).isfinite()).all()


# Where it is refused


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_causal_models_are_refused(name):
    model = build(name)
    before = output(model)
    with pytest.raises(ValueError, match=r"it is causal, and DOptimal\(steps=1, eps=1e-06\) would let later tokens"):
        convert(model, DOptimal(), strict=True)
    assert torch.equal(output(model), before)


def test_a_decoder_is_refused_by_its_config():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    convert(BertModel(BertConfig(**sizes)), DOptimal(), strict=True)
    sites = find_sites(BertModel(BertConfig(**sizes, is_decoder=True, add_cross_attention=True)))
    assert len(sites) == 2
    assert all("it is causal, and DOptimal" in site.against(DOptimal()) for site in sites)
    assert not any(site.against(RowNorm()) for site in sites)


@pytest.mark.parametrize("name", ["bert", "torch_encoder", "torch_mha"])
def test_masks_are_refused_when_they_come(name):
    model = build(name)
    convert(model, DOptimal(), strict=True)
    with pytest.raises(ValueError, match="has a mask, such as one for padding: later tokens would change earlier ones"):
        output(model)
    if name == "bert":
        model.set_attn_implementation("eager")
        convert(model, DOptimal(), strict=True)
        with pytest.raises(ValueError, match="has a mask"):
            output(model)
    without = {k: v for k, v in inputs(model).items() if "mask" not in k}
    assert output(model, **without).isfinite().all()


def test_a_causal_call_of_a_module_that_does_not_say_so_is_refused():
    """CLIP's text model, which says it in its calls."""
    model = build("clip")
    convert(model, DOptimal(), strict=True)
    with pytest.raises(ValueError, match=r"this attention (is causal|has a mask)"):
        output(model, **{k: v for k, v in inputs(model).items() if "mask" not in k})


def test_causal_calls_and_masks_are_refused_on_tensors():
    q = torch.randn(1, 2, 5, 4)
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    for options, words in (({"is_causal": True}, "is causal"), ({"attn_mask": causal}, "has a mask")):
        with pytest.raises(ValueError, match=f"makes each row depend on the other rows of its head, .* {words}"):
            attend(DOptimal(), q, q, q, **options)
    attend(DOptimal(), q, q, q, torch.zeros(5, 5))  # a position bias
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    convert(layer, DOptimal())
    x = torch.randn(1, 5, 8)
    with pytest.raises(ValueError, match="has a mask"):
        layer(x, x, x, attn_mask=~causal)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: d_optimal_weights([[1.0]], 1), TypeError, "got list"),
        (lambda: d_optimal_weights(torch.ones(2, 2, dtype=torch.int), 1), TypeError, "got torch.int32"),
        (lambda: d_optimal_weights(torch.ones(2), 1), ValueError, r"got shape \(2,\)"),
        (lambda: d_optimal_weights(torch.ones(0, 2), 1), ValueError, "n and d at least 1"),
        (lambda: d_optimal_weights(torch.ones(3, 2), 1.0), TypeError, "steps must be an integer, got float"),
        (lambda: DOptimal(True), TypeError, "got bool"),
        (lambda: DOptimal(-1), ValueError, "steps must be at least 0, got -1"),
        (lambda: DOptimal(1, eps=0.0), ValueError, "eps must be positive"),
        (lambda: d_optimal_weights(torch.ones(3, 2), 1, eps=-1.0), ValueError, "eps must be positive"),
    ],
)
def test_wrong_input(call, error, words):
    with pytest.raises(error, match=words):
        call()
