"""QK-Clip: which logits are seen, what is scaled, and that nothing else changes."""

import copy
import json
import math
import pickle

import pytest
import torch
from timm.layers.attention import Attention
from timm.models.beit import Attention as BeitAttention
from timm.models.eva import EvaAttention
from timm.models.xcit import XCA
from torch import nn

from conditioned_attention import ConditionMonitor, apply_conditioning, conditioning, restore
from conditioned_attention.conversion import convert
from conditioned_attention.sites import find_projections, find_sites
from conditioned_attention.sites.clip import QKClip, clip_logits, largest_logits
from tests.models import build, inputs, output

FEW = ["timm_vit", "vit", "gpt2", "torch_encoder"]
each_model = pytest.mark.parametrize("name", FEW)


def steep(name):
    """Every matrix and bias of attention large, so that logits are; in train mode, without dropout."""
    model, own = build(name), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for site in find_sites(model):
            for parameter in site.module.parameters():
                parameter.normal_(0.0, 0.5, generator=own)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model.train()


def projected(attention, x):
    """Queries and keys (B, H, N, D) of 4 heads, by hand."""
    found = {}
    for projection in find_projections(attention).weights:
        owner = projection.owner(attention)
        weight = getattr(owner, projection.parameter)
        bias = getattr(owner, projection.parameter.replace("weight", "bias"), None)
        y = x @ (weight if type(owner).__name__ == "Conv1D" else weight.T) + (0 if bias is None else bias)
        for role, rows in projection.rows(attention).items():
            found[role] = y[..., rows.indices()].unflatten(-1, (-1, 8)).transpose(1, 2)
    return found["q"], found["k"]


def by_hand(attention, x):
    """The largest logit of each head."""
    q, k = projected(attention, x)
    return torch.stack([(q[:, h] @ k[:, h].mT / 8**0.5).max() for h in range(q.shape[1])]).detach()


def first_input(model, run):
    """The first attention module of a model, and what comes in while ``run`` runs."""
    attention, seen = find_sites(model)[0].module, []
    handle = attention.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args or (kwargs["hidden_states"],))[0]), with_kwargs=True
    )
    result = run(model)
    handle.remove()
    return attention, seen[0], result


