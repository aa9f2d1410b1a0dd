"""Parts of converted Hugging Face checkpoints, and models that are put together from parts."""

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    BartConfig,
    BartForCausalLM,
    BartModel,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    CLIPTextModel,
    CLIPVisionModel,
    EncoderDecoderModel,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipConfig,
    SiglipModel,
    SiglipVisionModel,
    T5EncoderModel,
    WhisperConfig,
    WhisperForAudioClassification,
    WhisperModel,
)

from conditioned_attention import apply_conditioning, conditioning, precondition, restore
from tests import models
from tests.models import build, output

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TEXT, IMAGE = {**SIZES, "vocab_size": 99}, {**SIZES, "image_size": 8, "patch_size": 4}


def widened(model):
    """With weights large enough that conditioning shows."""
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.5 / parameter[0].numel() ** 0.5)
    return model.eval()


def clip():
    return build("clip")


def siglip():
    return widened(SiglipModel(SiglipConfig(text_config={**TEXT, "projection_size": 32}, vision_config=IMAGE)))


def llava():
    config = LlavaConfig(
        text_config={**TEXT, "model_type": "llama"},
        vision_config={**IMAGE, "model_type": "clip_vision_model"},
        image_token_index=98,
    )
    return widened(LlavaForConditionalGeneration(config))


def last(model, **kwargs):
    result = model(**kwargs)
    return result.logits if "logits" in result else result.last_hidden_state


PIXELS, TOKENS = {"pixel_values": models.images(3)}, {"input_ids": models.tokens()}
EMBEDDED = {"inputs_embeds": models.vectors(2, 7, 32)}

TOWERS = {
    "CLIPVisionModel": (clip, CLIPVisionModel, lambda whole: whole.vision_model, PIXELS),
    "CLIPTextModel": (clip, CLIPTextModel, lambda whole: whole.text_model, TOKENS),
    "SiglipVisionModel": (siglip, SiglipVisionModel, lambda whole: whole.vision_model, PIXELS),
    "the vision tower of LLaVA": (llava, CLIPVisionModel, lambda whole: whole.model.vision_tower, PIXELS),
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_of_a_checkpoint(name, tmp_path):
    """transformers builds it from a dictionary inside of config.json: that has to say what was done to it."""
    make, cls, of, inputs = TOWERS[name]
    whole = make()
    plain = last(of(whole), **inputs)
    precondition(whole, eps=1e-4)
    whole.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path).eval()
    with pytest.raises(RuntimeError, match="apply_conditioning"):
        last(loaded, **inputs)
    apply_conditioning(loaded)
    loaded.load_state_dict(of(whole).state_dict())  # transformers does not find those of LLaVA's tower
    expected = last(of(whole), **inputs)
    assert torch.equal(last(loaded, **inputs), expected)
    assert not torch.allclose(expected, plain, rtol=1e-3)
    assert conditioning(loaded)["transforms"][0]["eps"] == 1e-4


def test_the_language_model_of_a_checkpoint(tmp_path):
    """Another class than the whole has inside, whose names begin otherwise."""
    whole = llava()
    precondition(whole)
    whole.save_pretrained(tmp_path)
    record = whole.config.text_config.conditioned_attention
    assert record["transforms"][0]["modules"] == ["layers.0.self_attn", "layers.1.self_attn"]
    language = LlamaForCausalLM(type(whole.config.text_config).from_pretrained(tmp_path)).eval()
    with pytest.raises(RuntimeError, match="apply_conditioning"):
        language(**TOKENS)
    apply_conditioning(language)
    language.model.load_state_dict(whole.model.language_model.state_dict())
    expected = whole.model.language_model(**TOKENS).last_hidden_state
    assert torch.equal(language.model(**TOKENS).last_hidden_state, expected)


def test_a_tower_that_was_left_plain_stays_plain(tmp_path):
    whole = clip()
    precondition(whole, include="text_model.*")
    whole.save_pretrained(tmp_path)
    vision = CLIPVisionModel.from_pretrained(tmp_path).eval()
    assert torch.equal(last(vision, **PIXELS), last(whole.vision_model, **PIXELS))
    assert "conditioned_attention" not in vars(vision.config)
    loaded = type(whole).from_pretrained(tmp_path).eval()
    apply_conditioning(loaded)
    assert torch.equal(output(loaded), output(whole))


def test_a_part_that_is_saved_out_of_the_whole(tmp_path):
    whole = clip()
    precondition(whole)
    whole.vision_model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    apply_conditioning(loaded)
    assert torch.equal(last(loaded, **PIXELS), last(whole.vision_model, **PIXELS))


