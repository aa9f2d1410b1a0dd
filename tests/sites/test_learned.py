"""Controls with parameters: a gain and a gate that conversion puts on attention modules."""

import copy
import io
import json
import pickle

import pytest
import torch
from timm.layers.attention import Attention
from timm.models.hiera import MaskUnitAttention
from timm.models.levit import Attention as LevitAttention
from timm.models.volo import OutlookAttention
from timm.models.xcit import XCA
from torch import nn

from conditioned_attention import ConditionMonitor, apply_conditioning, conditioning, precondition, restore
from conditioned_attention.controls import HeadRMSNorm, PowerNorm, QKNorm
from conditioned_attention.conversion import convert
from conditioned_attention.measure.probing.projections import projection_records
from conditioned_attention.sites.learned import (
    HeadRMSNormWithGain,
    LearnedPowerNorm,
    QKNormWithTemperature,
    SigmoidGate,
)
from tests.models import MODELS, Identity, build, inputs, output, torch_encoder, weigh

GAIN, GATE, TEMPERATURE, POWER = HeadRMSNormWithGain(), SigmoidGate(), QKNormWithTemperature(), LearnedPowerNorm()
LEARNED = [GAIN, GATE, TEMPERATURE, POWER]
AT_THE_START = {GAIN: HeadRMSNorm(), GATE: Identity(), TEMPERATURE: QKNorm(), POWER: Identity()}
TOKENS_FIRST = ("torch_mha", "torch_transformer")
EVERYWHERE = [name for name in MODELS if name not in TOKENS_FIRST]
FEW = ["timm_vit", "gpt2", "torch_encoder"]

each_model = pytest.mark.parametrize("name", EVERYWHERE)
each_kind = pytest.mark.parametrize("learned", LEARNED, ids=lambda learned: learned.kind)


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.detach().abs().max()))


def batch_first_mha():
    """Keys and values of other widths than the queries, from which the gate is computed."""
    torch.manual_seed(1)
    return nn.MultiheadAttention(32, 4, kdim=24, vdim=40, batch_first=True).eval()


def parameters(model, learned):
    return {name: p for name, p in model.named_parameters() if name.rpartition(".")[2] == learned.parameter}


def shake(model, learned):
    """Other values than those of the start, small ones for a gate."""
    for i, parameter in enumerate(parameters(model, learned).values()):
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(i))


def trained(model, learned, steps=3):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)  # a power has no bound, nor has what is descended here
    for _ in range(steps):
        optimizer.zero_grad()
        weigh(output(model)).backward()
        optimizer.step()
    return model


@pytest.mark.one_in(3)
@each_kind
@each_model
def test_at_the_start_it_is_a_control_without_parameters(name, learned):
    model, known = build(name), build(name)
    plain = output(known)
    convert(known, AT_THE_START[learned], strict=True)
    assert len(convert(model, learned, strict=True).converted) == MODELS[name][1]
    assert_same(output(model), output(known))
    assert torch.allclose(output(model), plain, rtol=1e-4, atol=1e-4) is (learned in (GATE, POWER))


@pytest.mark.one_in(3)
@each_kind
@each_model
def test_parameters_stand_in_the_state_dict_get_gradients_and_train(name, learned):
    model = build(name)
    keys, count = set(model.state_dict()), MODELS[name][1]
    convert(model, learned)
    new = set(model.state_dict()) - keys
    assert keys < set(model.state_dict())
    assert len(new) == count
    assert all(key.endswith(f".{learned.parameter}") for key in new)
    before = {key: p.detach().clone() for key, p in parameters(model, learned).items()}
    trained(model, learned)
    for key, parameter in parameters(model, learned).items():
        assert parameter.grad.abs().max() > 0, key
        assert (parameter - before[key]).abs().max() > 0, key


@pytest.mark.one_in(3)
@each_kind
@pytest.mark.parametrize("name", FEW)
def test_restore_takes_them_off(name, learned):
    model, plain = build(name), output(build(name))
    attributes = [vars(module).keys() for module in build(name).modules()]
    convert(model, learned)
    shake(model, learned)
    assert not torch.allclose(output(model), plain, rtol=1e-2)
    restore(model)
    assert torch.equal(output(model), plain)
    assert model.state_dict().keys() == build(name).state_dict().keys()
    assert [vars(module).keys() for module in model.modules()] == attributes
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    convert(model, learned)
    assert len(parameters(model, learned)) == MODELS[name][1], "and on again"


