"""`spectral_condition`: what is computed, what is trained, what is kept, and what is refused."""

import copy
import io
import json
import math
import pickle
import sys
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.ao.quantization import quantize_dynamic
from torch.nn.parallel import replicate
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.parametrize import remove_parametrizations

from conditioned_attention import (
    apply_conditioning,
    conditioning,
    fold,
    precondition,
    restore,
    spectral_condition,
    unfold,
)
from conditioned_attention.measure.probing.projections import projection_records
from conditioned_attention.sites.corrected import shown
from conditioned_attention.sites.projections import Projection, Projections
from conditioned_attention.spectral import ON_LOGITS, Spectral, auto_strength, self_logit
from tests.conversion.by_hand import (
    STRENGTH,
    identity_of_each_head,
    polar,
    polar_of_each_head,
    rectangular_identity,
    weights_by_hand,
)
from tests.models import MODELS, build, output, weigh

replication = sys.modules["torch.nn.parallel.replicate"]  # hidden by the function of that name


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("per_head", "correction"), [(False, rectangular_identity), (True, identity_of_each_head)])
@pytest.mark.parametrize("name", MODELS)
def test_it_computes_with_w_plus_lambda_identity(name, per_head, correction):
    model = build(name)
    plain, keys = output(model), list(model.state_dict())
    report = spectral_condition(model, STRENGTH, per_head=per_head, strict=True)
    assert len(report.converted) == MODELS[name][1]
    corrected = output(model)
    assert_same(corrected, output(weights_by_hand(build(name), correction)))
    assert (corrected - plain).abs().max() > 1e-2 * plain.abs().max()
    assert list(model.state_dict()) == keys
    assert restore(model).names("restored") == report.converted
    assert torch.equal(output(model), plain)


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("name", ["timm_vit", "gpt2", "torch_mha", "llama"])
def test_the_polar_correction(name, per_head):
    model = build(name)
    spectral_condition(model, correction="polar", per_head=per_head)
    assert_same(output(model), output(weights_by_hand(build(name), polar_of_each_head if per_head else polar)))
    if not per_head:
        assert all(r.kappa > 2 >= r.kappa_corrected for r in projection_records(model))


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("correction", "made"), [("identity", rectangular_identity), ("polar", polar)])
@pytest.mark.parametrize("roles", ["qk", "v"])
@pytest.mark.parametrize("name", ["timm_vit", "vit", "gpt2", "llama", "torch_mha"])
def test_of_some_roles_alone(name, roles, correction, made):
    """The other rows, also of the same weight, and weights that hold none of these roles stay W."""
    model = build(name)
    plain, keys, strength = output(model), set(model.state_dict()), STRENGTH if correction == "identity" else 1.0
    assert spectral_condition(model, strength, correction=correction, roles=roles, strict=True).converted
    assert_same(output(model), output(weights_by_hand(build(name), made, roles)))
    assert (output(model) - plain).abs().max() > 1e-3 * plain.abs().max()
    buffers = set(model.state_dict()) - keys
    assert bool(buffers) is (correction == "polar")
    assert not any(f"{other}_proj" in key for key in buffers for other in set("qkv") - set(roles))
    truth, record = output(model), json.loads(json.dumps(conditioning(model)))
    assert record["transforms"][0]["roles"] == roles
    loaded = build(name)
    apply_conditioning(loaded, record)
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(output(loaded), truth)
    for each in (model, loaded):
        fold(each)
        assert_same(output(each), truth)
        unfold(each)
        restore(each)
        assert_same(output(each), plain)
        assert set(each.state_dict()) == keys


def test_a_record_that_knows_no_roles_is_of_all():
    """As version 0.1 wrote it."""
    model, loaded = build("gpt2"), build("gpt2")
    spectral_condition(model, STRENGTH)
    (entry,) = conditioning(model)["transforms"]
    assert entry.pop("roles") == "qkv"
    apply_conditioning(loaded, {"format": 1, "transforms": [entry]})
    assert torch.equal(output(loaded), output(model))


