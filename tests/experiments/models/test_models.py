"""The networks that are trained: what their weights are before training, and what they compute."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from conditioned_attention import precondition, restore
from conditioned_attention.experiments.models.gpt import GPT
from conditioned_attention.experiments.models.timm_model import TimmModel
from conditioned_attention.experiments.models.vision_transformer import VisionTransformer

VIT = VisionTransformer(layers=2)
FAMILIES = [VIT, dataclasses.replace(VIT, library="timm"), GPT(layers=2, hidden_size=64)]
LIBRARIES = ("transformers", "timm")
each_family = pytest.mark.parametrize("settings", FAMILIES, ids=["transformers", "timm", "gpt2"])


def build(settings, seed=0, **changes):
    torch.manual_seed(seed)
    settings = dataclasses.replace(settings, **changes)
    return (settings.build() if isinstance(settings, GPT) else settings.build(8, 1, 10)).eval()


def images():
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def logits(model, x):
    output = model(x)
    return output if isinstance(output, torch.Tensor) else output.logits


def in_timms_names(weights):
    """The weights of Hugging Face's model under the names of timm's."""
    names = [
        ("vit.embeddings.cls_token", "cls_token"), ("vit.embeddings.position_embeddings", "pos_embed"),
        ("vit.embeddings.patch_embeddings.projection", "patch_embed.proj"), ("vit.layers", "blocks"),
        ("attention.o_proj", "attn.proj"), ("layernorm_before", "norm1"), ("layernorm_after", "norm2"),
        ("vit.layernorm", "norm"), ("classifier", "head"),
    ]  # fmt: skip
    found = {}
    for key, weight in weights.items():
        for old, new in names:
            key = key.replace(old, new)
        found[key] = weight
    for key in [key for key in found if ".attention.q_proj." in key]:
        parts = [found.pop(key.replace("q_proj", f"{role}_proj")) for role in "qkv"]
        found[key.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
    if "norm.weight" in found:
        return found
    return {key.replace("attn", "attention"): weight for key, weight in found.items()}  # norms behind the sums


# The start


@each_family
@pytest.mark.parametrize(("init", "std"), [("width", 0.02 * math.sqrt(768 / 64)), (0.05, 0.05), (3.0, 3.0)])
def test_every_weight_starts_from_one_normal_distribution(settings, init, std):
    """Not truncated either, which a library would do at 2."""
    model, drawn = build(settings, init=init, residual_scale="none"), 0
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert (parameter == (0.0 if name.endswith("bias") else 1.0)).all(), name
            continue
        numbers, drawn = parameter.detach().flatten() / std, drawn + parameter.numel()
        assert numbers.square().mean().item() == pytest.approx(1.0, abs=5 * math.sqrt(2 / len(numbers))), name
        assert numbers.mean().item() == pytest.approx(0.0, abs=5 / math.sqrt(len(numbers))), name
    largest = max(p.detach().abs().max().item() for p in model.parameters() if p.dim() > 1) / std
    assert math.sqrt(2 * math.log(drawn)) - 0.7 < largest < 6, "the tail is there"
    assert all(module.bias is not None for module in model.modules() if isinstance(module, nn.LayerNorm))


@pytest.mark.parametrize("changes", [{}, {"init": 0.1, "qk_scale": 2.0, "vo_scale": 3.0, "residual_scale": "depth"}])
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("pooling", ["token", "mean"])
def test_both_libraries_start_the_same_model(pooling, norm, changes):
    """Number by number, and so it computes the same function."""
    changes = {**changes, "pooling": pooling, "norm": norm}
    hf, timm = (build(VIT, library=library, **changes) for library in LIBRARIES)
    theirs = in_timms_names(hf.state_dict())
    assert theirs.keys() == timm.state_dict().keys()
    for key, weight in timm.state_dict().items():
        assert torch.equal(weight, theirs[key]), key
    torch.testing.assert_close(logits(hf, images()), logits(timm, images()), rtol=1e-5, atol=1e-5)
    assert not torch.equal(logits(hf, images()), logits(build(VIT, 1, **changes), images()))


def test_at_a_width_that_is_no_multiple_of_4_they_start_alike():
    """The fused weight is drawn at once and gets other numbers; its norm, and the function, are the same."""
    odd = dataclasses.replace(VIT, hidden_size=30, heads=5)
    hf, timm = (build(odd, library=library) for library in LIBRARIES)
    theirs = in_timms_names(hf.state_dict())
    for key, weight in timm.state_dict().items():
        if weight.dim() > 1 and weight.numel() > 200:
            assert weight.std().item() == pytest.approx(theirs[key].std().item(), rel=0.2), key
    timm.load_state_dict(theirs)
    torch.testing.assert_close(logits(hf, images()), logits(timm, images()), rtol=1e-5, atol=1e-5)


@each_family
def test_a_library_starts_as_it_does_without_us(settings):
    from timm.models.vision_transformer import VisionTransformer as Timm
    from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTForImageClassification

    model = build(settings, init="library")
    torch.manual_seed(0)
    if isinstance(settings, GPT):
        ends = {"bos_token_id": None, "eos_token_id": None, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        sizes = {"vocab_size": 256, "n_positions": 128, "n_embd": 64, "n_layer": 2, "n_head": 4}
        theirs = GPT2LMHeadModel(GPT2Config(**sizes, **ends))
    elif settings.library == "timm":
        theirs = Timm(img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=64, depth=2, num_heads=8)
    else:
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8, "intermediate_size": 256}
        theirs = ViTForImageClassification(
            ViTConfig(image_size=8, patch_size=2, num_channels=1, num_labels=10, **sizes)
        )
    assert model.state_dict().keys() == theirs.state_dict().keys()
    for key, weight in theirs.state_dict().items():
        assert torch.equal(weight, model.state_dict()[key]), key
    norms = [[m.eps for m in each.modules() if isinstance(m, nn.LayerNorm)] for each in (model, theirs)]
    assert norms[0] == norms[1]


def roles(settings, model):
    """W_Q, W_K, W_V, W_O and the output of the MLP in the second block, by hand, as (out, in)."""
    if isinstance(settings, GPT):
        block = model.transformer.h[1]
        q, k, v = block.attn.c_attn.weight.T.chunk(3)
        return q, k, v, block.attn.c_proj.weight, block.mlp.c_proj.weight
    if settings.library == "timm":
        block = model.blocks[1]
        return *block.attn.qkv.weight.chunk(3), block.attn.proj.weight, block.mlp.fc2.weight
    block = model.vit.layers[1]
    attention = block.attention
    return *(p.weight for p in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)), (
        block.mlp.fc2.weight
    )


@pytest.mark.one_in(3)
@each_family
@pytest.mark.parametrize("init", ["width", "library", 0.03])
def test_factors_act_on_what_they_name(settings, init):
    plain = build(settings, init=init)
    for changes, factors in (
        ({"qk_scale": 3.0}, (3, 3, 1, 1, 1)),
        ({"vo_scale": 0.5}, (1, 1, 0.5, 0.5, 1)),
        ({"qk_scale": 3.0, "vo_scale": 0.5}, (3, 3, 0.5, 0.5, 1)),
    ):
        scaled = build(settings, init=init, **changes)
        for before, after, factor in zip(roles(settings, plain), roles(settings, scaled), factors, strict=True):
            assert torch.equal(after, factor * before)
        moved = [key for key, weight in plain.state_dict().items() if not torch.equal(weight, scaled.state_dict()[key])]
        assert all("att" in key and key.endswith("weight") for key in moved), moved


@each_family
@pytest.mark.parametrize("init", ["width", "library", 0.03])
def test_residual_scale(settings, init):
    """By 1/√(2 · layers) at the end of both branches, and nowhere else; GPT-2's own start has it."""
    plain, scaled = (build(settings, init=init, residual_scale=word) for word in ("none", "depth"))
    for before, after, factor in zip(roles(settings, plain), roles(settings, scaled), (1, 1, 1, 0.5, 0.5), strict=True):
        torch.testing.assert_close(after, factor * before)
    default = build(settings, init=init)
    same = scaled if isinstance(settings, GPT) else plain
    for key, weight in same.state_dict().items():
        assert torch.equal(weight, default.state_dict()[key]), key


