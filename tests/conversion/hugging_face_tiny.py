"""Tiny models of transformers by their model type, with random weights, and what to call them with."""

import importlib
from types import SimpleNamespace

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModel

_SMALL = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim", "emb_dim", "embedding_size", "d_inner"), 32),
    **dict.fromkeys(("num_layers", "num_hidden_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_encoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "n_inner"), 64),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"), 0.0),
    **dict.fromkeys(("activation_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout"), 0.0),
    **dict.fromkeys(("dropout_rate", "layerdrop", "drop_path_rate", "encoder_layerdrop", "decoder_layerdrop"), 0.0),
    **{"vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 1},
    **{"image_size": 32, "patch_size": 8, "num_channels": 3},
}

_STAGES = {"hidden_sizes": [16, 32], "depths": [1, 1], "num_attention_heads": [2, 4], "patch_size": 4}
_WINDOWS = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4, "patch_size": 4}

# model type -> what its config needs beside `_SMALL`
CASES = {
    # on the interface
    "bert": {},
    "llama": {"num_key_value_heads": 2},
    "gpt2": {},
    "t5": {"d_kv": 8},
    "bart": {},
    "vit": {},
    "swin": _WINDOWS,
    # classes of their own
    "roformer": {"embedding_size": 32},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
    "megatron-bert": {},
    "mpnet": {},
    "convbert": {"head_ratio": 2},
    "squeezebert": {},
    "tapas": {},
    "canine": {"local_transformer_stride": 4, "downsampling_rate": 2, "num_hash_buckets": 64},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": True},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8},
    "big_bird": {"block_size": 1, "num_random_blocks": 1, "attention_type": "original_full"},
    "longformer": {"attention_window": [4, 4]},
    "led": {"attention_window": [4, 4]},
    "longt5": {"d_kv": 8, "local_radius": 3, "encoder_attention_type": "local"},
    "pegasus_x": {"block_size": 4, "num_global_tokens": 2, "stagger_local_blocks": False},
    "nystromformer": {"num_landmarks": 4, "segment_means_seq_len": 4, "conv_kernel_size": 3},
    "xlnet": {},
    "funnel": {"d_head": 8, "block_sizes": [1, 1], "num_decoder_layers": 1, "num_hidden_layers": None},
    "xlm": {},
    "flaubert": {},
    "luke": {"entity_vocab_size": 9, "entity_emb_size": 16},
    "lilt": {"channel_shrink_ratio": 2, "hidden_size": 48},
    "visual_bert": {},
    "openai-gpt": {},
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "gpt_neox_japanese": {},
    "codegen": {"rotary_dim": 4},
    "bloom": {},
    "falcon": {"alibi": False},
    "mpt": {"max_seq_len": 64},
    "xglm": {},
    "imagegpt": {},
    "prophetnet": {"num_hidden_layers": None},
    "fsmt": {"langs": ["a", "b"], "src_vocab_size": 99, "tgt_vocab_size": 99, "tie_word_embeddings": False},
    "mvp": {},
    "swinv2": _WINDOWS,
    "donut-swin": _WINDOWS,
    "swin2sr": {**_WINDOWS, "patch_size": 1, "image_size": 8},
    "maskformer-swin": _WINDOWS,
    "hiera": {
        "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "image_size": [32, 32], "patch_size": [3, 3],
        "patch_stride": [4, 4], "patch_padding": [1, 1], "query_stride": [2, 2], "num_query_pool": 1,
        "masked_unit_size": [4, 4], "embed_dim_multiplier": 2.0, "masked_unit_attention": [True, False],
    },
    "pvt": {
        "hidden_sizes": [16, 32], "depths": [1, 1], "num_attention_heads": [2, 4], "patch_sizes": [4, 2],
        "strides": [4, 2], "sequence_reduction_ratios": [2, 1], "mlp_ratios": [2, 2], "num_encoder_blocks": 2,
    },
    "pvt_v2": {
        "hidden_sizes": [16, 32], "depths": [1, 1], "num_attention_heads": [2, 4], "patch_sizes": [7, 3],
        "strides": [4, 2], "sr_ratios": [2, 1], "mlp_ratios": [2, 2], "num_encoder_blocks": 2,
    },
    "glpn": {
        "hidden_sizes": [16, 32], "depths": [1, 1], "num_attention_heads": [2, 4], "patch_sizes": [7, 3],
        "strides": [4, 2], "sr_ratios": [2, 1], "mlp_ratios": [2, 2], "num_encoder_blocks": 2,
    },
    "cvt": {
        "patch_sizes": [7, 3], "patch_stride": [4, 2], "patch_padding": [2, 1], "embed_dim": [16, 32],
        "num_heads": [2, 4], "depth": [1, 2], "mlp_ratio": [2.0, 2.0], "cls_token": [False, True],
        "qkv_projection_method": ["dw_bn", "dw_bn"], "kernel_qkv": [3, 3], "padding_kv": [1, 1], "stride_kv": [2, 2],
        "padding_q": [1, 1], "stride_q": [1, 1], "attention_drop_rate": [0.0, 0.0], "drop_rate": [0.0, 0.0],
        "drop_path_rate": [0.0, 0.0],
        "qkv_bias": [True, True],
    },
    "mobilevit": {
        "hidden_sizes": [16, 16, 32], "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 32], "patch_size": 2,
        "image_size": 64,
    },
    "vitdet": {
        "window_block_indices": [0], "window_size": 2, "residual_block_indices": [],
        "use_relative_position_embeddings": True, "pretrain_image_size": 32,
    },
    "data2vec-vision": {"use_relative_position_bias": True, "layer_scale_init_value": 1.0},
    "timesformer": {"num_frames": 2},
    "mgp-str": {
        "image_size": [32, 32], "max_token_length": 5, "num_character_labels": 8, "num_bpe_labels": 8,
        "num_wordpiece_labels": 8,
    },
    "perceiver": {
        "num_latents": 5, "d_latents": 32, "num_blocks": 1, "num_self_attends_per_block": 2,
        "num_self_attention_heads": 4, "num_cross_attention_heads": 4,
    },
    "sam_vision_model": {"output_channels": 16, "window_size": 2, "global_attn_indexes": [1], "use_rel_pos": True},
    "sam_hq_vision_model": {"output_channels": 16, "window_size": 2, "global_attn_indexes": [1], "use_rel_pos": True},
    "seggpt": {
        "image_size": [64, 32], "pretrain_image_size": 32, "merge_index": 0, "intermediate_hidden_state_indices": [1],
        "decoder_hidden_size": 8,
    },
    "git": {
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
            "image_size": 32, "patch_size": 8,
        },
    },
    "vilt": {},
    "layoutlmv3": {"input_size": 32, "coordinate_size": 6, "shape_size": 4, "has_relative_attention_bias": True},
    "bros": {"hidden_size": 64},
    "clap_audio_model": {
        "spec_size": 64, "window_size": 4, "patch_size": 4, "patch_stride": [4, 4], "depths": [1, 1],
        "num_attention_heads": [2, 4], "patch_embeds_hidden_size": 16, "num_mel_bins": 64, "hidden_size": 32,
        "projection_dim": 16, "num_hidden_layers": 2,
    },
    "aimv2_vision_model": {"num_channels": 3, "use_head": True},
    "cpmant": {
        "dim_head": 8, "dim_ff": 64, "prompt_types": 4, "prompt_length": 4, "segment_types": 4,
        "position_bias_num_buckets": 16, "position_bias_max_distance": 32,
    },
    "trocr": {},
    "bigbird_pegasus": {"block_size": 1, "num_random_blocks": 1, "attention_type": "original_full"},
    "blip_text_model": {"encoder_hidden_size": 32, "is_decoder": False},
    "blip_vision_model": {},
    "groupvit_text_model": {},
    "gemma2": {"head_dim": 8, "num_key_value_heads": 2, "sliding_window": 4},
    "gemma4_text": {
        "head_dim": 8, "global_head_dim": 16, "num_key_value_heads": 2, "sliding_window": 4, "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 0, "layer_types": ["sliding_attention", "full_attention"],
    },
    "diffllama": {"num_key_value_heads": 2},
    "qwen3_next": {
        "head_dim": 8, "layer_types": ["full_attention", "full_attention"], "num_experts": 2, "num_experts_per_tok": 1,
        "num_key_value_heads": 2, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8,
    },
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 4},
}  # fmt: skip