def train(model, steps, decay):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=decay)
    for _ in range(steps):
        optimizer.zero_grad()
        weigh(output(model)).backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["timm_vit", "gpt2", "torch_mha"])
def test_the_gradient_reaches_w(name):
    model, baked = build(name), weights_by_hand(build(name), rectangular_identity)
    spectral_condition(model, STRENGTH)
    for each in (model, baked):
        weigh(output(each)).backward()
    for (key, ours), theirs in zip(model.named_parameters(), baked.parameters()):
        assert_same(ours.grad, theirs.grad), key


def test_weight_decay_acts_on_w_alone():
    """Without decay W + C trains as a weight that began there; with it that weight's λ would decay."""
    for decay, same in ((0.0, True), (1.0, False)):
        model, baked = build("timm_vit"), weights_by_hand(build("timm_vit"), rectangular_identity)
        spectral_condition(model, STRENGTH)
        train(model, 20, decay), train(baked, 20, decay)
        fold(model)
        ours, theirs = (m.blocks[0].attn.qkv.weight[:32] for m in (model, baked))
        gap = (ours - theirs).diagonal().mean().item()
        expected = 0.0 if same else STRENGTH * (1 - (1 - 1e-2 * decay) ** 20)
        assert gap == pytest.approx(expected, abs=0.02)