@pytest.mark.parametrize("cls", [VisionTransformer, GPT])
@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"init": "xavier"}, ValueError, "init='xavier' is unknown; valid are 'library', 'width', float, int"),
        ({"init": 0.0}, ValueError, r"init must be positive and finite, got 0\.0"),
        ({"init": math.nan}, ValueError, "init must be positive and finite, got nan"),
        ({"init": True}, TypeError, "init must be a number, got True"),
        ({"qk_scale": -1.0}, ValueError, r"qk_scale must be positive and finite, got -1\.0"),
        ({"vo_scale": math.inf}, ValueError, "vo_scale must be positive and finite, got inf"),
        ({"vo_scale": "2"}, TypeError, "vo_scale must be a number, got '2'"),
        ({"residual_scale": "layers"}, ValueError, "residual_scale='layers' is unknown; valid are 'none', 'depth'"),
    ],
)
def test_wrong_settings(cls, changes, error, words):
    with pytest.raises(error, match=words):
        cls(**changes)


# What the classifier reads


@pytest.mark.parametrize("library", LIBRARIES)
def test_pooling_by_hand(library):
    model, seen = build(VIT, library=library, pooling="mean"), []
    norm, head = (model.norm, model.head) if library == "timm" else (model.vit.layernorm, model.classifier)
    norm.register_forward_hook(lambda module, args, output: seen.append(output))
    result = logits(model, images())
    (tokens,) = seen
    assert tokens.shape == (3, 17, 64), "16 patches, and the class token"
    torch.testing.assert_close(result, head(tokens[:, 1:].mean(1)))
    by_token = build(VIT, library=library)
    assert by_token.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(logits(by_token, images()), head(tokens[:, 0]))
    assert not torch.allclose(result, logits(by_token, images()), rtol=1e-2)


