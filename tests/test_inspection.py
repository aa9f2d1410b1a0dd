"""`inspect`: what a model's attention is, what conversion would do, and the condition numbers."""

import json
import math
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import matplotlib.image as plt
import numpy as np
import pytest
import safetensors.torch
import sklearn.datasets
import torch
import torch.nn.functional as F
from PIL import Image
from timm.layers import Attention, AttentionPoolLatent
from timm.models import VisionTransformer
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    ClapConfig,
    ClapModel,
    SpeechEncoderDecoderModel,
    ViTImageProcessor,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperModel,
)

from conditioned_attention import (
    ConditionMonitor,
    calibrate,
    conditioning,
    precondition,
    restore,
    spectral_condition,
)
from conditioned_attention.conversion import convert
from conditioned_attention.inspection import inspect_model, load_input, load_model, synthetic_input
from conditioned_attention.inspection.heads import change_in_words, worst_heads
from conditioned_attention.inspection.logits import strongest_self_logit
from conditioned_attention.inspection.pictures import plot_inspection
from conditioned_attention.inspection.start import advice, losses_at_start
from conditioned_attention.preconditioner import RowNorm
from conditioned_attention.sites import find_projections, find_sites
from tests.experiments.decoders import write_decoder, write_text
from tests.experiments.pictures import photograph
from tests.models import MODELS, build, images, inputs, output
from tests.test_cli import call


class UnknownAttention(nn.Linear):
    """Its name is all that says what it is."""


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", MODELS)
def test_numbers_are_the_monitors_and_the_model_is_left_alone(name):
    model = build(name)
    before = output(model)
    inspection = inspect_model(model, inputs(model))
    assert len(inspection.rows) == MODELS[name][1]
    assert inspection.complete
    assert all(row.heads == 4 for row in inspection.rows)
    kappas = {}
    for record in ConditionMonitor(model, inputs(model)).measure(0):
        kappas.setdefault(record.module, []).append(record.kappa_before)
    for row in inspection.rows:
        assert row.kappa == np.median(kappas[row.name])
        assert row.conversion == "converts"
    assert (output(model) == before).all()
    assert conditioning(model)["transforms"] == []


def test_what_was_done_already_and_what_cannot_be():
    model = nn.ModuleDict({"a": build("timm_vit"), "b": UnknownAttention(4, 4)})
    precondition(model, include="a.blocks.0.*")
    inspection = inspect_model(model)
    assert [row.conversion for row in inspection.rows] == ["already conditioned", "converts", "refused"]
    assert "register_attention" in inspection.rows[2].reason
    assert not inspection.complete
    assert inspection.not_measured == "there was nothing to run the model on (--input)"
    assert inspection.to_json()["modules"][1]["kappa"] is None


def test_attention_that_pools():
    inspection = inspect_model(
        nn.Sequential(Attention(32, 4), AttentionPoolLatent(32, num_heads=4)), torch.randn(2, 5, 32)
    )
    assert [row.conversion for row in inspection.rows] == ["converts", "on request"]
    assert "only if include names it" in inspection.rows[1].reason
    assert inspection.rows[1].kappa == 1.0, "one row"
    assert inspection.complete


def test_no_attention_and_an_input_that_does_not_fit():
    assert not inspect_model(nn.Linear(2, 2)).complete
    inspection = inspect_model(build("timm_vit"), torch.randn(1, 3, 8, 8))
    assert inspection.not_measured.startswith("the model does not run on this input: RuntimeError: ")
    assert inspection.complete
    with pytest.raises(TypeError, match="model must be"):
        inspect_model({})


def whisper():
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    return WhisperModel(WhisperConfig(d_model=32, vocab_size=99, pad_token_id=0, max_source_positions=20, **sizes))


def wav2vec2():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    return Wav2Vec2Model(Wav2Vec2Config(conv_dim=(8,) * 7, num_conv_pos_embedding_groups=4, **sizes)).eval()