_CLASSES = {"funnel": "FunnelModel", "clap_audio_model": "ClapAudioModel", "trocr": "TrOCRForCausalLM"}
_CLASSES |= {"aimv2_vision_model": "Aimv2VisionModel", "blip_text_model": "BlipTextModel"}
_CLASSES |= {"blip_vision_model": "BlipVisionModel", "groupvit_text_model": "GroupViTTextModel"}
_CLASSES |= {"mgp-str": "MgpstrModel"}
_CLASSES |= {"groupvit_vision_model": "GroupViTVisionModel"}

# Their masks hold the smallest number of float32, or their experts know no float64.
_IN_SINGLE_PRECISION = ("canine", "prophetnet", "qwen3_next", "xglm")


def tiny_config(model_type, **changes):
    """The default config with everything that makes a model large made small."""
    cls = CONFIG_MAPPING[model_type]
    default = cls()
    known = {name: value for name, value in _SMALL.items() if isinstance(getattr(default, name, None), (int, float))}
    known |= {
        name: _SMALL[name]
        for name in ("n_inner", "pad_token_id", "bos_token_id", "eos_token_id")
        if hasattr(default, name)
    }
    known = {name: int(value) if isinstance(getattr(default, name), int) else value for name, value in known.items()}
    wanted = known | CASES.get(model_type, {}) | changes
    return cls(**{name: value for name, value in wanted.items() if value is not None})