def test_copies_pickles_and_whole_files():
    model = build("gpt2")
    spectral_condition(model, STRENGTH)
    truth = output(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert torch.equal(output(again), truth)
        restore(again)
        assert torch.equal(output(again), output(build("gpt2")))
    assert torch.equal(output(model), truth)


def test_an_interrupt_in_forward_adds_nothing_twice():
    """It passes by hooks behind the module."""

    def interrupt(*args):
        raise KeyboardInterrupt

    model = build("timm_vit")
    spectral_condition(model, STRENGTH)
    truth, attention = output(model), model.blocks[0].attn
    for after in (output, restore, fold):
        handle = attention.proj.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            output(model)
        handle.remove()
        after(model)
        assert attention.qkv.weight is attention.qkv._parameters["weight"]
        assert_same(output(model), output(build("timm_vit")) if after is restore else truth)
        if after is restore:
            spectral_condition(model, STRENGTH)


@pytest.mark.parametrize("name", ["timm_vit", "torch_encoder"])
def test_copies_of_data_parallel(name, monkeypatch):
    """They have no parameters, but attributes; nn.DataParallel makes such copies on GPUs only, so by hand here."""
    model = build(name)
    spectral_condition(model, STRENGTH)

    def copy_all(tensors, devices, detach=False):
        return [[tensor.clone() for tensor in tensors]]

    monkeypatch.setattr(replication, "_broadcast_coalesced_reshape", copy_all)
    (copied,) = replicate(model, [0])
    assert not list(copied.parameters())
    for _ in range(2):
        assert torch.equal(output(copied), output(model))


def test_an_exception_in_forward_leaves_w_behind():
    model = build("timm_vit")
    spectral_condition(model, STRENGTH)
    with pytest.raises(RuntimeError):
        model.blocks[0].attn(torch.zeros(2, 3, 7))
    assert "weight" not in vars(model.blocks[0].attn.qkv)
    assert model.blocks[0].attn.qkv.weight is model.blocks[0].attn.qkv._parameters["weight"]


def test_lora():
    model = build("timm_vit")
    spectral_condition(model, STRENGTH)
    truth = output(model)
    adapted = get_peft_model(model, LoraConfig(target_modules=["qkv"]))
    assert_same(output(adapted.base_model.model), truth)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    trained = output(adapted.base_model.model)
    assert (trained - truth).abs().max() > 1e-2
    merged = adapted.merge_and_unload()
    assert_same(output(merged), trained)
    restore(merged)


def test_both_methods_in_any_order():
    models = [build("timm_vit") for _ in range(2)]
    precondition(models[0]), spectral_condition(models[0], STRENGTH)
    spectral_condition(models[1], STRENGTH), precondition(models[1])
    truth = output(models[0])
    assert torch.equal(output(models[1]), truth)
    baked = weights_by_hand(build("timm_vit"), rectangular_identity)
    precondition(baked)
    assert_same(truth, output(baked))
    assert conditioning(models[0])["transforms"][0]["kind"] == "spectral"
    with spectral_condition(build("timm_vit"), STRENGTH) as report:
        assert report.converted
    restore(models[0])
    assert torch.equal(output(models[0]), output(build("timm_vit")))


def test_as_a_context_it_leaves_the_preconditioner_alone():
    model = build("timm_vit")
    precondition(model)
    truth = output(model)
    with spectral_condition(model, STRENGTH):
        assert not torch.equal(output(model), truth)
    assert torch.equal(output(model), truth)
    with precondition(model):
        pass
    assert torch.equal(output(model), truth), "it was there before"


def test_a_small_polar_correction_of_low_rank_in_half_precision():
    """W + C is singular to rounding, and nothing is wrong with that."""
    layer = nn.TransformerEncoderLayer(64, 4, 128, dtype=torch.bfloat16)
    layer.self_attn.in_proj_weight.data = (torch.randn(192, 8) @ torch.randn(8, 64) / 50).bfloat16()
    assert spectral_condition(layer, 1e-3, correction="polar").converted == ["self_attn"]


def test_loading_looks_at_no_weights_that_are_not_there_yet():
    trained, loaded = (nn.TransformerEncoderLayer(16, 2, 32) for _ in range(2))
    spectral_condition(trained, correction="polar")
    loaded.self_attn.in_proj_weight.data.fill_(torch.nan)
    apply_conditioning(loaded, conditioning(trained))
    loaded.load_state_dict(trained.state_dict())
    x = torch.randn(3, 1, 16)
    assert torch.equal(loaded.eval()(x), trained.eval()(x))


@pytest.mark.parametrize("options", [{"strength": STRENGTH}, {"correction": "polar", "per_head": True}])
def test_records_and_loading(options):
    model = build("gpt2")
    spectral_condition(model, **options)
    train(model, 3, 0.1)
    truth, record = output(model.eval()), json.loads(json.dumps(conditioning(model)))
    loaded = build("gpt2")
    apply_conditioning(loaded, record)
    if "correction" in options:
        with pytest.raises(RuntimeError, match="is not there yet: after apply_conditioning"):
            output(loaded)
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(output(loaded), truth)
    assert conditioning(loaded) == record
    apply_conditioning(loaded, record)  # nothing is left to do
    with pytest.raises(ValueError, match="is already corrected, with Spectral"):
        spectral_condition(loaded, 0.1)
    assert torch.equal(output(loaded), truth)


def test_a_checkpoint_of_hugging_face_remembers(tmp_path):
    model = build("gpt2")
    spectral_condition(model, STRENGTH)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    with pytest.raises(Exception, match="apply_conditioning"):
        output(loaded.eval())
    apply_conditioning(loaded)
    assert torch.equal(output(loaded.eval()), output(model))


@pytest.mark.parametrize(
    "options", [{"strength": 3.0}, {"strength": STRENGTH, "per_head": True}, {"correction": "polar"}]
)
def test_fold_and_unfold(options):
    model = build("timm_vit")
    spectral_condition(model, **options)
    truth = output(model)
    weight = model.blocks[0].attn.qkv.weight
    before = weight.detach().clone()
    assert fold(model) == ["blocks.0.attn", "blocks.1.attn"]
    assert torch.equal(output(model), truth)
    assert not model.blocks[0].attn._forward_pre_hooks
    with pytest.raises(ValueError, match=r"has been folded into the weights of blocks.0.attn, blocks.1.attn: call"):
        restore(model)
    loaded = build("timm_vit")
    apply_conditioning(loaded, conditioning(model))
    loaded.load_state_dict(model.state_dict())
    for each in (model, loaded):
        unfold(each)
        change = (each.blocks[0].attn.qkv.weight - before).abs()
        if options.get("correction") != "polar":
            with shown(each.blocks[0].attn):
                corrected = each.blocks[0].attn.qkv.weight - each.blocks[0].attn.qkv._parameters["weight"]
            assert torch.equal(change[corrected == 0], torch.zeros_like(change[corrected == 0])), "bit for bit"
            assert change.max() <= torch.finfo(torch.float32).eps * (options["strength"] + before.abs().max())
        assert_same(output(each), truth)
    with pytest.raises(ValueError, match="there is nothing to unfold"):
        unfold(model)


def test_fold_refuses_weights_that_would_be_lost():
    model = build("timm_vit").to(torch.bfloat16)
    with pytest.warns(UserWarning, match="adds about 283 to the logit of a token with itself"):
        spectral_condition(model, 10.0)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"adding 10 to torch.bfloat16 weights would round away more than a tenth"):
        fold(model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_large_polar_correction_is_refused_too():
    model = build("timm_vit").to(torch.bfloat16)
    spectral_condition(model, 1e4, correction="polar")
    with pytest.raises(ValueError, match=r"would round away more than a tenth"):
        fold(model)
    restore(model)
    spectral_condition(model, correction="polar")
    assert fold(model) == ["blocks.0.attn", "blocks.1.attn"]


@pytest.mark.parametrize(
    ("args", "correction", "strength"),
    [
        ((), "identity", 8**-0.25),
        (("auto",), "identity", 8**-0.25),
        ((10,), "identity", 10),
        ((), "polar", 1),
    ],
)
@pytest.mark.filterwarnings("ignore:strength=10 adds")
def test_the_default_strength(args, correction, strength):
    model = build("timm_vit")
    spectral_condition(model, *args, correction=correction)
    assert conditioning(model)["transforms"][0]["strength"] == pytest.approx(strength)


def test_the_strength():
    assert self_logit(auto_strength(64), 64) == pytest.approx(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spectral_condition(build("timm_vit"), 1.0)
    with pytest.warns(UserWarning, match=r"first at 'blocks.0.attn'.*strength='auto' is 0.59 here") as caught:
        spectral_condition(build("timm_vit"), 3.0)
    assert caught[0].filename == __file__


def test_the_logit_of_a_token_with_itself():
    """The estimate behind the warning, on inputs of unit root mean square."""
    model = nn.MultiheadAttention(512, 8, bias=False)
    nn.init.zeros_(model.in_proj_weight)
    spectral_condition(model, 1.5)
    x = nn.functional.rms_norm(torch.randn(200, 512), (512,))
    with shown(model):
        q, k, _ = nn.functional.linear(x, model.in_proj_weight).unflatten(-1, (3, 8, 64)).unbind(1)
    logits = (q * k).sum(-1) / 8
    assert logits.mean().item() == pytest.approx(self_logit(1.5, 64), rel=0.02)


def test_the_logits_of_different_tokens():
    """The rule for queries and keys alone: the deviation of what λ adds, on independent inputs, is λ² at any width."""
    for width, heads, strength in ((512, 8, ON_LOGITS), (512, 64, ON_LOGITS), (512, 8, 0.5)):
        model = nn.MultiheadAttention(width, heads, bias=False)
        nn.init.zeros_(model.in_proj_weight)
        spectral_condition(model, strength, roles="qk")
        x = torch.randn(200, width)
        with shown(model):
            q, k, v = nn.functional.linear(x, model.in_proj_weight).unflatten(-1, (3, heads, -1)).unbind(1)
        logits = torch.einsum("nhd,mhd->hnm", q, k) / math.sqrt(width // heads)
        others = logits[:, ~torch.eye(200, dtype=torch.bool)]
        assert others.std().item() == pytest.approx(strength**2, rel=0.02)
        assert not v.any()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"strength": "much"}, ValueError, "strength='much' is unknown; valid are a number and 'auto'"),
        ({"strength": -1}, ValueError, "strength must be positive and finite, got -1"),
        ({"strength": math.inf}, ValueError, "strength must be positive and finite, got inf"),
        ({"strength": True}, TypeError, "strength must be a number or 'auto', got True"),
        ({"correction": "unit"}, ValueError, r"correction='unit' is unknown; valid are \('identity', 'polar'\)"),
        ({"roles": "kq"}, ValueError, r"roles='kq' is unknown; valid are \('qkv', 'qk', 'v'\)"),
        ({"per_head": 1}, TypeError, "per_head must be True or False, got 1"),
        ({"include": "mlp*"}, ValueError, "include='mlp\\*' matches no attention module; there are: blocks.0.attn"),
        ({"exclude": "*"}, ValueError, "nothing to convert in VisionTransformer: include and exclude leave no"),
    ],
)
def test_wrong_options_change_nothing(options, error, words):
    model = build("timm_vit")
    with pytest.raises(error, match=words):
        spectral_condition(model, **options)
    assert conditioning(model)["transforms"] == []