def speech_to_text():
    """An encoder and a decoder put together."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    return SpeechEncoderDecoderModel(
        encoder=wav2vec2(),
        decoder=BertLMHeadModel(BertConfig(is_decoder=True, add_cross_attention=True, vocab_size=99, **sizes)),
    ).eval()


def test_sound_of_a_form_that_no_config_tells():
    with torch.device("meta"):
        model = ClapModel(ClapConfig())
    assert "input_features" not in synthetic_input(model)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "build_model", [*(lambda n=n: build(n) for n in MODELS if "torch" not in n), whisper, wav2vec2, speech_to_text]
)
def test_synthetic_inputs_run(build_model):
    model = build_model()
    if not hasattr(model, "config"):  # a timm model that was not built by its name
        model.pretrained_cfg = {"input_size": (1, 8, 8)}
    probe = synthetic_input(model)
    inspection = inspect_model(model, probe)
    assert inspection.not_measured == ""
    assert all(row.kappa is not None for row in inspection.rows)
    again = synthetic_input(model)
    pairs = [(probe, again)] if isinstance(probe, torch.Tensor) else [(probe[key], again[key]) for key in probe]
    assert all((a == b).all() for a, b in pairs)


def test_inputs_from_files(tmp_path):
    x = torch.randn(2, 3)
    torch.save({"x": x}, tmp_path / "x.pt")
    safetensors.torch.save_file({"x": x}, tmp_path / "x.safetensors")
    np.savez(tmp_path / "x.npz", x=x.numpy())
    for name in ("x.pt", "x.safetensors", "x.npz"):
        assert (load_input(tmp_path / name)["x"] == x).all()
    np.save(tmp_path / "x.npy", x.numpy())
    assert (load_input(tmp_path / "x.npy") == x).all()
    with pytest.raises(ValueError, match=r"inputs come as \.pt, "):
        load_input(tmp_path / "x.csv")
    torch.save("text", tmp_path / "text.pt")
    with pytest.raises(ValueError, match="holds a str; inputs are a tensor"):
        load_input(tmp_path / "text.pt")


def test_models_by_name(tmp_path):
    assert type(load_model("vit_tiny_patch16_224", weights=False)).__name__ == "VisionTransformer"
    one, two = (load_model("test_vit").patch_embed.proj.weight for _ in range(2))
    assert torch.equal(one, two), "random weights, but always the same"
    with pytest.raises(
        ValueError, match=r"neither a timm model nor an existing folder or file; did you mean .*vit_tiny"
    ):
        load_model("vit_tiny_patch16")
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        load_model(str(tmp_path))
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "state.pt")
    with pytest.raises(ValueError, match="pass --unpickle if you trust the file"):
        load_model(str(tmp_path / "state.pt"))
    with pytest.raises(ValueError, match="holds a OrderedDict and not a module"):
        load_model(str(tmp_path / "state.pt"), unpickle=True)
    (tmp_path / "junk.pt").write_text("junk")
    with pytest.raises(ValueError, match="cannot be loaded: UnpicklingError"):
        load_model(str(tmp_path / "junk.pt"), unpickle=True)


def test_a_folder_without_weights(tmp_path):
    BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4).save_pretrained(tmp_path)
    model = load_model(str(tmp_path), weights=False)
    assert next(model.parameters()).is_meta
    assert inspect_model(model).complete


def test_command(tmp_path, capsys):
    model = build("bert")
    precondition(model, include="*.0.*")
    model.save_pretrained(tmp_path / "bert")
    assert call("inspect", str(tmp_path / "bert")) == 0
    out = capsys.readouterr().out
    assert "1 would be converted, 1 already conditioned" in out
    assert "bert.encoder.layer.1.attention.self" in out
    assert f"weights: the weights in {tmp_path / 'bert'}" in out.replace("\n", "")

    assert call("inspect", str(tmp_path / "bert"), "--json") == 0
    data = json.loads(capsys.readouterr().out)
    expected = inspect_model(load_model(str(tmp_path / "bert")), synthetic_input(model))
    assert data["modules"][0]["kappa"] == pytest.approx(expected.rows[0].kappa)
    assert math.isfinite(data["modules"][0]["kappa"])

    module = nn.ModuleList([nn.TransformerEncoderLayer(32, 4, 64), UnknownAttention(4, 4)])
    torch.save(module, tmp_path / "module.pt")
    assert call("inspect", str(tmp_path / "module.pt"), "--unpickle") == 1
    assert "is not in the table" in capsys.readouterr().out
    assert call("inspect", "vit_tiny_patch16_224", "--structure", "--input", "x.pt") == 2
    assert "takes no --input" in capsys.readouterr().err
    assert call("inspect", str(tmp_path / "nothing")) == 2
    assert "is neither a timm model nor an existing folder or file" in capsys.readouterr().err


@contextmanager
def head_logits(seen):
    """What attention multiplies with the softmax of, (B, H, N, M)."""

    def attention(query, key, value, *args, **kwargs):
        seen.append(query @ key.mT / query.shape[-1] ** 0.5)
        return original(query, key, value, *args, **kwargs)

    original = F.scaled_dot_product_attention
    with patch.object(F, "scaled_dot_product_attention", attention):
        yield


@pytest.mark.parametrize("name", ["timm_vit", "bert", "gpt2", "torch_encoder"])
def test_the_logit_that_lambda_adds_is_the_one_that_it_adds(name):
    """Against attention with W_Q = W_K = 0, where λ I is all there is: the mean logit of a token with itself."""
    model = build(name)
    sites = [site for site in find_sites(model) if site.attention]
    with torch.no_grad():
        for site in sites:
            for projection in find_projections(site.module).weights:
                getattr(projection.owner(site.module), projection.parameter).zero_()
                if (bias := getattr(projection.owner(site.module), "bias", None)) is not None:
                    bias.zero_()
    found = strongest_self_logit(model, inputs(model))
    assert found.width == 8
    seen = []
    with head_logits(seen), spectral_condition(model, 1.0):
        output(model)
    expected = max(logits.diagonal(dim1=-2, dim2=-1).mean().item() for logits in seen)
    assert found.at(1.0) == pytest.approx(expected, rel=1e-4)


def test_logits_that_a_norm_bounds():
    model = VisionTransformer(img_size=8, patch_size=2, in_chans=1, embed_dim=32, depth=1, num_heads=4, qk_norm=True)
    found = inspect_model(model, torch.randn(2, 1, 8, 8)).self_logit
    assert found.bounded
    assert found.at(10.0) == 0.0
    assert "bounds the logits" in found.sentence()


def test_projections_with_and_without_c():
    model = build("timm_vit")
    assert inspect_model(model).projections == ()
    inspection = inspect_model(model, spectral=10.0)
    weight = model.blocks[1].attn.qkv.weight.detach().double()[32:64]
    expected = np.linalg.svd(weight.numpy(), compute_uv=False), np.linalg.svd((weight + 10 * torch.eye(32)).numpy())[1]
    record = inspection.projections[4]
    assert (record.module, record.role, record.shape) == ("blocks.1.attn", "key", (32, 32))
    assert (record.kappa, record.smallest) == pytest.approx((expected[0][0] / expected[0][-1], expected[0][-1]))
    assert record.kappa_corrected == pytest.approx(expected[1][0] / expected[1][-1])
    assert conditioning(model)["transforms"] == [], "nothing stays"
    spectral_condition(model, 0.5)
    assert inspect_model(model, spectral="auto").strength is None, "it is corrected already, with another λ"
    with pytest.raises(ValueError, match="strength must be positive"):
        inspect_model(build("timm_vit"), spectral=-1.0)


def test_the_command_says_what_lambda_does(capsys):
    assert call("inspect", "vit_tiny_patch16_224", "--spectral", "auto") == 0
    said = capsys.readouterr().out
    assert "weights: fresh random weights, as timm starts this model" in said
    assert "λ = 10, as published, adds 8" in said.replace("\n", " ")
    assert "σ_min(W + C)" in said


def tiny_bert(folder):
    """A BERT with a tokenizer, as it would be on a disk."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["[UNK]", "[CLS]", "[SEP]", "the", "row", "norm", "of", "a", "head"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    model = build("bert")
    model.save_pretrained(folder)
    return model


