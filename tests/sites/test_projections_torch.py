"""W_Q, W_K and W_V of torch.nn's and torchvision's attention classes: each row proves its role by numbers."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models.maxvit import RelativePositionalMultiHeadAttention
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2
from torchvision.models.video.mvit import MultiscaleAttention
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d

from conditioned_attention import MultiheadAttention, precondition
from conditioned_attention.experiments.models.crammed_bert_network import CrammedBertAttention, CrammedBertConfig
from conditioned_attention.experiments.models.lra_attention import NystromAttention, SoftmaxAttention
from conditioned_attention.sites.corrected import correct
from conditioned_attention.sites.site import class_name
from conditioned_attention.sites.table import find_projections
from conditioned_attention.sites.torch_nn import projections as projections_torch
from conditioned_attention.sites.torchvision import heads as torchvision
from conditioned_attention.spectral import Spectral
from tests.models import vectors
from tests.sites.roles import (
    Subject,
    assert_corrected,
    assert_heads,
    assert_keys_by_reach,
    assert_keys_by_shift,
    assert_pairs,
    assert_values,
    different,
    equal,
)

TOKENS = vectors(2, 9, 32).double()


def mvit(kernel_q=1, kernel_kv=1, stride=1, rel_pos=True):
    kernels, strides = ([kernel_q] * 3, [kernel_kv] * 3), ([1, stride, stride], [1, 1, 1])
    return MultiscaleAttention([2, 4, 4], 16, 32, 4, *kernels, *strides, True, False, rel_pos)


CLIP = (vectors(2, 33, 16).double(), (2, 4, 4))
CRAMMED_BERT = CrammedBertConfig(hidden_size=32, num_attention_heads=4, attn_implementation="sdpa")
CASES = {
    "Swin": lambda: (ShiftedWindowAttention(12, [4, 3], [0, 0], 2), (vectors(2, 8, 6, 12),)),
    "Swin, shifted and padded": lambda: (ShiftedWindowAttention(12, [4, 3], [2, 1], 2), (vectors(2, 9, 8, 12),)),
    "Swin V2": lambda: (ShiftedWindowAttentionV2(12, [4, 3], [2, 1], 2), (vectors(2, 8, 6, 12),)),
    "Swin 3d": lambda: (ShiftedWindowAttention3d(12, [2, 4, 3], [1, 2, 1], 2), (vectors(2, 4, 8, 6, 12),)),
    "MViT": lambda: (mvit(), CLIP),
    "MViT, pooled": lambda: (mvit(3, 3, 2), CLIP),
    "MViT, queries pooled": lambda: (mvit(3, 1, 2, rel_pos=False), CLIP),
    "MaxViT": lambda: (RelativePositionalMultiHeadAttention(32, 8, 9), (vectors(2, 3, 9, 32),)),
    "MultiheadAttention": lambda: (nn.MultiheadAttention(32, 4, batch_first=True), (TOKENS,) * 3),
    "MultiheadAttention, widths": lambda: (
        nn.MultiheadAttention(32, 4, kdim=24, vdim=40, batch_first=True),
        (TOKENS, vectors(2, 7, 24), vectors(2, 7, 40)),
    ),
    "Nyström": lambda: (NystromAttention(32, 4, 3, 0), (TOKENS,)),
    "softmax of the Long Range Arena": lambda: (SoftmaxAttention(32, 4), (TOKENS,)),
    "Crammed BERT": lambda: (CrammedBertAttention(CRAMMED_BERT), (TOKENS,)),
    "MultiheadAttention, built in": lambda: (MultiheadAttention(32, 4, batch_first=True), (TOKENS,) * 3),
}
COSINES = {"Swin V2"}
PADDED = {"Swin, shifted and padded", "MViT, pooled"}  # keys behind which zeros are padded
each_case = pytest.mark.parametrize("name", CASES)


def subject(name):
    torch.manual_seed(1)
    module, args = CASES[name]()
    for parameter in module.parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
        nn.init.normal_(parameter, std=1.5 / fan_in**0.5)
    doubles = {id(x): x.double() for x in args if torch.is_tensor(x)}  # the same tensor stays the same
    return Subject(module, tuple(doubles.get(id(x), x) for x in args))


@each_case
def test_values(name):
    it = subject(name).linear()
    if name != "MultiheadAttention, built in":  # its rows are of length 1
        assert_values(it)


@each_case
def test_keys(name):
    by_numbers = assert_keys_by_reach if name in COSINES | PADDED else assert_keys_by_shift
    by_numbers(subject(name).linear())


@each_case
def test_heads(name):
    it = subject(name).linear()
    if "pooled" in name:
        assert_pairs(it)
    else:
        assert_heads(it)


@each_case
def test_corrected(name):
    assert_corrected(subject(name))


@pytest.mark.parametrize("name", [name for name in CASES if "built in" not in name])
def test_corrected_and_converted(name):
    it = subject(name)
    plain = it.output()
    precondition(it.module, strict=True)
    assert (it.output() != plain).any()
    assert find_projections(it.module) == it.projections
    assert_corrected(it)


def test_every_class_has_projections_and_a_case():
    known = {*torchvision._SWAPPED, *torchvision._HOOKED, class_name(nn.MultiheadAttention)}
    known |= {class_name(cls) for cls in (MultiheadAttention, CrammedBertAttention, NystromAttention, SoftmaxAttention)}
    assert set(projections_torch.FOUND) == known
    assert {class_name(type(subject(name).module)) for name in CASES} == known


def test_norms_behind_projections_are_remarked_on():
    assert [name for name in CASES if subject(name).projections.remark] == [
        "Swin V2",
        "MViT, pooled",
        "MViT, queries pooled",
    ]


@torch.no_grad()
def test_inside_of_an_encoder_layer_that_would_read_the_weights_itself():
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).double().eval()
    by_hand = copy.deepcopy(layer)
    by_hand.self_attn.in_proj_weight += 0.7 * torch.eye(32, dtype=torch.float64).repeat(3, 1)
    before = layer(TOKENS)
    correct(layer.self_attn, find_projections(layer.self_attn), Spectral(0.7))
    assert equal(layer(TOKENS), by_hand(TOKENS))
    assert different(layer(TOKENS), before)