def test_wrong_entries_of_the_table_are_noticed(monkeypatch):
    from conditioned_attention.sites.timm import projections as projections_timm

    def rows_that_are_not_there(module):
        return Projections((Projection("qkv", sizes=(32, 32, 33)),), module.num_heads)

    def not_a_projection(module):
        return Projections((Projection("qkv", "qk"), Projection("scaled", "v")), module.num_heads)

    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = build("timm_vit")
    name = "timm.layers.attention.Attention"
    monkeypatch.setitem(projections_timm.FOUND, name, rows_that_are_not_there)
    with pytest.raises(ValueError, match=r"qkv.weight has 96 rows, which are not 1 × \(32, 32, 33\)"):
        spectral_condition(model, STRENGTH)
    for block in model.blocks:
        block.attn.scaled = Scaled(32, 32)
    monkeypatch.setitem(projections_timm.FOUND, name, not_a_projection)
    for block in model.blocks:
        block.attn.qkv = nn.Linear(32, 64)
    with pytest.raises(RuntimeError, match=r"scaled.weight does not have the effect it should, so nothing was changed"):
        spectral_condition(model, STRENGTH)
    assert conditioning(model)["transforms"] == []
    assert not any(module._forward_pre_hooks for module in model.modules())


def weight_norm_of_old(module):
    with pytest.warns(FutureWarning, match="is deprecated in favor"):
        torch.nn.utils.weight_norm(module)