# Where the layer norms stand


@pytest.mark.parametrize("library", LIBRARIES)
def test_norms_behind_the_sums_by_hand(library):
    model, x, seen = build(VIT, library=library, norm="post"), images(), []
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # norms with gains of 1 would hide whose is whose
            if "norm" in name:
                parameter.add_(0.3 * torch.randn(64))
    blocks, head = (model.blocks, model.head) if library == "timm" else (model.vit.layers, model.classifier)
    blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    result = logits(model, x)
    (tokens,) = seen
    for block in blocks:
        heads = block.attention(tokens)
        tokens = block.norm1(tokens + (heads if library == "timm" else heads[0]))
        tokens = block.norm2(tokens + block.mlp(tokens))
    torch.testing.assert_close(result, head(tokens[:, 0]))
    assert sum(isinstance(module, nn.LayerNorm) for module in model.modules()) == 4, "2 a block, and none at the end"


@pytest.mark.parametrize("library", LIBRARIES)
def test_attention_between_such_norms_is_converted(library):
    model, plain = (build(VIT, library=library, norm="post") for _ in range(2))
    assert len(precondition(model, strict=True).converted) == 2
    assert not torch.allclose(logits(model, images()), logits(plain, images()), rtol=1e-2)
    restore(model)
    assert torch.equal(logits(model, images()), logits(plain, images()))


def test_a_model_of_timm_is_described_as_it_is_built():
    sizes = {"in_chans": 1, "num_classes": 4}
    for name, expected in (("test_vit", {"img_size": 32, **sizes}), ("test_resnet", sizes)):
        settings = TimmModel(name)
        assert settings.arguments(32, 1, 4) == expected
        assert settings.build(32, 1, 4).eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 4)
    for call in (TimmModel("test_vit").build, TimmModel("test_vit").arguments):
        with pytest.raises(TypeError, match="unsupported operand"):  # and not a size that nobody asked for
            call("32", 1, 4)
