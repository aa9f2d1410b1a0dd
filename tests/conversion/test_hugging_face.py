"""Hugging Face transformers: every class in the tables beside an outside oracle, and models as people use them."""

import importlib
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    Trainer,
    TrainingArguments,
    WhisperConfig,
    WhisperModel,
)
from transformers.pytorch_utils import prune_linear_layer

from conditioned_attention import apply_conditioning, conditioning, precondition, restore
from conditioned_attention.preconditioner import RowNorm
from conditioned_attention.sites import find_sites
from conditioned_attention.sites.transformers import heads as table
from tests.conversion.answers import row
from tests.conversion.called import calls
from tests.conversion.hugging_face_families import PAGE, attention_classes, ways_of
from tests.conversion.hugging_face_tiny import CASES, MODULES, attention, call, first_tensor, tiny, tiny_config
from tests.models import build, output, tokens, weigh
from tests.oracle import NormalisedHeads

VARIANTS = [
    *((model_type, {}) for model_type in CASES),
    ("longt5", {"encoder_attention_type": "transient-global"}),
    ("falcon", {"alibi": True}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ("funnel", {"attention_type": "factorized"}),
]


def gradients(model, result):
    model.zero_grad()
    weigh(result).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_conditioned(model, forward):
    """Output and gradients of the converted model are those of the plain one under the oracle."""
    plain = forward(model)
    with NormalisedHeads():
        expected = forward(model)
    expected_gradients = gradients(model, expected)
    report = precondition(model, strict=True)
    result = forward(model)
    size, tolerance = expected.abs().max(), 1e-10 if plain.dtype == torch.float64 else 1e-5
    assert (plain - expected).abs().max() > 0.01 * size, "the comparison would be vacuous"
    assert (result - expected).abs().max() <= tolerance * size
    found = gradients(model, result)
    assert found.keys() == expected_gradients.keys()
    largest = max(gradient.abs().max() for gradient in expected_gradients.values())
    for name, gradient in found.items():
        assert (gradient - expected_gradients[name]).abs().max() <= tolerance * largest, name
    restore(model)
    assert (forward(model) == plain).all()
    return report


@pytest.mark.one_in(8)
@pytest.mark.parametrize(("model_type", "changes"), VARIANTS, ids=lambda value: value if isinstance(value, str) else "")
def test_models_are_those_of_the_outside_oracle(model_type, changes):
    assert_conditioned(tiny(model_type, **changes), call)


@pytest.mark.parametrize(
    "model_type", ["nystromformer", "xlnet", "convbert", "luke", "lilt", "squeezebert", "llama", "bert"]
)
def test_modules_are_called_as_in_the_plain_model(model_type):
    model = tiny(model_type)
    expected = calls(model, call)
    precondition(model, strict=True)
    assert calls(model, call) == expected


def prune(attention, keep):
    """Takes heads away as everybody does: rows of W_Q, W_K and W_V, and what the module knows of their number."""
    width = attention.attention_head_size
    rows = torch.cat([torch.arange(head * width, (head + 1) * width) for head in keep])
    for name in ("query", "key", "value"):
        setattr(attention, name, prune_linear_layer(getattr(attention, name), rows).double())
    attention.all_head_size = len(rows)
    return rows


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("model_type", ["rembert", "roformer", "bert"])
def test_heads_that_are_pruned_after_conversion(model_type, counted):
    """Also where nobody has counted them: the forward of these classes goes by the width of a head."""
    pruned = tiny(model_type)
    converted = tiny(model_type)
    precondition(converted, strict=True)
    call(converted)
    for model in (pruned, converted):
        for layer in model.encoder.layer:
            rows = prune(layer.attention.self, (0, 2, 3))
            output = layer.attention.output
            output.dense = prune_linear_layer(output.dense, rows, dim=1).double()
            if counted:
                layer.attention.self.num_attention_heads = 3
    plain = call(pruned)
    with NormalisedHeads():
        expected = call(pruned)
    assert (plain - expected).abs().max() > 0.01 * plain.abs().max(), "the comparison would be vacuous"
    torch.testing.assert_close(call(converted), expected)
    restore(converted)
    assert (call(converted) == plain).all()


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", MODULES)
def test_modules_are_those_of_the_outside_oracle(name):
    module, arguments = attention(name)
    if "levit" in name:
        module.train()  # in evaluation it keeps position biases, and with them a graph that is used up
    assert_conditioned(module, lambda module: first_tensor(module(*arguments)))


@pytest.mark.slow
def test_every_class_of_the_tables_is_one_of_transformers():
    for path in (*table._HOOKED, *table._SWAPPED, *table._REFUSED):
        module, _, name = path.rpartition(".")
        assert issubclass(getattr(importlib.import_module(module), name), nn.Module)


def nystromformer(landmarks, segment):
    return tiny("nystromformer", num_landmarks=landmarks, segment_means_seq_len=segment, conv_kernel_size=3).encoder


def nystrom_by_hand(attention, x, seen, landmarks, normalise):
    """Xiong et al. 2021 as its authors compute it: (B, N, H*D); ``seen`` (B, N) is 0 for padding.

    ``normalise`` makes heads of the attention weights, all N × N of them, and the values.
    """
    b, n, d = *x.shape[:2], 8
    q, k, v = (p(x).view(b, n, 4, d).transpose(1, 2) for p in (attention.query, attention.key, attention.value))
    shown = seen[:, None, :, None]
    hidden = (1 - seen)[:, None, None] * torch.finfo(x.dtype).min
    if landmarks == n:
        weights, convolved = (q @ k.mT / d**0.5 + hidden).softmax(-1), v
    else:
        q, k, convolved = q * shown / d**0.25, k * shown / d**0.25, v * shown
        of_q, of_k = (t.unflatten(2, (landmarks, -1)).mean(3) for t in (q, k))
        inverse = attention.iterative_inv((of_q @ of_k.mT).softmax(-1))
        weights = (q @ of_k.mT).softmax(-1) @ inverse @ (of_q @ k.mT + hidden).softmax(-1)
    return (normalise(weights, v) + attention.conv(convolved)).transpose(1, 2).flatten(2)


def as_they_are(weights, v):
    return weights @ v


def by_output(weights, v):
    return F.normalize(weights @ v, dim=-1)


def by_weights(weights, v):
    return F.normalize(weights, dim=-1) @ v


@pytest.mark.parametrize(("landmarks", "segment"), [(8, 8), (4, 8)])
@pytest.mark.parametrize("masked", [False, True])
def test_nystromformer_adds_its_convolution_to_scaled_rows(landmarks, segment, masked):
    attention = nystromformer(landmarks, segment).layer[0].attention.self
    x, seen = torch.randn(2, 8, 32, dtype=torch.float64), torch.ones(2, 8, dtype=torch.float64)
    if masked:
        seen[0, 5:] = 0
    mask = ((1 - seen) * torch.finfo(torch.float64).min)[:, None, None].expand(2, 1, 8, 8) if masked else None
    plain, expected = (
        nystrom_by_hand(attention, x, seen, landmarks, normalise) for normalise in (as_they_are, by_output)
    )
    if not masked or landmarks == segment:
        torch.testing.assert_close(attention(x, mask)[0], plain)
    else:
        with pytest.raises(RuntimeError, match="must match"):  # transformers' own forward takes no padding
            attention(x, mask)
    precondition(attention)
    result, weights = attention(x, mask, output_attentions=True)
    torch.testing.assert_close(result, expected)
    assert (result - plain).abs().max() > 0.01 * plain.abs().max()
    assert weights.shape[-1] == landmarks
    restore(attention)
    precondition(attention, rows="weights")
    torch.testing.assert_close(attention(x, mask)[0], nystrom_by_hand(attention, x, seen, landmarks, by_weights))


def test_nystromformer_refuses_what_its_landmarks_cannot_do():
    """transformers' own forward mixes the examples of a batch of half the length, without a word."""
    attention = nystromformer(4, 8).layer[0].attention.self
    short = torch.randn(2, 4, 32, dtype=torch.float64)
    plain = attention(short)[0]
    assert (attention(torch.cat([short[:1], -short[1:]]))[0] - plain)[0].abs().max() > 0
    precondition(attention)
    with pytest.raises(ValueError, match="exactly segment_means_seq_len=8 tokens, got 4"):
        attention(short)
    causal = torch.full((8, 8), -1e9, dtype=torch.float64).triu(1).expand(2, 1, 8, 8)
    with pytest.raises(ValueError, match="no mask but padding"):
        attention(torch.randn(2, 8, 32, dtype=torch.float64), causal)


@pytest.mark.parametrize("model_type", ["xlnet", "convbert"])
def test_rows_of_the_weights_of_a_swapped_class(model_type):
    model = tiny(model_type)
    plain = call(model)
    with NormalisedHeads("weights"):
        expected = call(model)
    assert (plain - expected).abs().max() > 0.01 * plain.abs().max(), "the comparison would be vacuous"
    precondition(model, rows="weights")
    torch.testing.assert_close(call(model), expected)


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("big_bird", {"attention_type": "block_sparse"}, "replaced by its model when a short input comes"),
        ("bloom", {"pretraining_tp": 2, "slow_but_exact": True}, "instead of calling it"),
        ("ibert", {}, "scale of quantisation"),
        ("yoso", {}, "does not compute softmax"),
        ("reformer", {}, "not in the table"),
    ],
)
def test_refused_with_the_reason(model_type, changes, reason):
    if model_type == "reformer":
        changes = {"axial_pos_embds": False, "feed_forward_size": 8, "attn_layers": ["local"]}
    with pytest.raises(ValueError, match=reason):
        precondition(tiny(model_type, **changes))


