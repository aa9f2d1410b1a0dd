"""Small modules of timm's attention classes, each with what it is called with."""

from functools import partial

import torch
from timm.layers import (
    RelPosBias,
    attention,
    attention2d,
    attention_pool,
    attention_pool2d,
    bottleneck_attn,
    halo_attn,
    non_local_attn,
    other_pool,
)
from timm.layers.pos_embed_sincos import RotaryEmbeddingCat
from timm.models import (
    beit,
    cait,
    convit,
    cpubone,
    crossvit,
    davit,
    edgenext,
    efficientformer,
    eva,
    fastvit,
    gcvit,
    gemma4_vit,
    hiera,
    hieradet_sam2,
    levit,
    lowformer,
    maxxvit,
    metaformer,
    nest,
    nextvit,
    pvt_v2,
    swin_transformer,
    swin_transformer_v2,
    swin_transformer_v2_cr,
    tiny_vit,
    tnt,
    twins,
    visformer,
    vision_transformer_relpos,
    vision_transformer_sam,
    volo,
    xcit,
)
from torch import nn


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(5)).double()


def rotation(tokens, width):
    return RotaryEmbeddingCat(width, in_pixels=False, feat_shape=(1, tokens)).get_embed().double()


def gemma_rotation(tokens, width):
    angles = draw(1, tokens, width)
    return {"rope_cos": angles.cos(), "rope_sin": angles.sin()}


TOKENS, IMAGE, CHANNELS_LAST = draw(2, 9, 32), draw(2, 32, 4, 4), draw(2, 4, 4, 32)
# (windows, N, N): half of each window has been shifted in from the other side of the image
SHIFTED = torch.zeros(3, 4, 4).double()
SHIFTED[:, :2, 2:] = SHIFTED[:, 2:, :2] = -100
WINDOWS = draw(6, 4, 32)