def test_text_comes_in_windows_without_padding(tmp_path):
    model = tiny_bert(tmp_path / "bert")
    length = model.config.max_position_embeddings
    window = min(length, 128)
    (tmp_path / "text.txt").write_text("the row norm of a head " * 200)
    ids = load_input(tmp_path / "text.txt", model, str(tmp_path / "bert"))["input_ids"]
    assert ids.shape == (4, window)
    assert (ids[:, 0] == 1).all()
    assert (ids[:, -1] == 2).all()
    assert ids[0, 1:7].tolist() == [3, 4, 5, 6, 7, 8]
    assert ids[1, 1] == 3 + (window - 2) % 6, "the text goes on in the next window"
    (tmp_path / "short.txt").write_text("a row")
    assert load_input(tmp_path / "short.txt", model, str(tmp_path / "bert"))["input_ids"].tolist() == [[1, 7, 4, 2]]
    with pytest.raises(ValueError, match="is text, for a Hugging Face folder with its tokenizer; 'vit_tiny' is none"):
        load_input(tmp_path / "text.txt", model, "vit_tiny")


def test_pictures_are_prepared_as_the_model_wants_them(tmp_path):
    photographs = Path(sklearn.datasets.__file__).parent / "images"
    model = load_model("vit_tiny_patch16_224")
    batch = load_input(photographs, model, "vit_tiny_patch16_224")
    assert batch.shape == (2, 3, 224, 224)
    assert (batch[0] == load_input(photographs / "china.jpg", model, "vit_tiny_patch16_224")[0]).all()
    assert batch.min() >= -1, "by timm's mean and deviation for this model, one half"
    assert batch.max() <= 1
    assert batch.std() > 0.2
    with pytest.raises(ValueError, match="holds no pictures"):
        load_input(tmp_path, model, "vit_tiny_patch16_224")
    with pytest.raises(ValueError, match="is pictures, for a timm model or a Hugging Face folder; 'x' is neither"):
        load_input(photographs, nn.Linear(2, 2), "x")


