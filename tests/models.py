"""Small models of every kind that conversion knows."""

from dataclasses import dataclass

import timm.layers.weight_init
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models import vision_transformer as torchvision_vision_transformer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from conditioned_attention.preconditioner import HeadTransform

# Of a model without numbers each weight's start would take 9 ms in PyTorch's operators for the meta device
_truncated_normal = timm.layers.weight_init._trunc_normal_
timm.layers.weight_init._trunc_normal_ = lambda weight, *args: (
    weight if weight.is_meta else _truncated_normal(weight, *args)
)

_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
VOCABULARY = 99


def bert():
    return BertForMaskedLM(BertConfig(vocab_size=VOCABULARY, **_SIZES))


def gpt2():
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=VOCABULARY, bos_token_id=1))


def llama():
    """Grouped queries: 4 query heads on 2 key heads."""
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=2, **_SIZES))


def t5():
    """A position bias in every layer, and cross-attention."""
    return T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    )


def clip():
    """Two towers with configs of their own."""
    text = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **_SIZES}
    return CLIPModel(CLIPConfig(text_config=text, vision_config={"image_size": 8, "patch_size": 4, **_SIZES}))


def vit():
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=2, num_channels=1, num_labels=10, **_SIZES))


def timm_vit(**kwargs):
    return VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=32, depth=2, num_heads=4, **kwargs
    )


def torch_mha():
    """A bare module, with all that it can append to the keys."""
    return nn.MultiheadAttention(32, 4, kdim=24, vdim=40, add_bias_kv=True, add_zero_attn=True)


def torch_encoder():
    """Without nested tensors, which have no rows of padding to compare."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def torch_transformer():
    """Self-attention of an encoder layer, then self- and cross-attention of a decoder layer."""
    return nn.Transformer(32, 4, 1, 1, 64, dropout=0.0)


def torchvision_vit():
    return torchvision_vision_transformer.VisionTransformer(
        image_size=8, patch_size=2, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=10
    )


def tokens(batch=2, length=7):
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(5))


def images(channels=1):
    return torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(5))


def vectors(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def torch_inputs(name):
    padding = torch.tensor([[False] * 5 + [True] * 2, [False] * 7])  # True = ignore
    if name == "TransformerEncoder":
        return {"src": vectors(2, 7, 32), "src_key_padding_mask": padding}
    if name == "Transformer":
        causal = {"tgt_mask": nn.Transformer.generate_square_subsequent_mask(6), "tgt_is_causal": True}
        paddings = {"src_key_padding_mask": padding, "memory_key_padding_mask": padding}
        return {"src": vectors(7, 2, 32), "tgt": vectors(6, 2, 32), **causal, **paddings}
    keys = {"key": vectors(7, 2, 24), "value": vectors(7, 2, 40), "key_padding_mask": padding}
    return {"query": vectors(5, 2, 32), **keys, "need_weights": False}


def inputs(model):
    """What the model is called with, padding included where it reads a mask."""
    name = type(model).__name__
    if name in ("TransformerEncoder", "Transformer") or isinstance(model, nn.MultiheadAttention):
        return torch_inputs(name)
    if name == "VisionTransformer":
        return {"x": images(model.conv_proj.in_channels if hasattr(model, "conv_proj") else 1)}
    if name == "ViTForImageClassification":
        return {"pixel_values": images()}
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[0, 5:] = 0
    text = {"input_ids": tokens(), "attention_mask": mask}
    if name == "CLIPModel":
        return {**text, "pixel_values": images(3)}
    return {**text, "decoder_input_ids": tokens()} if name == "T5ForConditionalGeneration" else text


def output(model, **kwargs):
    result = model(**(kwargs or inputs(model)))
    return result if isinstance(result, torch.Tensor) else result[0]


def weigh(result):
    """A loss; not the mean square, which behind a layer norm has no gradient."""
    return (result * torch.linspace(-1, 1, result.numel()).view_as(result)).sum()


MODELS = {
    "bert": (bert, 2),
    "gpt2": (gpt2, 2),
    "llama": (llama, 2),
    "t5": (t5, 6),
    "clip": (clip, 4),
    "vit": (vit, 2),
    "timm_vit": (timm_vit, 2),
    "torch_mha": (torch_mha, 1),
    "torch_encoder": (torch_encoder, 2),
    "torch_transformer": (torch_transformer, 3),
    "torchvision_vit": (torchvision_vit, 2),
}


def build(name):
    """The model, in evaluation mode, with weights large enough that conditioning shows."""
    torch.manual_seed(1)
    model = MODELS[name][0]().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=1.5 / parameter[0].numel() ** 0.5)
    return model


@dataclass(frozen=True)
class Identity(HeadTransform):
    """C = 1: what the plain model computes, by the converted one's code."""

    kind = "identity"

    def __call__(self, output, weights=None):
        return output
