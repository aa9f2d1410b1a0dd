"""Tiny models of transformers by their model type, with random weights, and what to call them with."""

import torch
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
    "big_bird": {"block_size": 2, "num_random_blocks": 1, "attention_type": "original_full"},
    "longformer": {"attention_window": [4, 4]},
    "led": {"attention_window": [4, 4]},
    "longt5": {"d_kv": 8, "local_radius": 3, "encoder_attention_type": "local"},
    "pegasus_x": {"block_size": 4, "num_global_tokens": 2, "stagger_local_blocks": False},
    "nystromformer": {"num_landmarks": 4, "segment_means_seq_len": 4, "conv_kernel_size": None},
    "xlnet": {},
    "funnel": {"d_head": 8, "block_sizes": [1, 1], "num_decoder_layers": 1},
    "xlm": {},
    "flaubert": {},
    "luke": {"entity_vocab_size": 9, "entity_emb_size": 16},
    "lilt": {"channel_shrink_ratio": 2},
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
    "prophetnet": {},
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
    "levit": {
        "hidden_sizes": [16, 32], "num_attention_heads": [2, 4], "depths": [1, 1], "key_dim": [8, 8],
        "mlp_ratio": [2, 2], "attention_ratio": [2, 2], "image_size": 64, "down_ops": [["Subsample", 8, 2, 4, 2, 2]],
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
        "num_heads": [2, 4], "depth": [1, 1], "mlp_ratio": [2.0, 2.0], "cls_token": [False, True],
        "qkv_projection_method": ["dw_bn", "dw_bn"], "kernel_qkv": [3, 3], "padding_kv": [1, 1], "stride_kv": [2, 2],
        "padding_q": [1, 1], "stride_q": [1, 1], "attention_drop_rate": [0.0, 0.0], "drop_rate": [0.0, 0.0],
        "qkv_bias": [True, True],
    },
    "mobilevit": {"hidden_sizes": [16, 16, 32], "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 32], "patch_size": 2, "image_size": 64},
    "vitdet": {"window_block_indices": [0], "window_size": 2, "residual_block_indices": [], "use_relative_position_embeddings": True, "pretrain_image_size": 32},
    "data2vec-vision": {"use_relative_position_bias": True, "layer_scale_init_value": 1.0},
    "timesformer": {"num_frames": 2},
    "mgp-str": {"image_size": [32, 32], "max_token_length": 5, "num_character_labels": 8, "num_bpe_labels": 8, "num_wordpiece_labels": 8},
    "perceiver": {"num_latents": 5, "d_latents": 32, "num_blocks": 1, "num_self_attends_per_block": 2, "num_self_attention_heads": 4, "num_cross_attention_heads": 4},
    "sam_vision_model": {"output_channels": 16, "window_size": 2, "global_attn_indexes": [1], "use_rel_pos": True},
    "sam_hq_vision_model": {"output_channels": 16, "window_size": 2, "global_attn_indexes": [1], "use_rel_pos": True},
    "seggpt": {"image_size": [64, 32], "pretrain_image_size": 32, "merge_index": 0, "intermediate_hidden_state_indices": [1], "decoder_hidden_size": 8},
    "git": {"vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}},
    "vilt": {},
    "layoutlmv3": {"input_size": 32, "coordinate_size": 6, "shape_size": 4, "has_relative_attention_bias": True},
    "bros": {"dim_bbox": 8},
    "clap_audio_model": {"spec_size": 64, "window_size": 4, "patch_size": 4, "patch_stride": [4, 4], "num_mel_bins": 16, "depths": [1, 1], "num_attention_heads": [2, 4], "patch_embeds_hidden_size": 16, "hidden_size": 32, "projection_dim": 16, "num_hidden_layers": 2},
    "aimv2_vision_model": {"num_channels": 3, "use_head": True},
    "cpmant": {"dim_head": 8, "dim_ff": 64, "prompt_types": 4, "prompt_length": 4, "segment_types": 4, "position_bias_num_buckets": 16, "position_bias_max_distance": 32},
    "trocr": {},
    "speecht5": {},
}  # fmt: skip


def tiny_config(model_type, **changes):
    """The default config with everything that makes a model large made small."""
    cls = CONFIG_MAPPING[model_type]
    default = cls()
    known = {name: value for name, value in _SMALL.items() if isinstance(getattr(default, name, None), (int, float))}
    known |= {name: _SMALL[name] for name in ("n_inner", "pad_token_id", "bos_token_id", "eos_token_id") if hasattr(default, name)}
    return cls(**(known | CASES.get(model_type, {}) | changes))


def tiny(model_type, **changes):
    """A model in evaluation mode, in float64, whose weights are large enough that conditioning shows."""
    torch.manual_seed(1)
    model = AutoModel.from_config(tiny_config(model_type, **changes)).eval().double()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=1.5 / parameter[0].numel() ** 0.5)
        else:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    return model


def call(model, **changes):
    """The model's first output on a batch with padding, where it reads a mask."""
    return first_tensor(model(**(inputs(model) | changes)))


def inputs(model):
    generator = torch.Generator().manual_seed(5)
    config, name = model.config, model.main_input_name
    if name == "pixel_values":
        size = getattr(config, "image_size", 32)
        size = list(size) if isinstance(size, (list, tuple)) else [size, size]
        return {name: torch.randn(2, 3, *size, generator=generator).double()}
    return _text(model, generator)


def _text(model, generator):
    ids = torch.randint(3, 90, (2, 8), generator=generator)
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[0, 6:] = 0
    text = {"input_ids": ids, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        text["decoder_input_ids"] = ids.flip(0)
    return text


def first_tensor(output):
    if isinstance(output, torch.Tensor):
        return output
    return next(value for value in output.to_tuple() if isinstance(value, torch.Tensor))
