"""torchvision's attention classes with their forward rewritten, so that their heads pass through a `HeadTransform`.

This file is imported only for models that contain one of them.  Unlike torchvision's, these forwards call ``qkv`` and
``proj`` as modules (where the bias of ``qkv`` is used as it is), so that hooks and adapters on them take part.

Shapes: B batch, W windows of an image, H heads, N tokens of a window, D head width, C channels; an image has
2 dimensions (height, width) or 3 (frames, height, width).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2
from torchvision.models.video.mvit import MultiscaleAttention, _add_rel_pos
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d

from conditioned_attention.functional import attend
from conditioned_attention.preconditioner import TRANSFORM, HeadTransform
from conditioned_attention.sites.swap import swapped_for


@swapped_for(ShiftedWindowAttention)
class ConditionedShiftedWindowAttention(ShiftedWindowAttention):
    """Swin: windows of a padded and rolled image."""

    def forward(self, x: Tensor) -> Tensor:
        return _in_windows(self, x, self.window_size, self.get_relative_position_bias(), self.qkv)


@swapped_for(ShiftedWindowAttentionV2)
class ConditionedShiftedWindowAttentionV2(ShiftedWindowAttentionV2):
    """Swin V2: logits are cosines times a learned factor, and the bias of the keys counts as zero."""

    def forward(self, x: Tensor) -> Tensor:
        # Not by calling the module, which would add the bias of the keys, whose gradient has to be exactly zero.
        project = partial(F.linear, weight=self.qkv.weight, bias=_without_keys(self.qkv.bias))
        factor = self.logit_scale.clamp(max=math.log(100.0)).exp()
        return _in_windows(self, x, self.window_size, self.get_relative_position_bias(), project, factor)


@swapped_for(ShiftedWindowAttention3d)
class ConditionedShiftedWindowAttention3d(ShiftedWindowAttention3d):
    """Video Swin: windows shrink to the size of the clip."""

    def forward(self, x: Tensor) -> Tensor:
        window = _shrunk(x, self.window_size)
        return _in_windows(self, x, window, self.get_relative_position_bias(window), self.qkv)


@swapped_for(MultiscaleAttention)
class ConditionedMultiscaleAttention(MultiscaleAttention):
    """MViT: queries, keys and values are pooled; C comes before the pooled queries are added to the heads."""

    def forward(self, x: Tensor, thw: tuple[int, int, int]) -> tuple[Tensor, tuple[int, int, int]]:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).transpose(1, 3).unbind(2)
        k, k_thw = (k, thw) if self.pool_k is None else self.pool_k(k, thw)
        v = v if self.pool_v is None else self.pool_v(v, thw)[0]
        q, thw = (q, thw) if self.pool_q is None else self.pool_q(q, thw)
        bias = None
        if self.rel_pos_h is not None:
            zeros = q.new_zeros(b, self.num_heads, q.shape[2], k.shape[2])
            bias = _add_rel_pos(zeros, q, thw, k_thw, self.rel_pos_h, self.rel_pos_w, self.rel_pos_t)
        heads = attend(self.__dict__[TRANSFORM], q, k, v, bias, scale=self.scaler)
        if self.residual_pool:
            heads = heads + (q if self.residual_with_cls_embed else F.pad(q[:, :, 1:], (0, 0, 1, 0)))
        return self.project(heads.transpose(1, 2).reshape(b, -1, self.output_dim)), thw


def _in_windows(
    module: Any,
    x: Tensor,
    window: Sequence[int],
    relative: Tensor,
    project: Callable[[Tensor], Tensor],
    factor: Tensor | None = None,
) -> Tensor:
    """Attention (B, ..., C) in windows, where ``project`` makes queries, keys and values; the rest as in `_heads`."""
    shift = _shift(x, window, module.shift_size)
    bias = _bias(relative, x, window, shift)
    dropout_p = module.attention_dropout if module.training else 0.0
    qkv = project(_windows(x, window, shift))
    heads = _heads(module.__dict__[TRANSFORM], qkv, module.num_heads, bias, dropout_p, factor)
    return _image(F.dropout(module.proj(heads), module.dropout, module.training), x, window, shift)


def _heads(
    transform: HeadTransform, qkv: Tensor, number: int, bias: Tensor, dropout_p: float, factor: Tensor | None = None
) -> Tensor:
    """Transformed heads (B·W, N, C) of ``qkv`` (B·W, N, 3·C); with ``factor`` (H, 1, 1) logits are cosines times it."""
    q, k, v = qkv.unflatten(-1, (3, number, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    scale = None
    if factor is not None:
        q, k, scale = F.normalize(q, dim=-1) * factor, F.normalize(k, dim=-1), 1.0
    if bias.shape[0] > 1:  # one for each window of an image
        bias = bias.repeat(q.shape[0] // bias.shape[0], 1, 1, 1)
    return attend(transform, q, k, v, bias, dropout_p, scale=scale).transpose(1, 2).flatten(2)


def _without_keys(bias: Tensor | None) -> Tensor | None:
    """The bias of q, k and v, with zeros for k."""
    if bias is None:
        return None
    q, k, v = bias.chunk(3)
    return torch.cat((q, torch.zeros_like(k), v))


def _shrunk(x: Tensor, window: Sequence[int]) -> list[int]:
    return [min(size, w) for size, w in zip(x.shape[1:-1], window)]


def _shift(x: Tensor, window: Sequence[int], shift: Sequence[int]) -> list[int]:
    """How far an image (B, ..., C) is rolled: not along a dimension that one window covers."""
    return [0 if size <= w else s for size, w, s in zip(x.shape[1:-1], window, shift)]


def _windows(x: Tensor, window: Sequence[int], shift: Sequence[int]) -> Tensor:
    """An image (B, ..., C), padded and rolled -> its windows (B·W, N, C)."""
    padding = [n for size, w in zip(x.shape[1:-1], window) for n in (-size % w, 0)]
    x = F.pad(x, (0, 0, *reversed(padding)))
    if any(shift):
        x = x.roll([-s for s in shift], list(range(1, x.dim() - 1)))
    return _partition(x, window)


def _partition(x: Tensor, window: Sequence[int]) -> Tensor:
    """(B, ..., C), of multiples of the window -> (B·W, N, C)."""
    n = len(window)
    for i, w in enumerate(window):
        x = x.unflatten(1 + 2 * i, (-1, w))
    outside, inside = range(1, 2 * n, 2), range(2, 2 * n + 1, 2)
    return x.permute(0, *outside, *inside, -1).flatten(n + 1, -2).flatten(0, n)


def _image(windows: Tensor, like: Tensor, window: Sequence[int], shift: Sequence[int]) -> Tensor:
    """The inverse of `_windows`: (B·W, N, C) -> an image of the size of ``like``."""
    n, sizes = len(window), like.shape[1:-1]
    numbers = [-(-size // w) for size, w in zip(sizes, window)]
    x = windows.reshape(like.shape[0], *numbers, *window, -1)
    x = x.permute(0, *(axis for i in range(1, n + 1) for axis in (i, n + i)), -1)
    for i in range(n):
        x = x.flatten(i + 1, i + 2)
    if any(shift):
        x = x.roll(list(shift), list(range(1, n + 1)))
    return x[(slice(None), *(slice(size) for size in sizes))].contiguous()


def _bias(relative: Tensor, x: Tensor, window: Sequence[int], shift: Sequence[int]) -> Tensor:
    """What is added to the logits: ``relative`` (1, H, N, N), and -100 between tokens that only rolling put together.

    Returns (1, H, N, N), or (W, H, N, N) where something was rolled.
    """
    if not any(shift):
        return relative
    sizes = [-(-size // w) * w for size, w in zip(x.shape[1:-1], window)]
    sides = torch.zeros(1, *sizes, 1, dtype=torch.long, device=x.device)
    for i, (size, s) in enumerate(zip(sizes, shift)):
        rolled = torch.arange(size, device=x.device) >= size - s
        sides = sides + rolled.long().mul(2**i).view([-1 if d == i + 1 else 1 for d in range(len(sizes) + 2)])
    side = _partition(sides, window)  # (W, N, 1): the sides from which a token was rolled
    apart = (side != side.transpose(1, 2)).unsqueeze(1)
    return relative + torch.zeros_like(apart, dtype=relative.dtype).masked_fill(apart, -100.0)


# What branches on sizes, or checks its arguments, is one node for torch.fx, as in torchvision.
for _function in (attend, _add_rel_pos, _heads, _without_keys, _shrunk, _shift, _windows, _image, _bias):
    torch.fx.wrap(_function.__name__)