def test_a_subclass_of_a_known_class_is_refused():
    cls = type("Own", (type(tiny("roformer").encoder.layer[0].attention.self),), {})
    model = tiny("roformer")
    model.encoder.layer[0].attention.self.__class__ = cls
    with pytest.raises(ValueError, match="is a subclass of RoFormerSelfAttention"):
        precondition(model, strict=True)


# Flash attention and flex attention


def _attend(q, k, v, causal, window, scale):
    n, m = q.shape[-2], k.shape[-2]
    i, j = torch.arange(n)[:, None] + m - n, torch.arange(m)
    keep = (j <= i) if causal else torch.ones(n, m, dtype=torch.bool)
    keep = keep & (j >= i - window[0]) if window[0] >= 0 else keep
    return F.scaled_dot_product_attention(q, k, v, keep, scale=scale, enable_gqa=True)


@pytest.fixture
def flash(monkeypatch):
    """A package flash_attn_interface that computes on the CPU; the list of its calls."""
    calls = []

    def fixed(q, k, v, softmax_scale=None, causal=False, window_size=(-1, -1)):
        calls.append("fixed")
        return _attend(*(x.transpose(1, 2) for x in (q, k, v)), causal, window_size, softmax_scale).transpose(1, 2)

    def varying(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None, causal=False,
        window_size=(-1, -1),
    ):  # fmt: skip
        calls.append("varying")
        heads = []
        for a, b, c, d in zip(cu_seqlens_q, cu_seqlens_q[1:], cu_seqlens_k, cu_seqlens_k[1:]):
            parts = (x.transpose(0, 1) for x in (q[a:b], k[c:d], v[c:d]))
            heads.append(_attend(*parts, causal, window_size, softmax_scale).transpose(0, 1))
        return torch.cat(heads)

    package = ModuleType("flash_attn_interface")
    package.flash_attn_func, package.flash_attn_varlen_func, package.flash_attn_with_kvcache = fixed, varying, None
    monkeypatch.setitem(sys.modules, "flash_attn_interface", package)
    monkeypatch.setattr(transformers.modeling_flash_attention_utils, "_loaded_implementation", None)
    return calls


