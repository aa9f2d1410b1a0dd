"""Converted models: exact, reversible, reported."""

import contextlib
import copy
import pickle
import subprocess
import sys

import pytest
import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, DiffParallelScalingBlock
from torch import nn
from transformers import YosoConfig, YosoModel

from conditioned_attention import ConditionMonitor, conditioning, precondition, reference, restore, spectral_condition
from conditioned_attention.controls import HeadRMSNorm
from conditioned_attention.conversion import convert
from conditioned_attention.measure.probing.probe import head_outputs
from tests.models import MODELS, build, gpt2, inputs, output, timm_vit, tokens, weigh
from tests.oracle import NormalisedRows

each_model = pytest.mark.parametrize("name", MODELS)


def gradients(model):
    model.zero_grad()
    weigh(output(model)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.one_in(2)
@each_model
def test_output_and_gradients_are_those_of_the_outside_oracle(name):
    model = build(name)
    plain = output(model)
    with NormalisedRows():
        oracle, oracle_gradients = output(model), gradients(model)
    report = precondition(model, strict=True)
    assert len(report.converted) == MODELS[name][1]
    size = oracle.abs().max()
    assert (plain - oracle).abs().max() > 0.01 * size, "the comparison would be vacuous"
    assert (output(model) - oracle).abs().max() < 1e-5 * size
    largest = max(gradient.abs().max() for gradient in oracle_gradients.values())
    for key, gradient in gradients(model).items():
        assert (gradient - oracle_gradients[key]).abs().max() <= 1e-5 * largest, key


@pytest.mark.one_in(2)
@each_model
def test_restore_gives_the_plain_model_back_bit_for_bit_after_training(name):
    model, untouched = build(name), build(name)
    parameters, classes = dict(model.named_parameters()), [type(m) for m in model.modules()]
    keys = list(model.state_dict())
    precondition(model)
    assert list(model.state_dict()) == keys
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    gradients(model)
    optimizer.step()
    conditioned = output(model)
    assert set(restore(model).names("restored")) == set(precondition(model).converted)
    restore(model)
    untouched.load_state_dict(model.state_dict())
    assert (output(model) == output(untouched)).all()
    assert not torch.allclose(output(model), conditioned, rtol=1e-3)
    assert [type(m) for m in model.modules()] == classes
    assert all(p is parameters[n] for n, p in model.named_parameters())
    assert vars(model).keys() == vars(untouched).keys()
    if hasattr(model, "config"):
        assert model.config.to_dict() == untouched.config.to_dict()
        assert model.config._attn_implementation == untouched.config._attn_implementation
    assert restore(model).names("restored") == []


@pytest.mark.one_in(3)
@each_model
def test_copies_are_conditioned_too(name):
    model = build(name)
    precondition(model)
    expected = output(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert (output(twin) == expected).all()
        restore(twin)
        assert not torch.allclose(output(twin), expected, rtol=1e-3)
    assert (output(model) == expected).all()


@pytest.mark.slow  # test_survival has one of each mechanism
def test_pickles_load_in_a_new_process(tmp_path):
    """Which has imported nothing but torch: a pickle brings what it needs."""
    models = {name: build(name) for name in ("torch_encoder", "timm_vit", "llama")}
    for name, model in models.items():
        precondition(model)
        torch.save((model, inputs(model), output(model)), tmp_path / f"{name}.pt")
    code = f"""
import torch
for name in {list(models)}:
    model, kwargs, expected = torch.load({str(tmp_path)!r} + f"/{{name}}.pt", weights_only=False)
    found = model(**kwargs)
    torch.testing.assert_close(found if isinstance(found, torch.Tensor) else found[0], expected)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow  # the quick suite compiles in test_survival
@pytest.mark.parametrize("rows", ["output", "weights"])
@pytest.mark.parametrize("name", MODELS)
def test_compiles_without_a_graph_break(name, rows):
    model = build(name)
    precondition(model, rows=rows)
    expected = output(model)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    kwargs = inputs(model)
    kwargs.pop("attention_mask", None)  # transformers itself branches on the values of a mask
    torch.testing.assert_close(output(compiled, **kwargs), output(model, **kwargs), rtol=1e-4, atol=1e-5)
    assert (output(model) == expected).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_what_is_traced_for_onnx_is_the_converted_model(tmp_path):
    """By the exporter of traced models, and run by ONNX's own reference implementation."""
    reference = pytest.importorskip("onnx.reference")
    model = build("timm_vit")
    plain = output(model)
    precondition(model)
    x = inputs(model)["x"]
    torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=False, opset_version=17, input_names=["x"])
    (found,) = reference.ReferenceEvaluator(str(tmp_path / "model.onnx")).run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), output(model), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(output(model), plain, rtol=1e-2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_traced_model_is_refused():
    traced = torch.jit.trace(build("timm_vit"), (inputs(build("timm_vit"))["x"],))
    for change in (precondition, spectral_condition):
        with pytest.raises(
            ValueError, match=r"blocks\.1\.attn: torch.jit has traced or scripted it: convert the model"
        ):
            change(traced)
    both = nn.Sequential(traced, build("timm_vit"))
    precondition(both)
    assert restore(both).names("restored") == ["1.blocks.0.attn", "1.blocks.1.attn"]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "clip", "vit"])