def test_pictures_are_read_as_training_reads_them(tmp_path):
    """16 bits, and the files beside the pictures that Macs leave: one reader for both."""
    name = "vit_tiny_patch16_224"
    model = load_model(name)
    grey = photograph().resize((224, 224)).convert("L")
    grey.save(tmp_path / "a8.png")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(tmp_path / "b16.png")
    (tmp_path / "._a8.png").write_bytes(b"a Mac was here")
    eight, sixteen = load_input(tmp_path, model, name)
    assert (eight == sixteen).all()
    assert eight.std() > 0.2
    ViTImageProcessor().save_pretrained(tmp_path / "vit")
    eight, sixteen = load_input(tmp_path, model, str(tmp_path / "vit"))["pixel_values"]
    assert (eight == sixteen).all()
    photograph().save(tmp_path / "c.tiff")
    (tmp_path / "a0.png").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=r"left out: .*a0\.png \(UnidentifiedImageError"):
        assert len(load_input(tmp_path, model, name)) == 3
    with pytest.raises(ValueError, match=r"no picture can be read: .*a0\.png \(Unidentified"):
        load_input(tmp_path / "a0.png", model, name)


def test_heads_and_what_lambda_changes_in_them():
    model = build("timm_vit")
    inspection = inspect_model(model, images(), spectral=0.5)
    assert inspection.heads == tuple(ConditionMonitor(model, images(), samples=None).measure(0))
    with spectral_condition(model, 0.5):
        corrected = ConditionMonitor(model, images(), samples=None).measure(0)
    assert inspection.heads_corrected == tuple(corrected)
    worst = worst_heads(inspection.heads, 3)
    assert [r.kappa_before for r in worst] == sorted((r.kappa_before for r in inspection.heads), reverse=True)[:3]
    falls = sum(r.kappa_after < r.kappa_before * 10**-0.1 for r in inspection.heads)
    assert f"in {falls} of 8 heads" in change_in_words("C", inspection.heads, lambda r: r.kappa_after)
    assert len(inspection.to_json()["heads_corrected"]) == 8


def test_heads_that_are_not_finite_are_left_out():
    """Wherever they stand among the others; and what is left is JSON."""
    model = build("timm_vit")
    model.blocks[0].attn.qkv.bias.data[72:80] = math.nan  # values of the second head
    inspection = inspect_model(model, images())
    heads, row = inspection.heads, inspection.rows[0]
    assert math.isnan(heads[1].kappa_before)
    assert row.kappa == sorted(heads[i].kappa_before for i in (0, 2, 3))[1]
    assert row.largest_scale == max(heads[i].largest_scale for i in (0, 2, 3))
    assert math.isnan(inspection.rows[1].kappa), "no head of it is finite"
    assert inspection.self_logit.module == "blocks.0.attn"
    json.dumps(inspection.to_json(), allow_nan=False)
    json.dumps(inspect_model(model, images() * math.nan).to_json(), allow_nan=False)


def test_the_command_names_the_worst_heads(tmp_path, capsys):
    tiny_bert(tmp_path / "bert")
    (tmp_path / "text.txt").write_text("the row norm of a head and what becomes of it " * 20)
    assert call("inspect", str(tmp_path / "bert"), "--input", str(tmp_path / "text.txt"), "--spectral", "0.5") == 0
    said = capsys.readouterr().out
    model = load_model(str(tmp_path / "bert"))
    probe = load_input(tmp_path / "text.txt", model, str(tmp_path / "bert"))
    worst = worst_heads(inspect_model(model, probe).heads, 8)
    names = [line.split("│")[1].strip() for line in said.splitlines() if ", head " in line]
    assert names == [f"{record.module}, head {record.head}" for record in worst]
    assert "with λ I" in said
    assert "C: log10 κ falls by more than 0.1 in " in said
    assert "λ I, λ = 0.5: log10 κ falls" in said
    assert call("inspect", str(tmp_path / "bert"), "--input", str(tmp_path / "nothing.txt")) == 2
    assert "there is no such file" in capsys.readouterr().err


