"""W_Q, W_K and W_V of timm's attention classes: each row proves its role by numbers."""

import pytest
import torch
from timm.layers import attention_pool, attention_pool2d, diff_attention, other_pool
from timm.models import efficientvit_msra, gcvit, gemma4_vit, hieradet_sam2, mvitv2, vision_transformer
from timm.models.csatv2 import SpatialTransformerBlock
from torch import nn

from conditioned_attention import precondition
from conditioned_attention.sites.site import class_name
from conditioned_attention.sites.table import find_projections
from conditioned_attention.sites.timm import heads as table
from conditioned_attention.sites.timm import projections as projections_timm
from tests.conversion.test_timm_forwards import CASES as REWRITTEN
from tests.conversion.timm_cases import CASES as HOOKED
from tests.conversion.timm_cases import CHANNELS_LAST, IMAGE, TOKENS, draw
from tests.sites.roles import (
    Subject,
    assert_corrected,
    assert_heads,
    assert_heads_by_norm,
    assert_keys_between_channels,
    assert_keys_by_reach,
    assert_keys_by_shift,
    assert_pairs,
    assert_values,
)

REFUSED = (
    "MultiQuery",
    "MultiQuery, memory",
    "Volo",
    "Volo, kernel",
    "Volo, stride",
    "attention_pool.AttentionPoolPrr",
    "gcvit.WindowAttentionGlobal",
    "other_pool.SimPool1d",
    "other_pool.SimPool2d",
)


def not_rotated():
    """A pool that returns every position, by angles of 0."""
    module = attention_pool2d.RotAttentionPool2d(32, ref_feat_size=4, num_heads=4, pool_type="")
    module.pos_embed.get_embed = lambda shape: (torch.zeros(16, 8).double(), torch.ones(16, 8).double())
    return module


MORE = {
    "AttentionPool2d, apart": lambda: (
        attention_pool2d.AttentionPool2d(32, feat_size=4, num_heads=4, qkv_separate=True),
        (IMAGE,),
        {},
    ),
    "AttentionPoolLatent, norms": lambda: (
        attention_pool.AttentionPoolLatent(32, num_heads=4, qk_norm=True),
        (TOKENS,),
        {},
    ),
    "Cascaded, one head": lambda: (
        efficientvit_msra.CascadedGroupAttention(32, 4, 1, attn_ratio=8, resolution=4),
        (IMAGE,),
        {},
    ),
    "DiffAttention": lambda: (diff_attention.DiffAttention(32, 4, qk_norm=True), (TOKENS,), {}),
    "DiffParallelScalingBlock": lambda: (
        vision_transformer.DiffParallelScalingBlock(32, 4, mlp_ratio=2),
        (TOKENS,),
        {},
    ),
    "RotAttentionPool2d, not rotated": lambda: (not_rotated(), (IMAGE,), {}),
    "gemma4_vit, not rotated": lambda: (
        gemma4_vit.Gemma4Attention(32, 4, head_dim=8, num_kv_heads=2),
        (TOKENS,),
        {"rope_cos": torch.ones(1, 9, 8).double(), "rope_sin": torch.zeros(1, 9, 8).double()},
    ),
    "hieradet_sam2, not pooled": lambda: (hieradet_sam2.MultiScaleAttention(32, 48, 4), (CHANNELS_LAST,), {}),
}
CASES = [*(name for name in (*HOOKED, *REWRITTEN) if name not in REFUSED), *MORE]

CHANNELS = {name for name in CASES if name.startswith(("davit.Channel", "edgenext", "xcit"))}
COSINES = {"swin_transformer_v2.WindowAttention", "swin_transformer_v2_cr.WindowMultiHeadAttention"}
ROTATED = {
    "attention.AttentionRope",
    "attention.AttentionRope gate, norm, mask",
    "attention_pool2d.RotAttentionPool2d before logits",
    "eva.EvaAttention",
    "gemma4_vit.Gemma4Attention",
    "AttentionRope",
    "AttentionRope, half",
    "AttentionRope, apart",
    "AttentionRope, groups",
    "AttentionRope, causal",
    "Eva",
    "Eva, separate bias",
    "Eva, apart",
    "Eva, gate",
}
# keys behind which zeros are padded, or that are pooled
PADDED = {
    "halo_attn.HaloAttn",
    "twins.LocallyGroupedAttn padded",
    "iFormer, windows",
    "MViT, pooled",
    "MViT, keys pooled",
    "MViT, max",
    "MViT, no residual",
}
# queries or keys that are pooled each row by itself; other cases of these classes stand for them too
POOLED = {
    "Hiera, all pooled",
    "Hiera, pooled windows",
    "MViT, keys pooled",
    "MViT, max",
    "MViT, no residual",
    "MViT, pooled",
    "hiera.MaskUnitAttention",
    "hiera.MaskUnitAttention windows",
    "hieradet_sam2.MultiScaleAttention",
}
# values that are pooled by their maximum
NOT_AFFINE = {"MViT, max"}
# what one head returns goes into the next; "Cascaded, one head" stands for it
CASCADED = {"Cascaded"}
# one position is returned; "RotAttentionPool2d, not rotated" stands for it
ONE_PLACE = {"attention_pool2d.RotAttentionPool2d before logits"}
# what an input goes through before its keys are made
BEFORE = {
    "EfficientFormer, stride": "stride_conv.conv",
    "cpubone": "conv_proj.conv",
    "lowformer": "conv_proj.conv",
    "attention2d.MultiQueryAttention2d": "key.down_conv",
    "pvt_v2": "sr",
    "twins.Global": "sr",
}


