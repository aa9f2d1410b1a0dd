"""The models whose training steps are measured: full width, random weights, no dropout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conditioned_attention.bench.cases import by_name

Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class StepModel:
    """A model, its data and its loss.

    Attributes:
        name: its name in tables and on the command line.
        about: the model, in words.
        batch_size: samples in a step, unless another number is requested.
        layers: number of blocks, unless another number is requested.
        build: number of blocks -> the model.
        batch: batch size -> random data.
        loss: (model, data) -> the loss.
        left_alone: patterns of the names of attention modules that no variant changes.
    """

    name: str
    about: str
    batch_size: int
    layers: int
    build: Callable[[int], nn.Module]
    batch: Callable[[int], Batch]
    loss: Callable[[nn.Module, Batch], Tensor]
    left_alone: tuple[str, ...] = ()

    @property
    def shape(self) -> str:
        """The model, its batch size and its number of blocks, in words."""
        return f"{self.about}, batch {self.batch_size}, {self.layers} layer{'s' * (self.layers > 1)}"

    def of_size(self, batch_size: int | None, layers: int | None) -> StepModel:
        """The same model with another batch size and number of blocks; None changes nothing."""
        return replace(self, batch_size=batch_size or self.batch_size, layers=layers or self.layers)


def _timm(name: str, *stages: int) -> Callable[[int], nn.Module]:
    """A function that builds timm's model of this name; with ``stages``, its blocks are in the third of four stages."""

    def build(layers: int) -> nn.Module:
        import timm

        depth = {"depths": (*stages[:2], layers, stages[2])} if stages else {"depth": layers}
        return timm.create_model(name, drop_path_rate=0.0, **depth)

    return build


def _volo(layers: int) -> Any:
    from timm.models.volo import VOLO  # as in volo_d1_224, which takes no other depth

    return VOLO([4, 4, layers, 2], embed_dims=[192, 384, 384, 384], num_heads=[6, 12, 12, 12])


def _images(batch_size: int) -> Batch:
    return torch.randn(batch_size, 3, 224, 224), torch.randint(1000, (batch_size,))


def _labelled(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _vit_blocks(layers: int) -> nn.Module:
    from timm.models.vision_transformer import Block

    return nn.Sequential(*(Block(768, 12, qkv_bias=True) for _ in range(layers)))


def _tokens(batch_size: int) -> Batch:
    return (torch.randn(batch_size, 197, 768).requires_grad_(),)  # as inside a model, after other blocks


def _square(model: nn.Module, batch: Batch) -> Tensor:
    return F.mse_loss(model(*batch), torch.zeros_like(batch[0]))


def _gpt2(layers: int) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=layers, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, use_cache=False)
    config._attn_implementation = "sdpa"
    return GPT2LMHeadModel(config)


def _text(batch_size: int) -> Batch:
    return (torch.randint(50257, (batch_size, 512)),)


def _language(model: nn.Module, batch: Batch) -> Tensor:
    (ids,) = batch
    logits = model(input_ids=ids).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def _arena(name: str, task: str, length: int, classes: int, *, vocabulary: int = 512, pairs: bool = False) -> StepModel:
    """The Nyströmformer of the Long Range Arena on one of its tasks, with padding at the end, on a small batch."""

    def build(layers: int) -> nn.Module:
        from conditioned_attention.experiments.models.lra_encoder import LRAEncoder

        encoder = LRAEncoder(length=length, layers=layers, dropout=0.0, attention_dropout=0.0)
        return encoder.build(vocabulary, classes, pairs=pairs)

    def batch(batch_size: int) -> Batch:
        return (*(_padded(batch_size, length) for _ in range(1 + pairs)), torch.randint(classes, (batch_size,)))

    tokens = f"{'2 × ' * pairs}{length:,} tokens"
    return StepModel(name, f"Nyströmformer of the Long Range Arena, {task}, {tokens}", 4, 2, build, batch, _classified)


def _padded(batch_size: int, length: int) -> Tensor:
    """Random ids, of which a quarter to all are tokens and the rest is padding."""
    counts = torch.randint(length // 4, length + 1, (batch_size, 1))
    return torch.randint(1, 16, (batch_size, length)) * (torch.arange(length) < counts)


def _classified(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(*batch[:-1]), batch[-1])


def _vision(
    name: str, about: str, layers: int, build: Callable[[int], nn.Module], left_alone: tuple[str, ...] = ()
) -> StepModel:
    return StepModel(name, f"timm {about}", 4, layers, build, _images, _labelled, left_alone)


MODELS = {
    model.name: model
    for model in (
        _vision("vit_b", "ViT-B/16, 224 pixels", 12, _timm("vit_base_patch16_224")),
        StepModel("vit_b_block", "one block of it alone", 4, 1, _vit_blocks, _tokens, _square),
        _vision(
            "swin_t",
            "Swin-T, 224 pixels, learned bias, by class swap",
            6,
            _timm("swin_tiny_patch4_window7_224", 2, 2, 2),
        ),
        _vision("davit_t", "DaViT-T, 224 pixels, windows and channels, by hook", 3, _timm("davit_tiny", 1, 1, 1)),
        StepModel("gpt2", "transformers GPT-2 small, 512 tokens", 2, 12, _gpt2, _text, _language),
        _arena("lra_listops", "ListOps", 2048, 10, vocabulary=32),
        _arena("lra_text", "Text", 4096, 2),
        _arena("lra_retrieval", "Retrieval", 4096, 2, pairs=True),
        _arena("lra_image", "Image", 1024, 10),
        _arena("lra_pathfinder", "Pathfinder", 1024, 2),
        _vision("deit_b", "DeiT-B/16, 224 pixels", 12, _timm("deit_base_patch16_224")),
        _vision("swin_b", "Swin-B, 224 pixels", 18, _timm("swin_base_patch4_window7_224", 2, 2, 2)),
        _vision("xcit_m24", "XCiT-M24/16, 224 pixels", 24, _timm("xcit_medium_24_p16_224")),
        _vision("davit_b", "DaViT-B, 224 pixels", 9, _timm("davit_base", 1, 1, 1)),
        # outlook attention has no keys, so that spectral conditioning refuses it
        _vision("volo_d1", "VOLO-D1, 224 pixels, without its outlooks", 8, _volo, ("network.0.*",)),
    )
}
QUICK = tuple(MODELS)[:5]  # what is measured by default

find_models = partial(by_name, known=MODELS, kind="model")
