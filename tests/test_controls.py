"""The controls without parameters: what each computes, what it sends back, and what a converted model computes."""

import json
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import LlamaConfig, LlamaForCausalLM

from conditioned_attention import apply_conditioning, conditioning, precondition, precondition_rows, restore
from conditioned_attention.controls import ConstantGain, HeadRMSNorm, PowerNorm, PreconditionedQKNorm, QKNorm
from conditioned_attention.conversion import convert
from conditioned_attention.functional import attend
from tests.models import MODELS, build, inputs, output, tokens, weigh

HEADS = (2, 4, 7, 16)  # B, H, N, D


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.detach().abs().max()))


def gradient(transform, heads, upstream):
    heads = heads.clone().requires_grad_()
    transform(heads).backward(upstream)
    return heads.grad


# A power of C


def test_its_first_power_is_the_preconditioner():
    heads, upstream = torch.randn(2, *HEADS)
    heads[0, 0, 0] = 0.0
    heads[0, 0, 1] = 1e-9
    assert_same(PowerNorm(1.0)(heads), precondition_rows(heads))
    assert torch.equal(PowerNorm(1.0)(heads)[0, 0, 0], torch.zeros(16))
    ours = gradient(PowerNorm(1.0), heads, upstream)
    assert_same(ours, gradient(precondition_rows, heads, upstream))
    assert torch.equal(ours[0, 0, 0], upstream[0, 0, 0]), "a row of zero has C = 1"


def test_its_first_power_scaled_is_rmsnorm_in_forward_and_the_preconditioner_in_backward():
    heads, upstream = torch.randn(2, *HEADS)
    assert_same(PowerNorm(1.0, scaled=True)(heads), HeadRMSNorm()(heads))
    assert_same(HeadRMSNorm()(heads), heads / heads.square().mean(-1, keepdim=True).sqrt())
    ours = gradient(PowerNorm(1.0, scaled=True), heads, upstream)
    assert_same(ours, 4 * gradient(precondition_rows, heads, upstream))
    theirs = gradient(HeadRMSNorm(), heads, upstream)
    assert (theirs * heads).sum(-1).abs().max() < 1e-4, "the ordinary gradient has no part along the row"
    assert (ours * heads).sum(-1).abs().max() > 1


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0, 1])
def test_rows_keep_a_power_of_their_norm_and_c_sends_nothing_back(alpha, scaled):
    heads, upstream = 3 * torch.randn(2, *HEADS)
    norm = heads.norm(dim=-1, keepdim=True)
    transform, factor = PowerNorm(alpha, scaled), 4.0 if scaled else 1.0
    assert_same(transform(heads).norm(dim=-1, keepdim=True), factor * norm ** (1 - alpha))
    assert_same(gradient(transform, heads, upstream), factor * upstream / norm**alpha)


@pytest.mark.parametrize(("dtype", "eps"), [(torch.bfloat16, 1e-6), (torch.float16, 6.1e-5)])
def test_it_is_computed_in_float32_and_rounded_once(dtype, eps):
    heads = (1e-5 * torch.randn(HEADS)).to(dtype)
    heads[0, 0, 0] *= 1e-2  # below eps
    result, exact = PowerNorm()(heads), PowerNorm(eps=eps)(heads.double())
    assert result.dtype == dtype
    assert ((result.double() - exact).abs() <= 0.51 * torch.finfo(dtype).eps * exact.abs() + 6e-8).all()
    assert_same(exact[0, 0, 0], heads[0, 0, 0].double() / eps**0.5)


def test_a_constant_gain_is_one_factor():
    heads, upstream = torch.randn(2, *HEADS)
    assert torch.equal(ConstantGain(1.7)(heads), 1.7 * heads)
    assert torch.equal(gradient(ConstantGain(1.7), heads, upstream), 1.7 * upstream)
    assert ConstantGain(3)(heads.half()).dtype == torch.float16


