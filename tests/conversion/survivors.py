"""One model for every way in which heads, or projections, are reached, and what each has to compute once converted."""

import copy
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache

import torch
import torch.nn.functional as F
from timm.models.metaformer import Attention, LayerNormNoBias, MetaFormer
from torch import nn
from torchvision.models.swin_transformer import SwinTransformer

from conditioned_attention import precondition, register_attention, spectral_condition
from tests import models
from tests.conversion.by_hand import STRENGTH, corrections_by_hand, polar, rectangular_identity
from tests.models import output
from tests.oracle import NormalisedHeads


class Bare(nn.Module):
    """Attention that returns its heads."""

    def __init__(self, width, heads):
        super().__init__()
        self.num_heads, self.qkv = heads, nn.Linear(width, 3 * width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Block(nn.Module):
    def __init__(self, width=32, heads=4):
        super().__init__()
        self.norm, self.attn, self.proj = nn.LayerNorm(width), Bare(width, heads), nn.Linear(width, width)

    def forward(self, x):
        return x + self.proj(self.attn(self.norm(x)))


def own_model():
    register_attention(Bare, at=None)
    return nn.Sequential(nn.Linear(32, 32), Block(), Block())


def metaformer():
    options = {"token_mixers": Attention, "norm_layers": LayerNormNoBias, "use_mlp_head": False}
    return MetaFormer(1, 10, depths=(2,), dims=(64,), **options)


def swin():
    return SwinTransformer([2, 2], 16, [2], [2], [4, 3], num_classes=10, stochastic_depth_prob=0.0)


@dataclass(frozen=True)
class Survivor:
    """Where the parts of a model are: its blocks, and what an adapter on q, k, v or on the output wraps.

    ``change`` is what is done to it, a name in `CHANGES`.
    """

    build: object
    inputs: object
    blocks: tuple[str, ...]
    attention: str
    qkv: list[str] = field(default_factory=lambda: ["qkv"])
    proj: list[str] = field(default_factory=lambda: ["attn.proj"])
    change: str = "precondition"


def _tokens():
    return {"input_ids": models.tokens()}


def _tokens_once():
    """Without a cache, which recomputed blocks would fill again."""
    return {**_tokens(), "use_cache": False}


SURVIVORS = {
    "class swap: timm ViT": Survivor(
        models.timm_vit, lambda: {"x": models.images()}, ("blocks.0", "blocks.1"), "blocks.0.attn"
    ),
    "class swap: torchvision Swin": Survivor(
        swin,
        lambda: {"x": models.vectors(2, 3, 22, 18)},
        ("features.1.0", "features.1.1"),
        "features.1.1.attn",
    ),
    "class swap: torch.nn.TransformerEncoder": Survivor(
        models.torch_encoder,
        lambda: models.torch_inputs("TransformerEncoder"),
        ("layers.0", "layers.1"),
        "layers.0.self_attn",
        ["self_attn"],
        ["self_attn.out_proj"],
    ),
    "interface: Llama": Survivor(
        models.llama,
        _tokens_once,
        ("model.layers.0", "model.layers.1"),
        "model.layers.0.self_attn",
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
    ),
    "interface: BERT": Survivor(
        models.bert,
        _tokens,
        ("bert.encoder.layer.0", "bert.encoder.layer.1"),
        "bert.encoder.layer.0.attention.self",
        ["query", "key", "value"],
        ["attention.output.dense"],
    ),
    "hook: timm CAFormer": Survivor(
        metaformer,
        lambda: {"x": models.vectors(2, 1, 32, 32)},
        ("stages.0.blocks.0", "stages.0.blocks.1"),
        "stages.0.blocks.0.token_mixer",
        proj=["token_mixer.proj"],
    ),
    "hook on the output: a class of one's own": Survivor(
        own_model, lambda: {"input": models.vectors(2, 7, 32)}, ("1", "2"), "1.attn", proj=["proj"]
    ),
}


GPT2 = Survivor(
    models.gpt2,
    _tokens_once,
    ("transformer.h.0", "transformer.h.1"),
    "transformer.h.0.attn",
    ["c_attn"],
    ["attn.c_proj"],
)

SURVIVORS |= {
    "fused weight: timm ViT": replace(SURVIVORS["class swap: timm ViT"], change="spectral"),
    "weight that is read: torchvision Swin": replace(SURVIVORS["class swap: torchvision Swin"], change="spectral"),
    "packed weight: torch.nn.TransformerEncoder": replace(
        SURVIVORS["class swap: torch.nn.TransformerEncoder"], change="spectral"
    ),
    "three weights: Llama": replace(SURVIVORS["interface: Llama"], change="spectral"),
    "transposed weight: GPT-2": replace(GPT2, change="spectral"),
    "polar: timm ViT": replace(SURVIVORS["class swap: timm ViT"], change="polar"),
}

# what is done to a model; and what that adds to the rows of W_Q, W_K and W_V, where it is that
CHANGES = {
    "precondition": lambda model: precondition(model, strict=True),
    "spectral": lambda model: spectral_condition(model, STRENGTH, strict=True),
    "polar": lambda model: spectral_condition(model, correction="polar", strict=True),
}
ADDED = {"spectral": rectangular_identity, "polar": polar}


def build(name):
    torch.manual_seed(1)
    model = SURVIVORS[name].build().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.5 / parameter[0].numel() ** 0.5)
    return model