def test_a_part_that_was_converted_by_itself_says_so_when_the_whole_is_saved(tmp_path):
    whole = clip()
    precondition(whole.vision_model)
    with pytest.warns(UserWarning, match="vision_model was converted on its own"):
        whole.save_pretrained(tmp_path)
    loaded = type(whole).from_pretrained(tmp_path).eval()
    apply_conditioning(loaded)
    assert torch.equal(output(loaded), output(whole))
    assert len(conditioning(loaded)["transforms"][0]["modules"]) == 2


def test_restore_takes_the_records_of_all_parts():
    whole = clip()
    precondition(whole)
    configs = (whole.config, whole.config.text_config, whole.config.vision_config)
    assert all("conditioned_attention" in vars(config) for config in configs)
    restore(whole)
    assert not any({"conditioned_attention", "attn_implementation"} & {*vars(config)} for config in configs)


def whisper():
    sizes = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    layers = {"encoder_layers": 1, "decoder_layers": 1, "num_mel_bins": 8, "max_source_positions": 10}
    tokens = {"vocab_size": 99, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    return widened(WhisperModel(WhisperConfig(d_model=32, **sizes, **layers, **tokens)))


def bart():
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    return widened(BartModel(BartConfig(vocab_size=99, d_model=32, encoder_layers=1, decoder_layers=1, **heads)))


HALVES = {
    "encoder of T5": (lambda: build("t5"), T5EncoderModel, {}, lambda m: m.encoder, lambda m: m.encoder, TOKENS),
    "decoder of BART": (bart, BartForCausalLM, {}, lambda m: m.decoder, lambda m: m.model.decoder, EMBEDDED),
    "encoder of Whisper": (
        whisper,
        WhisperForAudioClassification,
        {},
        lambda m: m.encoder,
        lambda m: m.encoder,
        {"input_features": models.vectors(2, 8, 20)},
    ),
    "fewer layers": (
        lambda: build("llama"),
        LlamaForCausalLM,
        {"num_hidden_layers": 1},
        lambda m: m.model.layers[0].self_attn.q_proj,
        lambda m: m.model.layers[0].self_attn.q_proj,
        None,
    ),
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", HALVES)
def test_a_part_with_the_config_of_the_whole(name, tmp_path):
    """The record speaks of more than there is: an error that says what works, and that works."""
    make, cls, options, of_whole, of_part, inputs = HALVES[name]
    whole = make()
    precondition(whole)
    whole.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path, **options).eval()
    with pytest.raises(ValueError, match=r"apply_conditioning\(model, partial=True\) passes by what is missing"):
        apply_conditioning(loaded)
    with pytest.raises(ValueError, match=r"call apply_conditioning\(model\) to go on"):
        precondition(loaded)
    apply_conditioning(loaded, partial=True)
    if inputs is not None:
        assert torch.equal(last(of_part(loaded), **inputs), last(of_whole(whole), **inputs))
    names = conditioning(loaded)["transforms"][0]["modules"]
    assert 0 < len(names) < len(conditioning(whole)["transforms"][0]["modules"])
    loaded.save_pretrained(tmp_path / "part")
    apply_conditioning(cls.from_pretrained(tmp_path / "part"))


def test_partial_has_to_have_something():
    with pytest.raises(ValueError, match=r"no attention module 'bert\.encoder"):
        apply_conditioning(build("llama"), conditioning(precondition(m := build("bert")) and m), partial=True)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("which", ["encoder", "decoder", "both"])
def test_an_encoder_decoder_model_of_converted_parts(which, tmp_path):
    """Its attention keeps another config object than the model around it shows."""
    sizes = {**SIZES, "vocab_size": 99}
    encoder, decoder = (
        BertModel(BertConfig(**sizes)),
        BertLMHeadModel(BertConfig(**sizes, is_decoder=True, add_cross_attention=True)),
    )
    for name, part in (("encoder", encoder), ("decoder", decoder)):
        widened(part)
        if which in (name, "both"):
            precondition(part)
        part.save_pretrained(tmp_path / name)

    def build_whole():
        paths = (tmp_path / "encoder", tmp_path / "decoder")
        return EncoderDecoderModel.from_encoder_decoder_pretrained(*map(str, paths)).eval()

    whole, calls = build_whole(), {**TOKENS, "decoder_input_ids": models.tokens()}
    with pytest.raises(RuntimeError, match="apply_conditioning"):
        whole(**calls)
    apply_conditioning(whole)
    hidden = encoder(**TOKENS).last_hidden_state
    expected = decoder(input_ids=calls["decoder_input_ids"], encoder_hidden_states=hidden).logits
    assert torch.equal(whole(**calls).logits, expected)

    whole.save_pretrained(tmp_path / "whole")
    loaded = EncoderDecoderModel.from_pretrained(tmp_path / "whole").eval()
    apply_conditioning(loaded)
    assert torch.equal(loaded(**calls).logits, expected)
    plain = build_whole()
    restore(plain)
    restore(whole)
    assert torch.equal(plain(**calls).logits, whole(**calls).logits)