@pytest.mark.slow
def test_the_picture_shows_the_numbers(tmp_path, capsys):
    model = build("timm_vit")
    inspection = inspect_model(model, images(), spectral=0.5)
    axes = plot_inspection(inspection)
    assert [ax.get_title() for ax in axes] == ["as it is", "with C", "with λ I, λ = 0.5"]
    shown = [ax.images[0].get_array()[record.layer, record.head] for ax in axes[:1] for record in inspection.heads]
    assert shown == pytest.approx([math.log10(record.kappa_before) for record in inspection.heads])
    record = inspection.heads_corrected[6]
    assert axes[2].images[0].get_array()[1, 2] == pytest.approx(math.log10(record.kappa_before))
    assert plot_inspection(inspect_model(precondition_of(model), images()))[0].get_title() == "before C"
    with pytest.raises(ValueError, match="there are no condition numbers to draw: there was nothing to run"):
        plot_inspection(inspect_model(build("timm_vit")))
    tiny_bert(tmp_path / "bert")
    arguments = ["inspect", str(tmp_path / "bert"), "--picture", str(tmp_path / "deep" / "heads.png")]
    assert call(*arguments, "--dark") == 0
    image = plt.imread(tmp_path / "deep" / "heads.png")[..., :3]
    assert image[0, 0].max() < 0.2, "dark ground"
    assert call(*arguments) == 0
    assert plt.imread(tmp_path / "deep" / "heads.png")[0, 0].min() > 0.9
    assert call("inspect", str(tmp_path / "bert"), "--picture", str(tmp_path / "heads.jpg")) == 2
    assert "--picture must end in .png, .svg or .pdf" in capsys.readouterr().err


def precondition_of(model):
    precondition(model)
    return model


class Unknown(torch.nn.Module):
    def forward(self, hidden_states, **kwargs):
        return hidden_states, None


def test_what_a_conversion_alone_does_to_a_decoder(tmp_path, capsys):
    """As it is measured by hand; the model stays what it was, and others have no such numbers."""
    folder, text = write_decoder(tmp_path / "llama", context=256), write_text(tmp_path / "text.txt")
    assert call("inspect", str(folder), "--input", str(text), "--json") == 0
    found = json.loads(capsys.readouterr().out)["losses_at_start"]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    windows = load_input(text, model, str(folder))["input_ids"]
    before = {name: weight.clone() for name, weight in model.state_dict().items()}

    @torch.no_grad()
    def loss():
        return F.cross_entropy(model(windows[2:, :-1]).logits.flatten(0, 1), windows[2:, 1:].flatten()).item()

    expected = {"plain": loss()}
    with spectral_condition(model):
        expected["λ I"] = loss()
    convert(model, RowNorm())
    expected["C"] = loss()
    calibration = calibrate(model, windows[:2])
    expected["C, calibrated"] = loss()
    assert found == pytest.approx(expected, rel=1e-5)
    assert len({round(value, 2) for value in expected.values()}) > 2
    calibration.undo()
    restore(model)
    assert losses_at_start(model, windows) == pytest.approx(found, rel=1e-5)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, before[name], rtol=1e-6, atol=0)
    assert losses_at_start(build("bert"), windows % 99) is None
    assert losses_at_start(model, windows[:1]) is None
    call("inspect", str(folder), "--input", str(text))
    said = capsys.readouterr().out
    assert f"in nats a token: plain {expected['plain']:.2f}, C {expected['C']:.2f}, C, calibrated" in said
    assert f"compare fine_tune --pretrained {folder}" in " ".join(said.split())
    precondition(model)
    assert advice(inspect_model(model), "x", None) == []
    restore(model)
    model.model.norm.weight.data.fill_(math.nan)
    model.save_pretrained(folder)
    call("inspect", str(folder), "--input", str(text), "--json")
    assert json.loads(capsys.readouterr().out)["losses_at_start"]["plain"] is None, "JSON has no NaN"
    for layer in model.model.layers:  # nobody knows it
        layer.self_attn = Unknown()
    with pytest.warns(UserWarning, match="is not shown: nothing to convert in LlamaForCausalLM"):
        assert losses_at_start(model, windows) is None
    call("inspect", "vit_tiny_patch16_224", "--structure")
    assert "trained without C" not in capsys.readouterr().out