@pytest.mark.parametrize("name", ["llama", "bert", "vit"])
def test_over_flash_attention(name, flash):
    expected = build(name)
    precondition(expected)
    expected = output(expected)
    model = build(name)
    model.config._attn_implementation_internal = "flash_attention_3"  # the public way asks for a GPU
    plain = output(model)
    assert len(precondition(model, strict=True).converted) == 2
    assert model.config._attn_implementation == "conditioned_flash_attention_3"
    flash.clear()
    result = output(model)
    assert flash == 2 * (["fixed"] if name == "vit" else ["varying"])
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, 5:] = False
    kept = ... if name == "vit" else mask  # queries that are padding differ between the implementations
    torch.testing.assert_close(result[kept], expected[kept], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(result[kept], plain[kept], rtol=1e-2)
    restore(model)
    assert model.config._attn_implementation == "flash_attention_3"
    assert (output(model) == plain).all()
    with pytest.raises(ValueError, match="flash_attention_3 never builds the attention weights"):
        precondition(model, rows="weights")


def test_a_layer_left_out_over_flash_attention(flash):
    model = build("vit")
    precondition(model, exclude="*.0.*")
    expected = output(model)
    model = build("vit")
    model.config._attn_implementation_internal = "flash_attention_3"
    precondition(model, exclude="*.0.*")
    torch.testing.assert_close(output(model), expected, rtol=1e-4, atol=1e-5)


def test_over_flex_attention():
    expected = build("llama")
    precondition(expected)
    model = build("llama")
    model.set_attn_implementation("flex_attention")
    precondition(model, strict=True)
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        result = output(model)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, 5:] = False
    torch.testing.assert_close(result[mask], output(expected)[mask], rtol=1e-4, atol=1e-5)