@pytest.mark.one_in(3)
@each_kind
@pytest.mark.parametrize("name", FEW)
def test_copies_pickles_files_and_records(name, learned):
    model = build(name)
    convert(model, learned, strict=True)
    shake(model, learned)
    truth, file = output(model), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]
    loaded = build(name)
    apply_conditioning(loaded, json.loads(json.dumps(conditioning(model))))
    loaded.load_state_dict(model.state_dict())
    for twin in [*twins, loaded]:
        assert torch.equal(output(twin), truth)
        mine = parameters(twin, learned)
        assert all(mine[key] is not p for key, p in parameters(model, learned).items())
        with torch.no_grad():
            for parameter in mine.values():
                parameter.add_(1.0)
        assert not torch.allclose(output(twin), truth), "the copy reads its own parameters"
        restore(twin)
        assert torch.equal(output(twin), output(build(name)))
    assert torch.equal(output(model), truth)
    assert conditioning(loaded) != conditioning(model) == {
        "format": 1, "transforms": [{**conditioning(model)["transforms"][0], "kind": learned.kind}]
    }  # fmt: skip


@pytest.mark.one_in(3)
@each_kind
@pytest.mark.parametrize("name", FEW)
def test_converting_again_changes_nothing(name, learned):
    model = build(name)
    convert(model, learned)
    shake(model, learned)
    truth = output(model)
    report = convert(model, learned, strict=True)
    assert (report.converted, len(report.names("unchanged"))) == ([], MODELS[name][1])
    assert torch.equal(output(model), truth)
    with pytest.raises(ValueError, match="already converted"):
        precondition(model)


@each_kind
def test_converting_again_under_another_implementation_keeps_what_was_learned(learned):
    model = build("bert")
    convert(model, learned)
    shake(model, learned)
    truth, mask = output(model), inputs(model)["attention_mask"].bool()
    model.set_attn_implementation("eager")
    assert len(convert(model, learned).converted) == 2
    assert_same(output(model)[mask], truth[mask])


@pytest.mark.one_in(2)
@each_kind
@each_model
def test_projections_are_still_known(name, learned):
    """Or runs with this control would be the only ones without κ of their weights."""
    model = build(name)
    records = projection_records(model)
    convert(model, learned)
    assert projection_records(model) == records != []


@pytest.mark.one_in(3)
@each_kind
@pytest.mark.parametrize("name", FEW)
def test_for_the_length_of_a_block(name, learned):
    model, keys = build(name), list(build(name).state_dict())
    with convert(model, learned):
        assert len(parameters(model, learned)) == MODELS[name][1]
    assert list(model.state_dict()) == keys
    assert torch.equal(output(model), output(build(name)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "learned"), [pytest.param("timm_vit", GAIN, marks=pytest.mark.slow), ("torch_encoder", GATE)]
)
def test_compile(name, learned):
    model = build(name)
    convert(model, learned)
    shake(model, learned)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    result = compiled(**inputs(model))
    assert_same(result, output(model))
    weigh(result).backward()
    compiled_gradients = {key: p.grad.clone() for key, p in parameters(model, learned).items()}
    model.zero_grad()
    weigh(output(model)).backward()
    for key, parameter in parameters(model, learned).items():
        torch.testing.assert_close(compiled_gradients[key], parameter.grad, rtol=1e-3, atol=1e-4)