@pytest.mark.parametrize("name", ["timm_vit", "llama", "torch_mha"])
def test_a_constant_gain_is_a_larger_output_projection(name):
    model, scaled = build(name), build(name)
    convert(model, ConstantGain(1.7), strict=True)
    projections = {"timm_vit": "proj", "llama": "o_proj", "torch_mha": "out_proj"}[name]
    with torch.no_grad():
        for key, weight in scaled.named_parameters():
            if f"{projections}.weight" in key and "patch_embed" not in key:
                weight *= 1.7
    assert_same(output(model), output(scaled))
    assert (output(model) - output(build(name))).abs().max() > 1e-2


# Queries and keys


class NormalisedQueries(TorchFunctionMode):
    """The oracle: every ``scaled_dot_product_attention`` gets queries and keys of root mean square 1."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.multi_head_attention_forward:  # goes by as a whole, with the mode off inside
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(F, "scaled_dot_product_attention", normalised_queries)
                return function(*args, **(kwargs or {}))
        if function is F.scaled_dot_product_attention:
            return normalised_queries(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


_attention = F.scaled_dot_product_attention


def normalised_queries(query, key, *args, **kwargs):
    query, key = (t / (t.square().mean(-1, keepdim=True) + 1e-6).sqrt() for t in (query, key))
    return _attention(query, key, *args, **kwargs)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", MODELS)
def test_qk_norm_is_that_of_the_outside_oracle(name):
    model = build(name)
    plain = output(model)
    with NormalisedQueries():
        oracle = output(model)
        weigh(oracle).backward()
    gradients = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    assert len(convert(model, QKNorm(), strict=True).converted) == MODELS[name][1]
    result = output(model)
    assert (plain - oracle).abs().max() > 1e-3 * oracle.abs().max(), "the comparison would be vacuous"
    assert_same(result, oracle)
    weigh(result).backward()
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for key, parameter in model.named_parameters():
        if key in gradients:
            assert (parameter.grad - gradients[key]).abs().max() <= 1e-5 * largest, key
    restore(model)
    assert torch.equal(output(model), plain)


def test_qk_norm_is_timms_own():
    ours, theirs = Attention(32, 4), Attention(32, 4, qk_norm=True, norm_layer=partial(nn.RMSNorm, eps=1e-6))
    theirs.load_state_dict(ours.state_dict(), strict=False)
    convert(ours, QKNorm())
    x = 3 * torch.randn(2, 7, 32)
    assert_same(ours(x), theirs(x))


def test_qk_norm_commutes_with_rotary_positions():
    """Written out by hand for one layer: norm, then rotation; the library norms what has been rotated."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=99, num_key_value_heads=2, initializer_range=0.4, **sizes)).eval()
    attention, seen = model.model.layers[0].self_attn, {}
    attention.register_forward_hook(
        lambda module, args, kwargs, result: seen.update(kwargs, result=result[0]), with_kwargs=True
    )
    convert(model, QKNorm())
    model(tokens())
    x, (cos, sin) = seen["hidden_states"], seen["position_embeddings"]

    def heads(projection, normed):
        y = projection(x).unflatten(-1, (-1, 8)).transpose(1, 2)
        if not normed:
            return y
        y = y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        turned = torch.cat([-y[..., 4:], y[..., :4]], dim=-1)
        return y * cos[:, None] + turned * sin[:, None]

    q, k, v = heads(attention.q_proj, True), heads(attention.k_proj, True), heads(attention.v_proj, False)
    k, v = (t.repeat_interleave(2, dim=1) for t in (k, v))
    logits = q @ k.mT / math.sqrt(8) + torch.full((7, 7), -math.inf).triu(1)
    by_hand = attention.o_proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
    assert_same(seen["result"], by_hand)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_qk_norm_whatever_computes_the_attention(implementation):
    model = build("bert")
    model.set_attn_implementation(implementation)
    convert(model, QKNorm())
    mask = inputs(model)["attention_mask"].bool()
    theirs = build("bert")
    convert(theirs, QKNorm())
    assert_same(output(model)[mask], output(theirs)[mask])


