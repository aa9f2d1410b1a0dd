"""Cases and settings that take no time: two rounds of one call on a few tokens."""

import dataclasses

import torch.nn.functional as F
from torch import nn

from conditioned_attention.bench.cases import Case
from conditioned_attention.bench.models import MODELS
from conditioned_attention.bench.operator import OperatorSettings

CASE = Case("tiny", (2, 3, 5, 4), "nowhere")
QUICK = OperatorSettings(rounds=2, compiled=False, sample_milliseconds=0.01)


def block(layers):
    from timm.models.vision_transformer import Block

    return nn.Sequential(*(Block(768, 12, mlp_ratio=0.1) for _ in range(layers)))


MODEL = dataclasses.replace(MODELS["vit_b_block"], name="tiny", about="a thin block", batch_size=1, build=block)


def three_lines(query, key, value, mask):
    output = F.scaled_dot_product_attention(query, key, value, mask)
    return output / output.detach().norm(dim=-1, keepdim=True)