# The guard before a module on the interface


def test_exports_with_the_guard():
    model = build("vit")
    precondition(model)
    x = {"pixel_values": torch.randn(2, 1, 8, 8)}
    exported = torch.export.export(model, (), x).module()
    torch.testing.assert_close(exported(**x)[0], model(**x)[0])


@pytest.mark.slow
def test_the_guard_raises_in_compiled_models_too():
    model = build("vit")
    precondition(model)
    compiled = torch.compile(model, backend="eager")
    output(model, pixel_values=torch.randn(2, 1, 8, 8))
    x = torch.randn(2, 1, 8, 8)
    compiled(x)
    model.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match="attention implementation has been changed to 'sdpa'"):
        compiled(x)


# Models as people use them


def test_cross_attention_of_an_encoder_and_decoder():
    torch.manual_seed(0)
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers"), 1) | {"d_model": 32, "max_source_positions": 8}
    heads = dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4)
    config = WhisperConfig(
        vocab_size=99, num_mel_bins=8, encoder_ffn_dim=64, decoder_ffn_dim=64, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1, **sizes, **heads,
    )  # fmt: skip
    model = WhisperModel(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    features, ids = torch.randn(2, 8, 16), tokens()
    report = assert_conditioned(model, lambda m: m(input_features=features, decoder_input_ids=ids)[0])
    assert [name.rpartition(".")[2] for name in report.converted] == ["self_attn", "self_attn", "encoder_attn"]
    assert precondition(model, include="*encoder_attn").converted == ["decoder.layers.0.encoder_attn"]


def llava():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": 8, "patch_size": 4, **sizes},
        text_config={"model_type": "llama", "vocab_size": 99, "num_key_value_heads": 2, **sizes},
        image_token_index=98,
        vision_feature_layer=-1,
        image_seq_length=4,
    )
    model = LlavaForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    return model


def test_a_model_of_vision_and_language_as_a_whole_and_in_part():
    ids = torch.cat([torch.full((2, 4), 98), tokens()], 1)
    x = {"input_ids": ids, "pixel_values": torch.randn(2, 3, 8, 8)}
    model = llava()
    report = assert_conditioned(model, lambda m: m(**x)[0])
    assert len(report.converted) == 4
    plain = model(**x)[0]
    precondition(model.model.language_model)
    both = {site.name for site in find_sites(model)}
    assert {name for entry in conditioning(model)["transforms"] for name in entry["modules"]} == {
        name for name in both if "language_model" in name
    }
    language = model(**x)[0]
    precondition(model)
    whole = model(**x)[0]
    assert not torch.allclose(language, plain, rtol=1e-2)
    assert not torch.allclose(language, whole, rtol=1e-2)
    restore(model.model.language_model)
    restore(model)
    assert (model(**x)[0] == plain).all()