def test_the_gain_by_hand():
    attention, x = Attention(32, 4), torch.randn(2, 7, 32)
    heads = attention_heads(attention, x)
    convert(attention, GAIN)
    shake(attention, GAIN)
    normed = heads / (heads.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert_same(attention(x), attention.proj((normed * attention.head_gain).transpose(1, 2).flatten(2)))
    assert attention.head_gain.shape == (8,)


def test_the_gate_by_hand():
    attention, x = Attention(32, 4), torch.randn(2, 7, 32)
    heads = attention_heads(attention, x)
    convert(attention, GATE)
    shake(attention, GATE)
    gate = 2 * torch.sigmoid(x @ attention.head_gate.T)
    assert_same(attention(x), attention.proj(gate * heads.transpose(1, 2).flatten(2)))
    assert attention.head_gate.shape == (32, 32)


def test_the_temperature_by_hand():
    attention, x = Attention(32, 4), torch.randn(2, 7, 32)
    q, k, v = attention.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
    q, k = (t / (t.square().mean(-1, keepdim=True) + 1e-6).sqrt() for t in (q, k))
    convert(attention, TEMPERATURE)
    assert attention.head_temperature.tolist() == [0.0] * 4
    shake(attention, TEMPERATURE)
    logits = torch.stack([q[:, h] @ k[:, h].mT * attention.head_temperature[h].exp() for h in range(4)], dim=1)
    heads = (logits / 8**0.5).softmax(-1) @ v
    assert_same(attention(x), attention.proj(heads.transpose(1, 2).flatten(2)))


def test_a_temperature_for_each_query_head_of_a_shared_key():
    model, known = build("llama"), build("llama")
    convert(model, TEMPERATURE, strict=True)
    attention = model.model.layers[0].self_attn
    assert attention.head_temperature.shape == (4,), "4 query heads, on 2 key heads"
    convert(known, QKNorm())
    assert_same(output(model), output(known))
    with torch.no_grad():
        attention.head_temperature[3] = 2.0
    assert not torch.allclose(output(model), output(known), rtol=1e-3)


def test_the_learned_power_by_hand():
    attention, x = Attention(32, 4), torch.randn(2, 7, 32)
    heads = attention_heads(attention, x)
    plain = attention(x)
    convert(attention, POWER)
    assert attention.head_power.tolist() == [0.0] * 4
    assert torch.equal(attention(x), plain), "C to the power 0 is 1, exactly"
    with torch.no_grad():
        attention.head_power.copy_(torch.tensor([0.0, 0.5, 1.0, -0.3]))
    factor = heads.norm(dim=-1, keepdim=True) ** -attention.head_power[:, None, None]
    assert_same(attention(x), attention.proj((factor * heads).transpose(1, 2).flatten(2)))


def test_the_learned_power_at_1_and_a_half_is_c_with_its_stopped_gradient():
    for alpha in (0.5, 1.0):
        model, known = build("timm_vit"), build("timm_vit")
        convert(model, POWER)
        convert(known, PowerNorm(alpha))
        with torch.no_grad():
            for power in parameters(model, POWER).values():
                power.fill_(alpha)
        for each in (model, known):
            weigh(output(each)).backward()
        assert_same(output(model), output(known))
        theirs = dict(known.named_parameters())
        for key, parameter in model.named_parameters():
            if key in theirs:
                assert_same(parameter.grad, theirs[key].grad)


def test_the_power_learns_by_its_own_derivative():
    """d/dα of C^α · A is C^α log C · A; rows of zero, where C = 1, send nothing and no NaN."""
    heads, upstream = torch.randn(2, 2, 4, 7, 8)
    heads[0, 0, 0] = 0.0
    attention = nn.Module()
    attention.head_power = nn.Parameter(torch.tensor([0.0, 0.5, 1.0, -0.3]))
    POWER.apply(attention, heads).backward(upstream)
    norm = heads.norm(dim=-1, keepdim=True)
    c = torch.where(norm == 0, 1.0, 1 / norm)
    expected = (upstream * c ** attention.head_power[:, None, None] * c.log() * heads).sum((0, 2, 3))
    assert_same(attention.head_power.grad, expected.detach())


def attention_heads(attention, x):
    q, k, v = attention.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
    return ((q @ k.mT / 8**0.5).softmax(-1) @ v).detach()


@pytest.mark.parametrize("called", ["positions", "keywords"])
@pytest.mark.parametrize("batched", [True, False])
def test_the_gate_reads_the_queries_of_multihead_attention(batched, called):
    model = batch_first_mha()
    query, key, value = torch.randn(2, 5, 32), torch.randn(2, 7, 24), torch.randn(2, 7, 40)
    if not batched:
        query, key, value = query[0], key[0], value[0]
    call = (
        (lambda: model(query, key, value))
        if called == "positions"
        else (lambda: model(query=query, key=key, value=value))
    )
    plain = call()[0]
    convert(model, GATE)
    assert model.head_gate.shape == (32, 32)
    assert_same(call()[0], plain)
    shake(model, GATE)
    seen = []
    model.out_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    gated = call()[0]
    ungated = model(torch.zeros_like(query), key, value)
    assert gated.shape == plain.shape
    assert not torch.allclose(gated, plain, rtol=1e-2)
    assert ungated[0].shape == plain.shape
    heads = plain_heads(model, query, key, value)
    gate = 2 * torch.sigmoid(query @ model.head_gate.T)
    assert_same(gated, model.out_proj(gate * heads))


def plain_heads(model, query, key, value):
    weights = (model.q_proj_weight, model.k_proj_weight, model.v_proj_weight)
    q, k, v = (
        (x @ w.T + b).unflatten(-1, (4, 8)).transpose(-3, -2)
        for x, w, b in zip((query, key, value), weights, model.in_proj_bias.chunk(3))
    )
    return ((q @ k.mT / 8**0.5).softmax(-1) @ v).transpose(-3, -2).flatten(-2).detach()


def test_grouped_queries_have_gates_of_their_own():
    model = build("llama")
    convert(model, GATE, strict=True)
    assert model.model.layers[0].self_attn.head_gate.shape == (32, 32), "4 query heads, on 2 key heads"


@each_kind
def test_parameters_are_of_the_models_dtype_and_device(learned):
    model = build("timm_vit").to(torch.bfloat16)
    convert(model, learned)
    assert {p.dtype for p in parameters(model, learned).values()} == {torch.bfloat16}
    assert output(model, x=inputs(model)["x"].bfloat16()).dtype == torch.bfloat16
    model = build("timm_vit").to("meta")
    convert(model, learned)
    assert all(p.is_meta for p in parameters(model, learned).values())
    model = build("timm_vit")
    convert(model, learned)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close_in_half(output(model), model)


def assert_close_in_half(result, model):
    with torch.autocast("cpu", enabled=False):
        torch.testing.assert_close(result.float(), output(model), rtol=0.1, atol=0.1)


@each_kind
def test_the_monitor_leaves_them_in_place(learned):
    model = build("timm_vit")
    convert(model, learned)
    shake(model, learned)
    truth = output(model)
    records = ConditionMonitor(model, inputs(model)["x"]).measure(0)
    assert all(record.conditioned for record in records)
    assert torch.equal(output(model), truth)
    assert "_head_gate_input" not in vars(model.blocks[0].attn)


def test_the_input_is_forgotten_where_forward_raises():
    attention = Attention(32, 4)
    convert(attention, GATE)
    with pytest.raises(RuntimeError):
        attention(torch.zeros(2, 3, 7))
    assert "_head_gate_input" not in vars(attention)


# What is refused


@each_kind
def test_a_name_that_is_taken(learned):
    model = nn.ModuleList([Attention(32, 4), Attention(32, 4)])
    setattr(model[1], learned.parameter, nn.Parameter(torch.ones(1)))
    with pytest.raises(ValueError, match=rf"needs the name '{learned.parameter}', which this module has already"):
        convert(model, learned, strict=True)
    assert not hasattr(model[0], learned.parameter), "nothing was changed"
    assert convert(model, learned).converted == ["0"]


def test_a_gate_refuses_tokens_before_batch():
    with pytest.raises(ValueError, match=r"wants inputs \(batch, tokens, features\), and this module takes \(tokens"):
        convert(nn.MultiheadAttention(32, 4), GATE, strict=True)
    assert convert(nn.MultiheadAttention(32, 4), GAIN, strict=True).converted == [""]


@each_kind
@pytest.mark.parametrize(
    ("attention", "words"),
    [
        (lambda: XCA(32, 4), "wants heads whose rows are tokens, and here they are channels"),
        (lambda: LevitAttention(32, 8, 4, use_conv=True, resolution=4), r"and here they lie as 'B H\*D N'"),
        (lambda: OutlookAttention(32, 4), "OutlookAttention makes its attention weights from queries alone, without"),
    ],
)
def test_classes_whose_heads_or_projections_do_not_fit(attention, words, learned):
    module = attention()
    before = list(module.state_dict())
    words = "queries and keys" if learned.changes_queries else words  # which those classes do not give away at all
    with pytest.raises(ValueError, match=words):
        convert(module, learned, strict=True)
    assert list(module.state_dict()) == before


def test_a_gate_of_other_tokens_than_those_of_the_heads():
    """Hiera's windows are cut out inside of the attention module."""
    attention, x = MaskUnitAttention(32, 32, 4, 2, 4, use_mask_unit_attn=True), torch.randn(2, 32, 32)
    convert(attention, GATE)
    with pytest.raises(ValueError, match=r"the gate .* \(2, 4, 32, 8\).* heads \(\d+, 4, \d+, 8\)"):
        attention(x)


def test_without_an_input_by_a_known_name():
    attention = Attention(32, 4)
    convert(attention, GATE)
    with pytest.raises(TypeError, match=r"was called without any of \('hidden_states', 'x', 'query', 'input'\)"):
        attention()


@each_kind
def test_it_acts_on_modules_alone(learned):
    with pytest.raises(TypeError, match="acts on modules that it was put on by conversion, where it has something of"):
        learned(torch.randn(2, 4, 7, 8))


@pytest.mark.parametrize("cls", [HeadRMSNormWithGain, QKNormWithTemperature, LearnedPowerNorm])
def test_a_wrong_eps(cls):
    with pytest.raises(ValueError, match="eps must be positive and finite, got 0"):
        cls(0)


@each_kind
def test_padding_as_nested_tensors(learned):
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    nested, padded = nn.TransformerEncoder(layer, 2).eval(), torch_encoder().eval()
    for model in (nested, padded):
        convert(model, learned)
        shake(model, learned)
    padded.load_state_dict(nested.state_dict())
    x, padding = torch.randn(2, 7, 32), torch.tensor([[False] * 5 + [True] * 2, [False] * 7])
    with torch.no_grad():
        assert_same(*(m(x, src_key_padding_mask=padding)[~padding] for m in (nested, padded)))