# what puts something else in the place of a weight -> how it is undone: by a property of the class,
PARAMETRIZED = {
    "parametrizations.weight_norm": (parametrizations.weight_norm, remove_parametrizations),
    "parametrizations.orthogonal": (parametrizations.orthogonal, None),
}
# or by a hook that sets the weight before each call
SET_BY_HOOKS = {
    "utils.weight_norm": (weight_norm_of_old, torch.nn.utils.remove_weight_norm),
    "utils.spectral_norm": (torch.nn.utils.spectral_norm, torch.nn.utils.remove_spectral_norm),
    "prune": (lambda module: prune.random_unstructured(module, "weight", 0.5), prune.remove),
}
REPLACED = PARAMETRIZED | SET_BY_HOOKS


def projection_of(name, model):
    return model.blocks[0].attn.qkv if name == "timm_vit" else model.model.layers[0].self_attn.k_proj


def take_out(kind, module):
    undo = REPLACED[kind][1]
    undo(module) if undo is torch.nn.utils.remove_spectral_norm else undo(module, "weight")


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ["timm_vit", "llama"])
@pytest.mark.parametrize("kind", SET_BY_HOOKS)
def test_a_weight_that_a_hook_sets_gets_c(kind, name):
    """What the hook makes of W takes the place of W in W + C."""
    model, by_hand, plain = build(name), build(name), build(name)
    spectral_condition(model, STRENGTH)
    for each in (model, by_hand, plain):
        torch.manual_seed(3), REPLACED[kind][0](projection_of(name, each))
        output(each)
    take_out(kind, projection_of(name, by_hand))
    weights_by_hand(by_hand, rectangular_identity)
    for _ in range(2):
        assert_same(output(model), output(by_hand))
    where = "qkv" if name == "timm_vit" else "k_proj"
    with pytest.raises(ValueError, match=rf"cannot be folded: {where}\.weight is no parameter of its"):
        fold(model)
    take_out(kind, projection_of(name, model))
    assert_same(output(model), output(by_hand))
    restore(model)
    take_out(kind, projection_of(name, plain))
    assert_same(output(model), output(plain))