def causal(model_type="llama", **changes):
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(tiny_config(model_type, **changes)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.5 / parameter[0].numel() ** 0.5)
    precondition(model, strict=True)
    return model


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("model_type", "cache"),
    [("llama", "dynamic"), ("llama", "static"), ("gemma2", "dynamic"), ("gemma2", "static"), ("gptj", "dynamic")],
)
def test_generation_with_a_cache_is_that_of_the_full_forward_pass(model_type, cache):
    model = causal(model_type)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    ids = model.generate(tokens(1), cache_implementation=cache, **options)
    assert (ids == model.generate(tokens(1), use_cache=False, **options)).all()


def test_beams_assistance_and_left_padding():
    model = causal()
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    one = tokens(1)
    alone = model.generate(one, **options)
    assert (model.generate(one, assistant_model=causal(num_hidden_layers=1), **options) == alone).all()
    beams = [model.generate(one, num_beams=3, use_cache=cache, **options) for cache in (True, False)]
    assert (beams[0] == beams[1]).all()
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), one], 1)
    batch = torch.cat([padded, torch.randint(3, 99, (1, 10))])
    mask = torch.ones_like(batch)
    mask[0, :3] = 0
    assert (model.generate(batch, attention_mask=mask, **options)[:1, 3:] == alone).all()


@pytest.mark.parametrize("model_type", ["bert", "roformer", "gemma2"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(model_type, reentrant):
    model = tiny(model_type)
    precondition(model)
    model.train()
    torch.manual_seed(0)
    expected = gradients(model, call(model))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    for name, gradient in gradients(model, call(model)).items():
        torch.testing.assert_close(gradient, expected[name])


def test_trainer(tmp_path):
    model = build("bert")
    precondition(model)
    rows = [{"input_ids": ids, "labels": ids} for ids in tokens(8)]
    before = {name: p.clone() for name, p in model.named_parameters()}
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to="none", use_cpu=True, disable_tqdm=True,
        save_strategy="no", learning_rate=0.01,
    )  # fmt: skip
    result = Trainer(model=model, args=arguments, train_dataset=rows).train()
    assert result.global_step == 2
    key = "bert.encoder.layer.0.attention.self.value.weight"
    assert not torch.equal(dict(model.named_parameters())[key], before[key])
    assert conditioning(model)["transforms"][0]["kind"] == RowNorm.kind


@pytest.mark.one_in(2)
@pytest.mark.parametrize("model_type", ["bert", "squeezebert", "convbert", "roformer", "nystromformer"])
def test_save_and_load(model_type, tmp_path):
    model = tiny(model_type)
    precondition(model)
    expected = call(model)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.float64).eval()
    with pytest.raises(RuntimeError, match="apply_conditioning"):  # as soon as it asks for attention or for masks
        call(loaded)
    apply_conditioning(loaded)
    torch.testing.assert_close(call(loaded), expected)


FAMILIES = {
    "interface": (
        "albert bart bert beit blenderbot camembert clip_vision_model deit dinov2 distilbert electra gemma gemma2 gpt2 "
        "gpt_neox llama marian mbart mistral mixtral modernbert mt5 olmo2 opt phi phi3 qwen2 qwen3 roberta clip swin "
        "t5 vit wav2vec2 whisper xlm-roberta sam2 sam3 edgetam"
    ),
    "hook": "bloom codegen deberta-v2 falcon gptj gpt_neo mpt mpnet rembert roformer swinv2 xglm",
    "class swap": "convbert nystromformer squeezebert xlnet",
}


@pytest.mark.one_in(8)
@pytest.mark.parametrize("model_type", [name for names in FAMILIES.values() for name in names.split()])
def test_families(model_type, monkeypatch):
    """From default configs, on the meta device."""
    monkeypatch.undo()  # a poisoned torch.empty is none that the meta device knows: models would be built in memory
    torch.utils._device._device_constructors.cache_clear()
    classes = attention_classes(model_type)
    expected = next(mechanism for mechanism, names in FAMILIES.items() if model_type in names.split())
    assert set(classes.values()) == {expected}, classes
    if f"transformers {transformers.__version__};" in PAGE.read_text():
        assert row(model_type, ways_of(classes)) in PAGE.read_text()