def test_sdpa_and_eager_agree(name):
    """Masks reach both, as booleans or as numbers, and weights are the ones that are multiplied."""
    results = {}
    for implementation in ("sdpa", "eager"):
        for rows in ("output", "weights"):
            model = build(name)
            model.set_attn_implementation(implementation)
            kept = inputs(model).get("attention_mask")
            precondition(model, rows=rows)
            y = output(model)
            results[implementation, rows] = y[kept.bool()] if name == "bert" else y  # padded queries are undefined
    for rows in ("output", "weights"):
        torch.testing.assert_close(results["sdpa", rows], results["eager", rows], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(results["sdpa", "output"], results["sdpa", "weights"], rtol=1e-2)


def test_rows_of_the_weights_in_a_model_follow_the_equation():
    model = build("timm_vit")
    attention = model.blocks[0].attn
    x = torch.randn(2, 5, 32)
    q, k, v = attention.qkv(x).reshape(2, 5, 3, 4, 8).permute(2, 0, 3, 1, 4)
    y = reference.preconditioned_attention(q, k, v, rows="weights")
    precondition(model, rows="weights")
    torch.testing.assert_close(attention(x), attention.proj(y.transpose(1, 2).reshape(2, 5, 32)))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_causality_padding_and_cached_decoding(name):
    model = build(name)
    precondition(model)
    ids = tokens()
    full = model(input_ids=ids).logits
    later = ids.clone()
    later[:, 4] = 1
    changed = model(input_ids=later).logits
    assert (changed[:, :4] == full[:, :4]).all()
    assert not torch.allclose(changed[:, 4:], full[:, 4:])

    cache, steps = None, []
    for i in range(ids.shape[1]):
        result = model(input_ids=ids[:, i : i + 1], past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        steps.append(result.logits)
    torch.testing.assert_close(torch.cat(steps, 1), full, rtol=1e-4, atol=1e-4)

    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], 1)
    mask = (torch.arange(10) >= 3).long().expand(2, -1)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    left = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits[:, 3:]
    torch.testing.assert_close(left, full, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generate_continues_as_the_full_forward_pass_says(cache):
    model = build("llama")
    precondition(model)
    ids = model.generate(tokens(1), max_new_tokens=5, do_sample=False, cache_implementation=cache, pad_token_id=0)
    again = model(input_ids=ids).logits.argmax(-1)
    assert (ids[:, 7:] == again[:, 6:-1]).all()


@pytest.mark.parametrize(
    "kwargs",
    [
        {"qk_norm": True},
        {"qkv_bias": False},
        {"scale_attn_norm": True},
        {"class_token": False, "global_pool": "avg"},
        {"attn_drop_rate": 0.3},
    ],
)
def test_timm_options_in_training_mode(kwargs):
    torch.manual_seed(0)
    model = timm_vit(**kwargs).train()
    x = torch.randn(2, 1, 8, 8)
    torch.manual_seed(3)
    with NormalisedRows():
        oracle = model(x)
    assert len(precondition(model, strict=True).converted) == 2
    torch.manual_seed(3)
    torch.testing.assert_close(model(x), oracle)


def test_timm_gate_mask_and_unfused_path():
    attention = Attention(32, num_heads=4, gated=True)
    attention.fused_attn = False  # a module that runs timm's manual softmax is conditioned alike
    model = nn.Sequential(attention)
    x, mask = torch.randn(2, 5, 32), torch.rand(5, 5) > 0.3
    mask[:, 0] = True
    attention.fused_attn = True
    with NormalisedRows():
        oracle = [attention(x), attention(x, attn_mask=mask), attention(x, is_causal=True)]
    attention.fused_attn = False
    precondition(model)
    ours = [attention(x), attention(x, attn_mask=mask), attention(x, is_causal=True)]
    for a, b in zip(ours, oracle):
        torch.testing.assert_close(a, b)


class OwnAttention(Attention):
    """A subclass may do anything in its forward."""


class UnknownAttention(nn.Linear):
    """Its name is all that says what it is."""


def test_what_cannot_be_converted_is_refused_with_the_reason():
    model = nn.ModuleDict({"a": Attention(8, 2), "b": OwnAttention(8, 2), "c": UnknownAttention(8, 2)})
    report = precondition(model)
    assert report.converted == ["a"]
    reasons = {row.name: row.reason for row in report.rows if row.status == "refused"}
    assert "subclass" in reasons["b"]
    assert "tests.conversion.test_conversion.UnknownAttention is not in the table" in reasons["c"]
    assert "refused" in str(report)
    restore(model)
    with pytest.raises(ValueError, match=r"strict=True(.|\n)*b: (.|\n)*c: "):
        precondition(model, strict=True)
    assert type(model["a"]) is Attention, "nothing may be changed by a call that raises"
    assert precondition(model, strict=True, exclude=["b", "c"]).converted == ["a"]


def test_a_model_that_is_not_on_the_interface_is_refused():
    config = YosoConfig(vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
    with pytest.raises(ValueError, match="YosoSelfAttention does not compute softmax"):
        precondition(YosoModel(config))


def test_nothing_to_convert():
    with pytest.raises(ValueError, match="holds no attention module"):
        precondition(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got dict"):
        precondition({})


def test_include_and_exclude():
    model = build("bert")
    report = precondition(model, include="*.layer.1.*")
    assert report.converted == ["bert.encoder.layer.1.attention.self"]
    assert report.names("excluded") == ["bert.encoder.layer.0.attention.self"]
    with NormalisedRows():
        everywhere = output(build("bert"))
    assert not torch.allclose(output(model), everywhere)
    assert not torch.allclose(output(model), output(build("bert")))
    with pytest.raises(ValueError, match=r"include='layers\.\*' matches no attention module; there are: bert"):
        precondition(model, include="layers.*")
    with pytest.raises(TypeError, match="exclude takes glob patterns"):
        precondition(model, exclude=[1])
    assert precondition(model).names("unchanged") == ["bert.encoder.layer.1.attention.self"]
    torch.testing.assert_close(output(model), everywhere)


@pytest.mark.parametrize("name", ["timm_vit", "llama", "torch_encoder"])
def test_a_temporary_conversion(name):
    model = build(name)
    plain = output(model)
    precondition(model, include=conditioning_names(model)[:1])
    partly = output(model)
    report = precondition(model)
    assert len(report.converted) == len(report.names("unchanged")) == 1
    with contextlib.suppress(KeyError), report:
        assert not torch.allclose(output(model), partly)
        raise KeyError
    assert (output(model) == partly).all()
    with pickle.loads(pickle.dumps(report)) as record:
        assert record == report
    assert (output(model) == partly).all(), "a copy of a report is a record, and undoes nothing"
    restore(model)
    with precondition(model):
        restore(model)
    assert (output(model) == plain).all()


def conditioning_names(model):
    return [row.name for row in restore(model).rows]


def test_converting_twice():
    model = build("vit")
    precondition(model)
    before = output(model)
    assert precondition(model).converted == []
    assert (output(model) == before).all()
    with pytest.raises(ValueError, match=r"already converted, with RowNorm(.*); call restore"):
        precondition(model, eps=1e-3)


def test_other_models_of_the_process_do_not_feel_it():
    """Also one that shares its config with a converted model."""
    first = build("llama")
    second = type(first)(first.config).eval()
    before = output(second)
    precondition(first)
    assert (output(second) == before).all()


def test_control_differs_from_c_by_scale_and_gradient():
    ours, control = build("timm_vit"), build("timm_vit")
    precondition(ours)
    convert(control, HeadRMSNorm(eps=1e-12))
    for block in control.blocks:  # the scale √d is absorbed by the projection
        block.attn.proj.weight.data /= 8**0.5
    torch.testing.assert_close(output(ours), output(control), rtol=1e-4, atol=1e-5)
    a, b = gradients(ours), gradients(control)
    assert (a["blocks.0.attn.qkv.weight"] - b["blocks.0.attn.qkv.weight"]).abs().max() > 1e-3


def test_models_that_share_a_config_are_restored_apart():
    first = build("llama")
    second, third = (type(first)(first.config).eval() for _ in range(2))
    plain = output(second)
    precondition(first)
    precondition(second)
    expected, expected_second = output(first), output(second)
    restore(third)
    assert (output(first) == expected).all(), "restoring a plain model may not touch another"
    restore(first)
    assert (output(second) == expected_second).all()
    assert conditioning(second)["transforms"]
    assert second.config.conditioned_attention, "and its checkpoint still remembers"
    restore(second)
    assert (output(second) == plain).all()
    assert second.config._attn_implementation == "sdpa"
    assert not hasattr(second.config, "conditioned_attention")


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_changed_attention_implementation_is_noticed(implementation):
    model = build("llama")
    precondition(model)
    expected = output(model)
    model.set_attn_implementation(implementation)
    with pytest.warns(UserWarning, match="runs unconditioned; call precondition"):
        assert conditioning(model)["transforms"] == []
    with pytest.raises(
        RuntimeError, match=rf"changed to '{implementation}' since.*precondition\(model\) again, or rest"
    ):
        model(**inputs(model))
    assert not ConditionMonitor(model, inputs(model)).measure(0)[0].conditioned
    assert len(precondition(model).converted) == 2
    kept = inputs(model)["attention_mask"].bool()
    torch.testing.assert_close(output(model)[kept], expected[kept], rtol=1e-4, atol=1e-4)
    model.set_attn_implementation(implementation)
    restore(model)
    assert model.config._attn_implementation == implementation
    assert not any(m._forward_pre_hooks for m in model.modules())
    plain = build("llama")
    plain.set_attn_implementation(implementation)
    assert (output(model) == output(plain)).all()


def test_queries_that_may_attend_to_nothing_are_zero_in_a_model():
    """Left padding under sdpa: the padded queries' heads are zero, also by rows of the weights."""
    model = build("llama")
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1]] * 2)
    for rows in ("output", "weights"):
        restore(model)
        precondition(model, rows=rows)
        call = head_outputs(model, {"input_ids": tokens(), "attention_mask": mask})[0]
        assert (call.after[:, :, :2] == 0).all()
        assert (call.after[:, :, 2:] != 0).any(-1).all()


