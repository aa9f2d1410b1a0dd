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
        name: as in tables and on the command line.
        about: the model, in words.
        batch_size: of a step, unless another is asked for.
        layers: how many blocks, unless another number is asked for.
        build: number of blocks -> the model.
        batch: batch size -> random data.
        loss: of the model on the data.
    """

    name: str
    about: str
    batch_size: int
    layers: int
    build: Callable[[int], nn.Module]
    batch: Callable[[int], Batch]
    loss: Callable[[nn.Module, Batch], Tensor]

    @property
    def shape(self) -> str:
        """The model, the size of a batch and how many blocks, in words."""
        return f"{self.about}, batch {self.batch_size}, {self.layers} layer{'s' * (self.layers > 1)}"

    def of_size(self, batch_size: int | None, layers: int | None) -> StepModel:
        """The same model with another batch size and number of blocks; None changes nothing."""
        return replace(self, batch_size=batch_size or self.batch_size, layers=layers or self.layers)


def _vit(layers: int) -> Any:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(depth=layers)  # its defaults are vit_base_patch16_224


def _images(batch_size: int) -> Batch:
    return torch.randn(batch_size, 3, 224, 224), torch.randint(1000, (batch_size,))


def _labelled(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _vit_blocks(layers: int) -> nn.Module:
    from timm.models.vision_transformer import Block

    return nn.Sequential(*(Block(768, 12, qkv_bias=True) for _ in range(layers)))


def _tokens(batch_size: int) -> Batch:
    return (torch.randn(batch_size, 197, 768).requires_grad_(),)  # as inside a model, where blocks come before


def _square(model: nn.Module, batch: Batch) -> Tensor:
    return F.mse_loss(model(*batch), torch.zeros_like(batch[0]))


def _swin(layers: int) -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(depths=(2, 2, layers, 2), drop_path_rate=0.0)


def _davit(layers: int) -> nn.Module:
    from timm.models.davit import DaVit

    return DaVit(depths=(1, 1, layers, 1))


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


MODELS = {
    model.name: model
    for model in (
        StepModel("vit_b", "timm ViT-B/16, 224 pixels", 4, 12, _vit, _images, _labelled),
        StepModel("vit_b_block", "one block of it alone", 4, 1, _vit_blocks, _tokens, _square),
        StepModel("swin_t", "timm Swin-T, 224 pixels, learned bias, by class swap", 4, 6, _swin, _images, _labelled),
        StepModel(
            "davit_t", "timm DaViT-T, 224 pixels, windows and channels, by hook", 4, 3, _davit, _images, _labelled
        ),
        StepModel("gpt2", "transformers GPT-2 small, 512 tokens", 2, 12, _gpt2, _text, _language),
    )
}

find_models = partial(by_name, known=MODELS, kind="model")