def test_largest_logits_by_hand():
    q, k = torch.randn(3, 4, 5, 8), torch.randn(3, 2, 7, 8)
    pairs = [(b, i, j) for b in range(3) for i in range(5) for j in range(7)]
    expected = torch.stack([torch.stack([q[b, h, i] @ k[b, h // 2, j] for b, i, j in pairs]).max() for h in range(4)])
    torch.testing.assert_close(largest_logits(q, k), expected / 8**0.5)


@each_model
def test_heads_above_the_threshold_are_brought_to_it_and_others_stay(name):
    model, plain = steep(name), steep(name)
    attention, x, _ = first_input(model, output)
    before, weights = by_hand(attention, x), copy.deepcopy(model.state_dict())
    threshold = float(before.sort().values[1:3].mean())  # two of the four heads are above
    assert len(convert(model, QKClip(threshold), strict=True).converted) == 2
    assert list(model.state_dict()) == list(weights)
    assert torch.equal(output(model), output(plain)), "to look on changes nothing"
    clip_logits(model)
    after = by_hand(attention, x)
    torch.testing.assert_close(after, before.clamp(max=threshold))
    assert (before > threshold).sum() == 2
    untouched = before <= threshold
    for old, new in zip(projected_weights(plain), projected_weights(model), strict=True):
        assert torch.equal(old[untouched], new[untouched]), "bit for bit"
        factor = (threshold / before[~untouched]).sqrt()[:, None, None]
        torch.testing.assert_close(new[~untouched], factor * old[~untouched])
    moved = {key for key, weight in model.state_dict().items() if not torch.equal(weight, weights[key])}
    names = ("qkv", "q_proj", "k_proj", "c_attn", "in_proj")
    assert moved
    assert all(any(part in key for part in names) for key in moved), moved


def projected_weights(model):
    """W_Q and W_K of the first module, (H, D, in)."""
    attention = find_sites(model)[0].module
    found = {role: matrix[rows] for role, matrix, rows in find_projections(attention).matrices(attention)}
    return [found[role].unflatten(0, (-1, 8)) for role in "qk"]


def test_values_keep_their_weights():
    model = steep("timm_vit")
    values = model.blocks[0].attn.qkv.weight[64:].clone(), model.blocks[0].attn.qkv.bias[64:].clone()
    convert(model, QKClip(0.01))
    output(model)
    clip_logits(model)
    assert torch.equal(model.blocks[0].attn.qkv.weight[64:], values[0])
    assert torch.equal(model.blocks[0].attn.qkv.bias[64:], values[1])


def test_a_shared_key_stays_and_its_queries_take_the_whole_factor():
    model = steep("llama")
    convert(model, QKClip(1e9))
    output(model)
    attention = find_sites(model)[0].module
    before = attention._largest_logits.clone()
    threshold = float(before.sort().values[1:3].mean())
    restore(model)
    convert(model, QKClip(threshold))
    queries, keys = (p.clone() for p in (attention.q_proj.weight, attention.k_proj.weight))
    output(model)
    clip_logits(model)
    assert torch.equal(attention.k_proj.weight, keys), "2 key heads, each of 2 query heads"
    factor = (threshold / before).clamp(max=1.0).repeat_interleave(8)[:, None]
    torch.testing.assert_close(attention.q_proj.weight, factor * queries)
    output(model)
    torch.testing.assert_close(attention._largest_logits, before.clamp(max=threshold))


def test_micro_batches_of_a_step_count_together_and_then_are_forgotten():
    attention, (x, y) = Attention(32, 4), torch.randn(2, 2, 7, 32)
    convert(attention.train(), QKClip(1e-3))
    for large, small in ((3 * x, y), (6 * y, x)):  # the first of two is the larger, and then the third
        attention(large), attention(small)
        torch.testing.assert_close(attention._largest_logits, by_hand(attention, large))
    clip_logits(attention)
    assert "_largest_logits" not in vars(attention)
    weight = attention.qkv.weight.clone()
    clip_logits(attention)
    assert torch.equal(attention.qkv.weight, weight), "nothing was seen since"


def test_logits_below_zero_scale_nothing():
    """τ / S would be negative."""
    attention = Attention(32, 4, qkv_bias=False)
    with torch.no_grad():
        attention.qkv.weight[32:64] = -attention.qkv.weight[:32]
    before = attention.qkv.weight.clone()
    convert(attention.train(), QKClip(1e-6))
    x = torch.randn(1, 1, 32)
    attention(x)
    assert (attention._largest_logits < 0).all()
    clip_logits(attention)
    assert torch.equal(attention.qkv.weight, before)


def test_evaluation_and_the_monitor_are_not_seen():
    model = steep("timm_vit")
    convert(model, QKClip(1e-3))
    before = model.blocks[0].attn.qkv.weight.clone()
    output(model.eval())
    model.train()
    ConditionMonitor(model, inputs(model)["x"]).measure(0)
    assert "_largest_logits" not in vars(model.blocks[0].attn)
    clip_logits(model)
    assert torch.equal(model.blocks[0].attn.qkv.weight, before)


def test_the_largest_of_all_processes_counts(monkeypatch):
    """Also where the forward of this one did not come by."""
    distributed = torch.distributed
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    others = torch.tensor([0.0, 50.0, 2e9, 0.0])

    def all_reduce(tensor, op):
        assert op == distributed.ReduceOp.MAX
        tensor.copy_(torch.maximum(tensor, others))

    monkeypatch.setattr(distributed, "all_reduce", all_reduce)
    for passes in (True, False):
        attention = Attention(32, 4).train()
        convert(attention, QKClip(25.0))
        before = attention.qkv.weight.clone()
        if passes:
            attention(torch.randn(2, 7, 32))
        clip_logits(attention)
        factor = torch.tensor([1.0, 0.5**0.5, (25 / 2e9) ** 0.5, 1.0]).repeat_interleave(8)
        torch.testing.assert_close(attention.qkv.weight, torch.cat([factor, factor, torch.ones(32)])[:, None] * before)


@pytest.mark.slow
def test_it_runs_compiled():
    model, plain = steep("timm_vit"), steep("timm_vit")
    for each in (model, plain):
        convert(each, QKClip(1.0))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        compiled(**inputs(model)), output(plain)
        clip_logits(model), clip_logits(plain)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_under_autocast_logits_are_judged_in_float32():
    attention = Attention(32, 4).train()
    convert(attention, QKClip(1e-3))
    with torch.autocast("cpu", torch.bfloat16):
        attention(torch.randn(2, 7, 32))
    assert attention._largest_logits.dtype == torch.float32
    clip_logits(attention)
    assert attention.qkv.weight.dtype == torch.float32
    large = torch.full((1, 1, 4, 64), 40.0)
    with torch.autocast("cpu", torch.float16):  # whose largest number is 65504
        assert largest_logits(large, large) == largest_logits(large.half(), large.half()) == 12_800


@pytest.mark.parametrize(
    "build_one",
    [
        lambda: nn.MultiheadAttention(32, 4, kdim=16, vdim=16, batch_first=True),
        lambda: BeitAttention(32, 4, qkv_bias=True),
        lambda: EvaAttention(32, 4, qkv_fused=True, scale_norm=False),
        lambda: EvaAttention(32, 4, qkv_fused=False, scale_norm=False),
    ],
)
def test_biases_that_do_not_stand_beside_the_weight(build_one):
    attention, x = build_one().train(), torch.randn(2, 7, 32)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_()
    convert(attention, QKClip(2.0), strict=True)
    arguments = (x, x[..., :16], x[..., :16]) if isinstance(attention, nn.MultiheadAttention) else (x,)
    attention(*arguments)
    assert (attention._largest_logits > 2).all()
    clip_logits(attention)
    attention(*arguments)
    torch.testing.assert_close(attention._largest_logits, torch.full((4,), 2.0))


@each_model
def test_records_copies_and_back(name):
    model, plain = build(name), output(build(name))
    attributes = [vars(module).keys() for module in build(name).modules()]
    convert(model, QKClip(7.0), strict=True)
    record = json.loads(json.dumps(conditioning(model)))
    assert {key: record["transforms"][0][key] for key in ("kind", "threshold")} == {"kind": "qk_clip", "threshold": 7.0}
    loaded = build(name)
    apply_conditioning(loaded, record)
    loaded.load_state_dict(model.state_dict())
    assert conditioning(loaded) == record
    for twin in (model, loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        output(twin.train())
        assert "_largest_logits" in vars(find_sites(twin)[0].module), "it looks at its own module"
        restore(twin.eval())
        assert torch.equal(output(twin), plain)
        assert [vars(module).keys() for module in twin.modules()] == attributes


@pytest.mark.parametrize(
    ("attention", "words"),
    [
        (lambda: XCA(32, 4), "which never sees queries and keys"),
        (lambda: Attention(32, 4, qk_norm=True, norm_layer=nn.LayerNorm), "here a norm follows them that takes the"),
    ],
)
def test_what_it_cannot_act_on(attention, words):
    with pytest.raises(ValueError, match=words):
        convert(attention(), QKClip(), strict=True)


def test_weights_that_are_spread_over_devices_are_refused(monkeypatch):
    attention = Attention(32, 4).train()
    convert(attention, QKClip())
    attention(torch.randn(2, 7, 32))
    attention.qkv.weight.device_mesh = "two devices"
    with pytest.raises(ValueError, match=r"qk_clip scales rows of W_Q and W_K, which are spread .*: not with fsdp2"):
        clip_logits(attention)


@pytest.mark.parametrize(
    ("threshold", "error", "words"),
    [
        (0.0, ValueError, r"threshold must be positive and finite, got 0\.0"),
        (math.inf, ValueError, "threshold must be positive and finite, got inf"),
        ("100", TypeError, "threshold must be a number, got str"),
        (True, TypeError, "threshold must be a number, got bool"),
    ],
)
def test_wrong_thresholds(threshold, error, words):
    with pytest.raises(error, match=words):
        QKClip(threshold)


def test_other_models_are_left_alone():
    model = steep("timm_vit")
    before = copy.deepcopy(model.state_dict())
    output(model)
    clip_logits(model)
    assert all(torch.equal(before[key], weight) for key, weight in model.state_dict().items())