def convert(model, name):
    """What is done to this model."""
    return CHANGES[SURVIVORS[name].change](model)


def converted(name):
    model = build(name)
    convert(model, name)
    return model


def inputs(name):
    return SURVIVORS[name].inputs()


def run(model, name):
    return output(model, **inputs(name))


def loss_of(result):
    """The mean over the batch, so that the halves of a batch average to the whole."""
    return (result * torch.linspace(-1, 1, result[0].numel()).view_as(result[0])).sum() / len(result)


def gradients(model, result):
    """Of all parameters, whole, by their names without the traces of wrappers."""
    model.zero_grad()
    loss_of(result).backward()
    return {plain_name(n): whole(p.grad) for n, p in model.named_parameters() if p.grad is not None}


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def plain_name(name):
    return name.replace("_orig_mod.", "").removeprefix("module.").replace("base_model.model.", "")


@contextmanager
def oracle(model, name):
    """What the plain model computes here is what the converted one has to.

    Attention gets rows of unit length; or W_Q, W_K and W_V have C added to them.
    """
    if SURVIVORS[name].change == "precondition":
        with NormalisedHeads():
            yield
        return
    weights = {key: model.get_parameter(key) for key in corrections(name)}
    before = {key: weight.detach().clone() for key, weight in weights.items()}
    try:
        for key, weight in weights.items():
            weight.data.add_(corrections(name)[key])
        yield
    finally:
        for key, weight in weights.items():
            weight.data.copy_(before[key])


@cache
def corrections(name):
    """Of the weights as they are built."""
    return corrections_by_hand(build(name), ADDED[SURVIVORS[name].change])


@cache
def truth(name):
    """Output and gradients of the plain model under the oracle, and the plain output."""
    model = build(name)
    with torch.enable_grad(), oracle(model, name):
        result = run(model, name)
        found = gradients(model, result)
    plain = run(model, name).detach()
    assert (plain - result).norm() > 0.01 * plain.norm(), "the comparison would be vacuous"
    return result.detach(), copy.deepcopy(found), plain


def assert_close(ours, expected, what="output", rtol=2e-5):
    scale = expected.abs().max()
    assert (ours - expected).abs().max() <= rtol * scale, what


def assert_gradients(found, expected, rtol=2e-5):
    assert found.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= rtol * largest, name


def assert_conditioned(model, name):
    """It computes and learns what the outside oracle says."""
    result, expected, _ = truth(name)
    ours = run(model, name)
    assert_close(ours, result)
    assert_gradients(gradients(model, ours), expected)


def assert_plain(model, name):
    assert_close(run(model, name), truth(name)[2])