def test_attention_inside_a_block_is_refused_and_not_overlooked():
    model = nn.Sequential(Block(32, 4), DiffParallelScalingBlock(32, 4))
    assert precondition(model).refused == ["1"]
    restore(model)
    with pytest.raises(ValueError, match="normalises every head behind"):
        precondition(model, strict=True)


@pytest.mark.parametrize("build_model", [timm_vit, lambda: torch.nn.TransformerEncoderLayer(32, 4, 64)])
def test_restore_says_where_a_class_was_changed_since(build_model):
    model = build_model()
    precondition(model)
    attention = next(m for m in model.modules() if hasattr(m, "_head_transform"))
    plain = type(attention)
    attention.__class__ = type("Parametrized" + plain.__name__, (plain,), {})  # what parametrize and fully_shard do
    with pytest.raises(ValueError, match=r"has become a Parametrized.* since it was converted"):
        restore(model)
    assert conditioning(model)["transforms"]
    attention.__class__ = plain
    assert restore(model).names("restored")
    assert not conditioning(model)["transforms"]


def test_restore_after_a_parametrization_was_removed():
    model = torch.nn.TransformerEncoderLayer(32, 4, 64)
    precondition(model)
    torch.nn.utils.parametrizations.weight_norm(model.self_attn, "in_proj_weight")
    assert precondition(model).names("unchanged") == ["self_attn"]
    with pytest.raises(ValueError, match="parametrize"):
        restore(model)
    torch.nn.utils.parametrize.remove_parametrizations(model.self_attn, "in_proj_weight")
    assert restore(model).names("restored") == ["self_attn"]


def test_a_file_that_reads_the_name_is_found_behind_a_sharded_class():
    """What fully_shard makes of a class stands in a file of torch's."""
    model = gpt2()
    model.set_attn_implementation("eager")
    for module in model.modules():
        if hasattr(module, "reorder_and_upcast_attn"):
            module.reorder_and_upcast_attn = True
            derived = {"__module__": "torch.distributed.fsdp._fully_shard._fully_shard"}
            module.__class__ = type("FSDPGPT2Attention", (type(module),), derived)
    with pytest.raises(ValueError, match="its model file branches on the implementation's name"):
        precondition(model)