@pytest.mark.parametrize("name", ["timm_vit", "llama"])
@pytest.mark.parametrize("kind", PARAMETRIZED)
def test_a_weight_that_is_replaced_later_is_no_silent_w(kind, name):
    replace, undo = REPLACED[kind]
    model, plain = build(name), build(name)
    spectral_condition(model, STRENGTH)
    truth = output(model)
    for each in (model, plain):
        torch.manual_seed(3), replace(projection_of(name, each))
    where = "qkv" if name == "timm_vit" else "k_proj"
    words = (
        rf"^this \w*Attention was given to spectral_condition, and since then {where}\.weight is no parameter of its"
    )
    for _ in range(2):
        with pytest.raises(RuntimeError, match=words):
            output(model)
    with pytest.raises(ValueError, match=rf"cannot be folded: {where}\.weight is no parameter of its"):
        fold(model)
    if undo is not None:
        undo(projection_of(name, model), "weight")
        assert_same(output(model), truth)
        torch.manual_seed(3), replace(projection_of(name, model))
    restore(model)
    assert_same(output(model), output(plain))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", ["timm_vit", "llama"])
@pytest.mark.parametrize("kind", REPLACED)
def test_a_weight_that_is_replaced_before_is_refused(kind, name):
    model = build(name)
    REPLACED[kind][0](projection_of(name, model))
    plain, record = output(model), conditioning(model)
    with pytest.raises(ValueError, match=r"strict=True.*\n.*0.*weight is no parameter of its .*; call spectral_cond"):
        spectral_condition(model, STRENGTH, strict=True)
    with pytest.raises(ValueError, match=r"attn cannot be corrected: .*weight is no parameter of its"):
        apply_conditioning(model, _of_all(name))
    assert conditioning(model) == record
    assert torch.equal(output(model), plain)
    report = spectral_condition(model, STRENGTH)
    assert len(report.refused) == len(report.converted) == 1
    restore(model)
    assert torch.equal(output(model), plain)


def _of_all(name):
    model = build(name)
    spectral_condition(model, STRENGTH)
    return conditioning(model)


def test_quantized_weights():
    """Of `quantize_dynamic`: a method by the name of the weight; it leaves what is corrected; folded before, not."""
    model = build("timm_vit")
    spectral_condition(model, STRENGTH)
    truth, plain = output(model), output(build("timm_vit"))
    quantized = quantize_dynamic(model)
    assert (output(quantized) - truth).norm() < 0.2 * (plain - truth).norm()
    assert torch.equal(quantized.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)
    with pytest.raises(ValueError, match=r"blocks\.0\.attn: qkv\.weight is no parameter of its Linear"):
        spectral_condition(quantize_dynamic(build("timm_vit")), STRENGTH, strict=True)
    fold(model)
    quantized = quantize_dynamic(model)
    assert callable(quantized.blocks[0].attn.qkv.weight)
    assert (output(quantized) - truth).norm() < 0.2 * (plain - truth).norm()
    with pytest.raises(ValueError, match=r"blocks\.0\.attn cannot be unfolded: qkv\.weight is no parameter"):
        unfold(quantized)


def test_weights_of_integers():
    model = build("timm_vit")
    weight = model.blocks[0].attn.qkv.weight
    model.blocks[0].attn.qkv.weight = nn.Parameter(weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"qkv\.weight is of torch\.int8, to which C cannot be added"):
        spectral_condition(model, STRENGTH, strict=True)


def test_settings_are_checked_when_they_are_read():
    with pytest.raises(TypeError, match="folded must be True or False, got 'no'"):
        Spectral(1.0, folded="no")