def tiny(model_type, **changes):
    """A model in evaluation mode, in float64, whose weights are large enough that conditioning shows."""
    torch.manual_seed(1)
    cls = getattr(transformers, _CLASSES[model_type]) if model_type in _CLASSES else AutoModel
    build = cls if model_type in _CLASSES else cls.from_config
    model = build(tiny_config(model_type, **changes)).eval()
    if model_type not in _IN_SINGLE_PRECISION:
        model.double()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=1.5 / parameter[0].numel() ** 0.5)
        else:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    return model


def call(model, **changes):
    """The model's first output on a batch with padding, where it reads a mask."""
    torch.manual_seed(0)  # ViLT draws the patches that it looks at
    return first_tensor(model(**(inputs(model) | changes)))


def inputs(model):
    generator = torch.Generator().manual_seed(5)
    config, name = model.config, model.main_input_name
    if config.model_type == "perceiver":
        return {"inputs": _noise(model, generator, 2, 6, 32)}
    if config.model_type == "clap_audio_model":
        return {"input_features": _noise(model, generator, 2, 1, 64, 64)}
    found = {}
    if name == "pixel_values" or config.model_type in ("vilt", "mgp-str"):
        size = getattr(config, "image_size", 32)
        size = list(size) if isinstance(size, (list, tuple)) else [size, size]
        frames = [config.num_frames] if config.model_type == "timesformer" else []
        found["pixel_values"] = _noise(model, generator, 2, *frames, 3, *size)
    if config.model_type == "seggpt":
        height, width = found["pixel_values"].shape[-2:]
        half = _noise(model, generator, 2, 3, height // 2, width)
        found = {"pixel_values": half, "prompt_pixel_values": half.flip(0), "prompt_masks": half.flip(-1)}
    if name == "input_ids" and "mgp" not in config.model_type:
        found |= _text(config, generator)
    return found


def _noise(model, generator, *shape):
    return torch.randn(*shape, generator=generator).to(next(model.parameters()).dtype)


def _text(config, generator):
    ids = torch.randint(3, 90, (2, 8), generator=generator)
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[0, 6:] = 0
    text = {"input_ids": ids, "attention_mask": mask}
    if config.is_encoder_decoder:
        text["decoder_input_ids"] = ids.flip(0)
    if config.model_type in ("lilt", "layoutlmv3"):
        text["bbox"] = torch.randint(0, 9, (2, 8, 4), generator=generator).sort(-1).values
    if config.model_type == "bros":
        text["bbox"] = torch.rand(2, 8, 8, generator=generator).double()
    if config.model_type == "luke":
        text["entity_ids"] = torch.tensor([[1, 2], [3, 4]])
        text["entity_position_ids"] = torch.tensor([[[1, 2], [3, -1]], [[0, -1], [4, 5]]])
    return text


def first_tensor(output):
    """Found in the output, or in a tuple at its beginning."""
    while not isinstance(output, torch.Tensor):
        output = next(iter(output.to_tuple() if hasattr(output, "to_tuple") else output))
    return output


def _namespace(**values):
    """A config for one module."""
    return SimpleNamespace(**({"hidden_size": 32, "num_attention_heads": 4, "num_heads": 4} | values))


def _x(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


_BERT_LIKE = _namespace(
    attention_probs_dropout_prob=0.0, qkv_bias=True, is_decoder=False, has_relative_attention_bias=False,
    has_spatial_attention_bias=False, fast_qkv=True, layer_norm_eps=1e-6, hidden_dropout_prob=0.0,
)  # fmt: skip
_SAM_LIKE = _namespace(attention_dropout=0.0, image_size=32, patch_size=8, qkv_bias=True, use_rel_pos=True)
_AUDIO = _namespace(
    conf_attention_chunk_size=4, conf_attention_context_left=3, conf_attention_context_right=1, rms_norm_eps=1e-6,
    conf_attention_logit_cap=50.0, conf_num_attention_heads=4, attention_chunk_size=4, attention_context_left=3,
    attention_context_right=1, attention_logit_cap=50.0, attention_invalid_logits_value=-1e9, use_clipped_linears=False,
)  # fmt: skip
_X = _x(2, 8, 32)

# Attention classes whose models are too large for a test: how one is built, and what it is called with.
MODULES = {
    "data2vec.modeling_data2vec_vision.Data2VecVisionSelfAttention": ((_BERT_LIKE,), (_X,)),
    "flava.modeling_flava.FlavaSelfAttention": ((_BERT_LIKE,), (_X,)),
    "layoutlmv2.modeling_layoutlmv2.LayoutLMv2SelfAttention": ((_BERT_LIKE,), (_X, torch.zeros(2, 1, 1, 8))),
    "superglue.modeling_superglue.SuperGlueSelfAttention": ((_BERT_LIKE,), (_X,)),
    # on the attention interface since transformers 5.24
    "pp_doclayout_v2.modeling_pp_doclayout_v2.PPDocLayoutV2ReadingOrderSelfAttention": (
        (_namespace(**vars(_BERT_LIKE), _attn_implementation="eager"),), (_X,),
    ),
    "lxmert.modeling_lxmert.LxmertAttention": ((_BERT_LIKE,), (_X, _x(2, 5, 32))),
    "tvp.modeling_tvp.TvpAttention": ((_BERT_LIKE,), (_X,)),
    "gemma3n.modeling_gemma3n.Gemma3nAudioAttention": ((_AUDIO,), (_X, torch.zeros(2, 8, dtype=torch.bool))),
    "gemma4.modeling_gemma4.Gemma4AudioAttention": ((_AUDIO, 0), (_X, _x(1, 5, 32))),
    "bark.modeling_bark.BarkSelfAttention": ((_namespace(dropout=0.0, bias=True, block_size=16), True), (_X,)),
    "clvp.modeling_clvp.ClvpSelfAttention": (
        (_namespace(attention_dropout=0.0, max_position_embeddings=16, use_attention_bias=True),), (_X,),
    ),
    "dab_detr.modeling_dab_detr.DetrAttention": (
        (_namespace(attention_dropout=0.0, encoder_attention_heads=4),), (_X, None, _X),
    ),
    "dab_detr.modeling_dab_detr.DabDetrAttention": (
        (_namespace(attention_dropout=0.0, decoder_attention_heads=4),), (_X, None, _x(2, 5, 32), _x(2, 5, 32)),
    ),
    "mask2former.modeling_mask2former.Mask2FormerAttention": ((32, 4), (_X, None, _X)),
    "oneformer.modeling_oneformer.OneFormerAttention": ((32, 4), (_X, None, _X)),
    "oneformer.modeling_oneformer.OneFormerTextMapperAttention": ((32, 4), (_X, _X, _X)),
    "table_transformer.modeling_table_transformer.TableTransformerAttention": ((32, 4), (_X, None, _X)),
    "vits.modeling_vits.VitsAttention": ((_namespace(attention_dropout=0.0, use_bias=True, window_size=None),), (_X,)),
    "grounding_dino.modeling_grounding_dino.GroundingDinoMultiheadAttention": (
        (_namespace(attention_dropout=0.0), 4), (_X, _X, _X),
    ),
    "mm_grounding_dino.modeling_mm_grounding_dino.MMGroundingDinoMultiheadAttention": (
        (_namespace(attention_dropout=0.0), 4), (_X, _X, _X),
    ),
    "omdet_turbo.modeling_omdet_turbo.OmDetTurboMultiheadAttention": ((None, 32, 4, 0.0), (_X, _X, _X)),
    "zoedepth.modeling_zoedepth.ZoeDepthMultiheadAttention": ((32, 4, 0.0), (_X, _X, _X)),
    "deepseek_ocr2.modeling_deepseek_ocr2.DeepseekOcr2SamVisionAttention": ((_SAM_LIKE, 0), (_x(2, 4, 4, 32),)),
    "deepseek_ocr2.modeling_deepseek_ocr2.DeepseekOcr2SamVisionSdpaAttention": ((_SAM_LIKE, 0), (_x(2, 4, 4, 32),)),
    "unlimited_ocr.modeling_unlimited_ocr.UnlimitedOcrSamVisionAttention": ((_SAM_LIKE, 0), (_x(2, 4, 4, 32),)),
    "unlimited_ocr.modeling_unlimited_ocr.UnlimitedOcrSamVisionSdpaAttention": ((_SAM_LIKE, 0), (_x(2, 4, 4, 32),)),
    "sam.modeling_sam.SamVisionAttention": ((_SAM_LIKE, 0), (_x(2, 4, 4, 32),)),
    "sam_hq.modeling_sam_hq.SamHQVisionAttention": ((_SAM_LIKE, 0), (_x(2, 4, 4, 32),)),
    "got_ocr2.modeling_got_ocr2.GotOcr2VisionAttention": ((_SAM_LIKE, 0), (_x(2, 4, 4, 32),)),
    "pp_formulanet.modeling_pp_formulanet.PPFormulaNetVisionAttention": ((_SAM_LIKE, 0), (_x(2, 4, 4, 32),)),
    "slanext.modeling_slanext.SLANeXtVisionAttention": ((_SAM_LIKE, 0), (_x(2, 4, 4, 32),)),
    "fastspeech2_conformer.modeling_fastspeech2_conformer.FastSpeech2ConformerAttention": (
        (_namespace(), {"num_attention_heads": 4, "attention_dropout_rate": 0.0}), (_X, None, _x(1, 15, 32)),
    ),
    "granite_speech.modeling_granite_speech.GraniteSpeechConformerAttention": (
        (_namespace(context_size=4, dim_head=8, dropout=0.0, hidden_dim=32, max_pos_emb=8),),
        (_x(2, 7, 32), torch.arange(16).view(4, 4) % 8),
    ),
    "chameleon.modeling_chameleon.ChameleonVQVAEEncoderAttnBlock": ((32,), (_x(2, 32, 3, 4),)),
    "janus.modeling_janus.JanusVQVAEAttnBlock": ((32,), (_x(2, 32, 3, 4),)),
    "groupvit.modeling_groupvit.GroupViTAttention": ((_namespace(attention_dropout=0.0),), (_X,)),
    "speecht5.modeling_speecht5.SpeechT5Attention": ((32, 4), (_X,)),
    "levit.modeling_levit.LevitAttention": ((32, 8, 4, 2, 4), (_x(2, 16, 32),)),
    "levit.modeling_levit.LevitAttentionSubsample": ((32, 48, 8, 4, 2, 2, 4, 2), (_x(2, 16, 32),)),
}  # fmt: skip


def attention(name):
    """One attention module alone, with the arguments of its call."""
    module, _, cls = name.rpartition(".")
    torch.manual_seed(1)
    arguments, call_with = MODULES[name]
    built = getattr(importlib.import_module(f"transformers.models.{module}"), cls)(*arguments)
    built.eval()
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return built, call_with