@pytest.mark.parametrize("need_weights", [False, True])
def test_qk_norm_of_multihead_attention_by_hand(need_weights):
    model, x = nn.MultiheadAttention(32, 4, batch_first=True), torch.randn(2, 7, 32)
    nn.init.normal_(model.in_proj_weight)
    q, k, v = F.linear(x, model.in_proj_weight).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
    q, k = (t / (t.square().mean(-1, keepdim=True) + 1e-6).sqrt() for t in (q, k))
    weights = (q @ k.mT / math.sqrt(8)).softmax(-1)
    assert (q @ k.mT).abs().max() <= 8.0 + 1e-4, "logits are bounded"
    convert(model, QKNorm())
    result, returned = model(x, x, x, need_weights=need_weights)
    assert_same(result, model.out_proj((weights @ v).transpose(1, 2).flatten(2)))
    if need_weights:
        assert_same(returned, weights.mean(1))


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}, {"attn_mask": torch.rand(7, 7) > 0.5}])
def test_qk_norm_on_tensors(options):
    q, k, v = 5 * torch.randn(3, *HEADS)
    assert_same(attend(QKNorm(), q, k, v, **options), normalised_queries(q, k, v, **options))


@pytest.mark.parametrize("name", ["timm_vit", "vit", "gpt2", "llama", "torch_mha"])
def test_c_with_qk_norm_is_c_behind_the_outside_oracle(name):
    """On real models, forward and backward: PyTorch's attention between the two, written out."""
    model, ours = build(name), build(name)
    precondition(model, strict=True)
    with NormalisedQueries():
        oracle = output(model)
        weigh(oracle).backward()
    convert(ours, PreconditionedQKNorm(), strict=True)
    result = output(ours)
    assert_same(result, oracle)
    for other in (QKNorm(), None):
        single = build(name)
        precondition(single) if other is None else convert(single, other)
        assert not torch.allclose(output(single), result, rtol=1e-2, atol=1e-3)
    weigh(result).backward()
    largest = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    theirs = dict(model.named_parameters())
    for key, parameter in ours.named_parameters():
        if parameter.grad is not None:
            assert (parameter.grad - theirs[key].grad).abs().max() <= 1e-5 * largest, key


def test_a_hook_refuses_qk_norm():
    from timm.models.xcit import XCA

    with pytest.raises(ValueError, match="reached by a hook, which never sees queries and keys"):
        convert(XCA(32, 4), QKNorm(), strict=True)


# What is remembered, and what is refused


@pytest.mark.parametrize(
    "transform", [PowerNorm(0.25, True, 1e-5), ConstantGain(2.5), QKNorm(1e-5), PreconditionedQKNorm(1e-5)]
)
def test_records(transform):
    model, loaded = build("timm_vit"), build("timm_vit")
    convert(model, transform)
    apply_conditioning(loaded, json.loads(json.dumps(conditioning(model))))
    assert torch.equal(output(loaded), output(model))
    assert convert(loaded, transform).names("unchanged") == ["blocks.0.attn", "blocks.1.attn"]
    with pytest.raises(ValueError, match="already converted"):
        precondition(loaded)


@pytest.mark.parametrize(
    ("build_it", "error", "words"),
    [
        (lambda: PowerNorm("half"), TypeError, "alpha must be a number, got str"),
        (lambda: PowerNorm(True), TypeError, "alpha must be a number, got bool"),
        (lambda: PowerNorm(0.0), ValueError, r"alpha must be in \(0, 1\], got 0.0"),
        (lambda: PowerNorm(1.1), ValueError, r"alpha must be in \(0, 1\], got 1.1"),
        (lambda: PowerNorm(math.nan), ValueError, r"alpha must be in \(0, 1\], got nan"),
        (lambda: PowerNorm(scaled=1), TypeError, "scaled must be True or False, got 1"),
        (lambda: PowerNorm(eps=0.0), ValueError, "eps must be positive and finite, got 0.0"),
        (lambda: ConstantGain("2"), TypeError, "gain must be a number, got str"),
        (lambda: ConstantGain(True), TypeError, "gain must be a number, got bool"),
        (lambda: ConstantGain(0.0), ValueError, "gain must be positive and finite, got 0.0"),
        (lambda: ConstantGain(math.inf), ValueError, "gain must be positive and finite, got inf"),
        (lambda: QKNorm(eps="small"), TypeError, "eps must be a number, got str"),
        (lambda: HeadRMSNorm(eps=-1.0), ValueError, "eps must be positive and finite, got -1.0"),
    ],
)
def test_wrong_settings(build_it, error, words):
    with pytest.raises(error, match=words):
        build_it()