def subject(name):
    """In float64, with numbers that are all random."""
    torch.manual_seed(1)
    if name in REWRITTEN:
        case = REWRITTEN[name]
        return Subject(case.build(), case.inputs, case.keywords)
    module, args, keywords = {**HOOKED, **MORE}[name]()
    for parameter in module.parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
        nn.init.normal_(parameter, std=1.5 / fan_in**0.5)
    return Subject(module, args, keywords)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", [name for name in CASES if name not in CASCADED | NOT_AFFINE])
def test_values(name):
    assert_values(subject(name).linear())


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", [name for name in CASES if name not in CASCADED | ONE_PLACE])
def test_keys(name):
    it = subject(name).linear()
    if name in CHANNELS:
        assert_keys_between_channels(it)
    elif name in COSINES | ROTATED | PADDED:
        assert_keys_by_reach(it)
    else:
        first_feature_is_kept(it.module, name)
        assert_keys_by_shift(it)


@torch.no_grad()
def first_feature_is_kept(module, name):
    """A first feature that is the same everywhere stays so on the way to the keys."""
    for start, path in BEFORE.items():
        if name.startswith(start):
            convolution = module.get_submodule(path)
            convolution.weight[0] = 0
            if convolution.bias is not None:
                convolution.bias[0] = 1
    if name.startswith(("attention_pool2d", "AttentionPool2d")):
        module.pos_embed[:, 0] = 0
        if module.cls_token is not None:
            module.cls_token[:, 0] = 1


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", [name for name in CASES if name not in CHANNELS])
def test_heads(name):
    it = subject(name)
    if name.startswith("Diff"):  # where a head is two queries and two keys
        it.module.sub_norm.eps = 0.0
        assert_heads_by_norm(it)
        return
    it.linear()
    for convolution in [m for n, m in it.module.named_modules() if n.startswith("dws") and isinstance(m, nn.Conv2d)]:
        nn.init.dirac_(convolution.weight, groups=convolution.groups)  # on the queries of a cascade
    if name in ROTATED | POOLED:
        assert_pairs(it, one_for_a_head=name in ROTATED)
    else:
        assert_heads(it)


def test_every_head_of_a_cascade_has_a_weight():
    assert len(subject("Cascaded").projections.weights) == 4


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", CASES)
def test_corrected(name):
    assert_corrected(subject(name))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("Diff")])
def test_corrected_and_converted(name):
    it = subject(name)
    cls = type(it.module)
    plain = it.output()
    precondition(it.module, include="*", strict=True)
    assert (it.output() != plain).any()
    assert (type(it.module) is not cls) == (class_name(cls) in table._SWAPPED)
    assert find_projections(it.module) == it.projections
    assert_corrected(it)


TABLE = {*table._SWAPPED, *table._HOOKED, *table._CHOSEN, *table._REFUSED}


def test_every_class_of_the_table_has_projections_or_a_reason():
    assert set(projections_timm.FOUND) == TABLE


def test_every_class_with_projections_has_a_case():
    tested = {class_name(type(subject(name).module)) for name in CASES}
    assert tested == {name for name, found in projections_timm.FOUND.items() if not isinstance(found, str)}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    module = REWRITTEN[name].build() if name in REWRITTEN else HOOKED[name]()[0]
    assert isinstance(find_projections(module), str)


def test_refused_where_queries_come_from_elsewhere():
    assert "without W_Q" in find_projections(gcvit.WindowAttentionGlobal(32, 4, (2, 2)))
    assert "without W_Q" in find_projections(attention_pool.AttentionPoolLatent(32, num_heads=4, q_proj=False))
    assert "has no W_V" in find_projections(other_pool.SimPool1d(32))


def test_queries_and_keys_of_one_channel_reach_nothing():
    """What is said against csatv2.SpatialTransformerBlock."""
    block = SpatialTransformerBlock().double()
    assert "do not reach its output" in find_projections(block)
    block(draw(3, 1, 7, 7)).sum().backward()
    assert (block.qkv.weight.grad[:2].abs() < 1e-12).all()
    assert block.qkv.weight.grad[2].abs() > 1e-3


def test_keys_that_are_not_transposed():
    block = mvitv2.MultiScaleAttentionPoolFirst(24, 32, (4, 4), num_heads=4)
    assert "keys are not transposed" in find_projections(block)
    with pytest.raises(RuntimeError, match="must match"):
        block(torch.randn(2, 17, 24), [4, 4])


def test_norms_behind_projections_are_remarked_on():
    remarks = {name: bool(subject(name).projections.remark) for name in CASES}
    assert remarks["Attention, norms and mask"]
    assert remarks["MViT, pooled"]
    assert remarks["levit.Attention"]
    assert not remarks["Attention"]
    assert not remarks["MViT"]