# class, and what is special: (module, arguments, keywords)
CASES = {
    "attention.AttentionRope": lambda: (
        attention.AttentionRope(32, 4, qkv_fused=False, num_kv_heads=2),
        (TOKENS,),
        {"rope": rotation(8, 8)},
    ),
    "attention.AttentionRope gate, norm, mask": lambda: (
        attention.AttentionRope(32, 4, gated=True, scale_norm=True, qk_norm=True, norm_layer=nn.LayerNorm),
        (TOKENS,),
        {"rope": rotation(8, 8), "is_causal": True},
    ),
    "attention2d.Attention2d": lambda: (attention2d.Attention2d(32, num_heads=4), (IMAGE,), {}),
    "attention2d.Attention2d head first": lambda: (
        attention2d.Attention2d(32, 48, num_heads=4, expand_first=True, head_first=True),
        (IMAGE,),
        {"attn_mask": draw(1, 4, 16, 16)},
    ),
    "attention2d.MultiQueryAttention2d": lambda: (
        attention2d.MultiQueryAttention2d(32, num_heads=4, query_strides=2, kv_stride=2, value_dim=6),
        (IMAGE,),
        {},
    ),
    "attention_pool.AttentionPoolLatent": lambda: (
        attention_pool.AttentionPoolLatent(32, num_heads=4, latent_len=3, pool_type="avg"),
        (TOKENS,),
        {},
    ),
    "attention_pool.AttentionPoolPrr": lambda: (
        attention_pool.AttentionPoolPrr(32, num_heads=4, post_norm=True, pool_type="avg"),
        (TOKENS,),
        {},
    ),
    "attention_pool2d.AttentionPool2d": lambda: (
        attention_pool2d.AttentionPool2d(32, feat_size=4, num_heads=4, class_token=True),
        (IMAGE,),
        {},
    ),
    "attention_pool2d.RotAttentionPool2d before logits": lambda: (
        attention_pool2d.RotAttentionPool2d(32, ref_feat_size=4, num_heads=4, qkv_separate=True),
        (IMAGE,),
        {"pre_logits": True},
    ),
    "bottleneck_attn.BottleneckAttn": lambda: (
        bottleneck_attn.BottleneckAttn(32, feat_size=(4, 4), stride=2, num_heads=4, qk_ratio=0.5),
        (IMAGE,),
        {},
    ),
    "halo_attn.HaloAttn": lambda: (
        halo_attn.HaloAttn(32, num_heads=4, block_size=2, halo_size=1, stride=2, qk_ratio=0.5, avg_down=True),
        (IMAGE,),
        {},
    ),
    "non_local_attn.NonLocalAttn": lambda: (non_local_attn.NonLocalAttn(32), (IMAGE,), {}),
    "other_pool.SimPool1d": lambda: (other_pool.SimPool1d(32, num_heads=4), (TOKENS,), {}),
    "other_pool.SimPool2d": lambda: (other_pool.SimPool2d(32, num_heads=4), (IMAGE,), {}),
    "beit.Attention": lambda: (
        beit.Attention(32, 4, qkv_bias=True, window_size=(2, 4)),
        (TOKENS,),
        {"shared_rel_pos_bias": draw(1, 4, 9, 9)},
    ),
    "cait.ClassAttn": lambda: (cait.ClassAttn(32, 4), (TOKENS,), {}),
    "cait.TalkingHeadAttn": lambda: (cait.TalkingHeadAttn(32, 4), (TOKENS,), {}),
    "convit.GPSA": lambda: (convit.GPSA(32, 4), (TOKENS,), {}),
    "convit.MHSA": lambda: (convit.MHSA(32, 4), (TOKENS,), {}),
    "cpubone.ConvAttention": lambda: (cpubone.ConvAttention(64, att_stride=1), (draw(2, 64, 4, 4),), {}),
    "cpubone.ConvAttention no output projection": lambda: (
        cpubone.ConvAttention(64, att_stride=2, small_kernels=True, fuse_out_proj=True),
        (draw(2, 64, 5, 5),),
        {},
    ),
    "crossvit.CrossAttention": lambda: (crossvit.CrossAttention(32, 4), (TOKENS,), {}),
    "davit.ChannelAttention": lambda: (davit.ChannelAttention(32, 4), (TOKENS,), {}),
    "davit.ChannelAttentionV2": lambda: (davit.ChannelAttentionV2(32, 4), (TOKENS,), {}),
    "davit.WindowAttention": lambda: (davit.WindowAttention(32, (2, 2), 4), (WINDOWS,), {}),
    "edgenext.CrossCovarianceAttn": lambda: (edgenext.CrossCovarianceAttn(32, 4), (TOKENS,), {}),
    "efficientformer.Attention": lambda: (
        efficientformer.Attention(32, key_dim=4, num_heads=4, attn_ratio=2, resolution=3),
        (TOKENS,),
        {},
    ),
    "eva.EvaAttention": lambda: (
        eva.EvaAttention(32, 4, gated=True, qk_norm=True, norm_layer=nn.LayerNorm),
        (TOKENS,),
        {"rope": rotation(8, 8)},
    ),
    "eva.EvaAttention separate": lambda: (
        eva.EvaAttention(32, 4, qkv_fused=False, scale_norm=False),
        (TOKENS,),
        {"attn_mask": draw(9, 9)},
    ),
    "fastvit.Attention": lambda: (fastvit.Attention(32, head_dim=8), (IMAGE,), {}),
    "gcvit.WindowAttentionGlobal": lambda: (
        gcvit.WindowAttentionGlobal(32, 4, (2, 2)),
        (WINDOWS, draw(2, 4, 32)),
        {},
    ),
    "gcvit.WindowAttentionGlobal local": lambda: (
        gcvit.WindowAttentionGlobal(32, 4, (2, 2), use_global=False),
        (WINDOWS,),
        {},
    ),
    "gemma4_vit.Gemma4Attention": lambda: (
        gemma4_vit.Gemma4Attention(32, 4, head_dim=8, num_kv_heads=2),
        (TOKENS,),
        gemma_rotation(9, 8),
    ),
    "hiera.MaskUnitAttention": lambda: (hiera.MaskUnitAttention(32, 48, 4, q_stride=3), (TOKENS,), {}),
    "hiera.MaskUnitAttention windows": lambda: (
        hiera.MaskUnitAttention(32, 48, 4, q_stride=2, window_size=3, use_mask_unit_attn=True),
        (draw(2, 12, 32),),
        {},
    ),
    "hieradet_sam2.MultiScaleAttention": lambda: (
        hieradet_sam2.MultiScaleAttention(32, 48, 4, q_pool=nn.MaxPool2d(2)),
        (CHANNELS_LAST,),
        {},
    ),
    "levit.Attention": lambda: (levit.Attention(32, 4, 4, attn_ratio=2.0, resolution=3), (TOKENS,), {}),
    "levit.Attention convolutions": lambda: (
        levit.Attention(32, 4, 4, attn_ratio=2.0, resolution=4, use_conv=True),
        (IMAGE,),
        {},
    ),
    "levit.AttentionDownsample": lambda: (
        levit.AttentionDownsample(32, 48, 4, 4, attn_ratio=2.0, resolution=3),
        (TOKENS,),
        {},
    ),
    "levit.AttentionDownsample convolutions": lambda: (
        levit.AttentionDownsample(32, 48, 4, 4, attn_ratio=2.0, resolution=4, use_conv=True),
        (IMAGE,),
        {},
    ),
    "lowformer.ConvAttention": lambda: (lowformer.ConvAttention(128, att_stride=2), (draw(2, 128, 5, 5),), {}),
    "maxxvit.Attention2d": lambda: (
        maxxvit.Attention2d(32, dim_head=8, rel_pos_cls=partial(RelPosBias, window_size=(4, 4))),
        (IMAGE,),
        {},
    ),
    "maxxvit.Attention2d values first": lambda: (
        maxxvit.Attention2d(32, dim_head=8, head_first=False),
        (IMAGE,),
        {"shared_rel_pos": draw(1, 4, 16, 16)},
    ),
    "maxxvit.AttentionCl": lambda: (
        maxxvit.AttentionCl(32, dim_head=8, rel_pos_cls=partial(RelPosBias, window_size=(4, 4))),
        (CHANNELS_LAST,),
        {},
    ),
    "metaformer.Attention": lambda: (metaformer.Attention(32, head_dim=8), (TOKENS,), {}),
    "nest.Attention": lambda: (nest.Attention(32, 4), (draw(2, 3, 9, 32),), {}),
    "nextvit.EfficientAttention": lambda: (
        nextvit.EfficientAttention(32, 48, head_dim=8, sr_ratio=2),
        (draw(2, 16, 32),),
        {},
    ),
    "pvt_v2.Attention": lambda: (pvt_v2.Attention(32, 4, sr_ratio=2), (draw(2, 16, 32), (4, 4)), {}),
    "pvt_v2.Attention pooled keys": lambda: (
        pvt_v2.Attention(32, 4, linear_attn=True),
        (draw(2, 64, 32), (8, 8)),
        {},
    ),
    "swin_transformer.WindowAttention": lambda: (
        swin_transformer.WindowAttention(32, 4, head_dim=6, window_size=2),
        (WINDOWS, SHIFTED),
        {},
    ),
    "swin_transformer_v2.WindowAttention": lambda: (
        swin_transformer_v2.WindowAttention(32, (2, 2), 4),
        (WINDOWS, SHIFTED),
        {},
    ),
    "swin_transformer_v2_cr.WindowMultiHeadAttention": lambda: (
        swin_transformer_v2_cr.WindowMultiHeadAttention(32, 4, (2, 2)),
        (WINDOWS, SHIFTED),
        {},
    ),
    "tiny_vit.Attention": lambda: (tiny_vit.Attention(32, 4, 4, attn_ratio=2, resolution=(3, 3)), (TOKENS,), {}),
    "tnt.Attention": lambda: (tnt.Attention(32, 16, 4), (TOKENS,), {}),
    "twins.GlobalSubSampleAttn": lambda: (
        twins.GlobalSubSampleAttn(32, 4, sr_ratio=2),
        (draw(2, 16, 32), (4, 4)),
        {},
    ),
    "twins.LocallyGroupedAttn padded": lambda: (
        twins.LocallyGroupedAttn(32, 4, ws=3),
        (draw(2, 20, 32), (4, 5)),
        {},
    ),
    "vision_transformer_relpos.RelPosAttention": lambda: (
        vision_transformer_relpos.RelPosAttention(32, 4, rel_pos_cls=partial(RelPosBias, window_size=(3, 3))),
        (TOKENS,),
        {},
    ),
    "vision_transformer_sam.Attention": lambda: (
        vision_transformer_sam.Attention(32, 4, use_rel_pos=True, input_size=(4, 4)),
        (CHANNELS_LAST,),
        {},
    ),
    "visformer.Attention": lambda: (visformer.Attention(32, 4, head_dim_ratio=0.5), (IMAGE,), {}),
    "volo.Attention": lambda: (volo.Attention(32, 4), (CHANNELS_LAST,), {}),
    "volo.ClassAttention": lambda: (volo.ClassAttention(32, 4, head_dim=6), (TOKENS,), {}),
    "xcit.XCA": lambda: (xcit.XCA(32, 4), (TOKENS,), {}),
}

# Whole models, made small: (entry point, image size, further options, number of attention modules)
MODELS = {
    "shifted windows": (
        "swin_tiny_patch4_window7_224",
        28,
        {"embed_dim": 16, "window_size": 3, "depths": (2, 2), "num_heads": (2, 4)},
        4,
    ),
    "windows that are padded": ("twins_svt_small", 64, {"embed_dims": (16, 16, 32, 32), "depths": (1, 2, 1, 1)}, 5),
    "class attention": ("cait_xxs24_224", 32, {"embed_dim": 32, "depth": 2, "num_heads": 4}, 4),
    "attention between channels": ("xcit_nano_12_p8_224", 32, {"embed_dim": 32, "depth": 1, "num_heads": 4}, 3),
    "two branches": ("crossvit_tiny_240", 120, {"embed_dim": (16, 32), "num_heads": (2, 2), "depth": [[1, 2, 0]]}, 5),
    "rotary": ("eva02_tiny_patch14_224", 28, {"embed_dim": 32, "depth": 2, "num_heads": 4}, 2),
    "grids and blocks": ("test_maxvit", 64, {}, 8),
    "convolutions first": ("test_coatnet", 64, {}, 3),
    "gated positions": ("convit_tiny", 32, {"embed_dim": 8, "depth": 3, "local_up_to_layer": 2}, 3),
}
