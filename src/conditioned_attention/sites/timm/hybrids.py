"""timm's attention between convolutions, with the forward rewritten where no hook could be exact.

The softmax is explicit in all of these classes, as in timm, and its weights go to the transform with the heads.
Where heads are mixed after the softmax, the weights are the mixed ones: those that are multiplied with v.
Shapes: B batch, H heads, N queries, M keys, D head width, C channels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from timm.layers.attention2d import MultiQueryAttentionV2
from timm.models.efficientformer_v2 import Attention2d, Attention2dDownsample
from timm.models.efficientvit_msra import CascadedGroupAttention
from timm.models.mvitv2 import MultiScaleAttention, cal_rel_pos_type, reshape_post_pool, reshape_pre_pool
from timm.models.shvit import SHSA
from timm.models.volo import OutlookAttention
from torch import Tensor, nn

from conditioned_attention.functional import behind
from conditioned_attention.preconditioner import TRANSFORM
from conditioned_attention.sites.swap import swapped_for


@swapped_for(OutlookAttention, queries=False)
class ConditionedOutlookAttention(OutlookAttention):
    """VOLO: a row is one place of a k × k window, taken before the windows are added up where they overlap."""

    def forward(self, x: Tensor) -> Tensor:
        b, height, width, c = x.shape
        area = self.kernel_size**2
        n = math.ceil(height / self.stride) * math.ceil(width / self.stride)
        v = self.unfold(self.v(x).permute(0, 3, 1, 2)).reshape(b, self.num_heads, -1, area, n).permute(0, 1, 4, 3, 2)
        centres = self.pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        logits = self.attn(centres).reshape(b, n, self.num_heads, area, area).transpose(1, 2) * self.scale
        weights = self.attn_drop(logits.softmax(dim=-1))  # (B, H, windows, area, area)
        # Each window counts as an image of its own.
        rows, weights = (t.transpose(1, 2).flatten(0, 1) for t in (weights @ v, weights))
        heads = behind(self.__dict__[TRANSFORM], rows, weights).unflatten(0, (b, n))
        windows = heads.permute(0, 2, 4, 3, 1).reshape(b, c * area, n)
        y = F.fold(windows, (height, width), self.kernel_size, padding=self.padding, stride=self.stride)
        z: Tensor = self.proj_drop(self.proj(y.permute(0, 2, 3, 1)))
        return z


@swapped_for(MultiScaleAttention, queries=False)
class ConditionedMultiScaleAttention(MultiScaleAttention):
    """MViT-v2: the transform comes before the pooled queries are added."""

    def forward(self, x: Tensor, feat_size: list[int]) -> tuple[Tensor, list[int]]:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q, q_size = self._pooled(q, self.pool_q, self.norm_q, feat_size)
        k, k_size = self._pooled(k, self.pool_k, self.norm_k, feat_size)
        v, _ = self._pooled(v, self.pool_v, self.norm_v, feat_size)
        logits = (q * self.scale) @ k.transpose(-2, -1)
        if self.rel_pos_type == "spatial":
            logits = cal_rel_pos_type(logits, q, self.has_cls_token, q_size, k_size, self.rel_pos_h, self.rel_pos_w)
        weights = logits.softmax(dim=-1)
        heads = behind(self.__dict__[TRANSFORM], weights @ v, weights)
        if self.residual_pooling:
            heads = heads + q
        return self.proj(heads.transpose(1, 2).reshape(b, -1, self.dim_out)), q_size

    def _pooled(
        self, x: Tensor, pool: nn.Module | None, norm: nn.Module | None, size: list[int]
    ) -> tuple[Tensor, list[int]]:
        """Heads (B, H, N, D) pooled over the image, and the size of what is left of it."""
        if pool is not None:
            image, token = reshape_pre_pool(x, size, self.has_cls_token)
            x, size = reshape_post_pool(pool(image), self.num_heads, token)
        return x if norm is None else norm(x), size


@swapped_for(Attention2d, queries=False)
class ConditionedAttention2d(Attention2d):
    """EfficientFormer-v2: C comes before local branch, upsampling and activation; weights are mixed across heads."""

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        if self.stride_conv is not None:
            x = self.stride_conv(x)
        v = self.v(x)
        q, k, values = (t.reshape(b, self.num_heads, -1, self.N) for t in (self.q(x), self.k(x), v))  # (B, H, D, N)
        logits = (q.transpose(2, 3) @ k) * self.scale + self.get_attention_biases(x.device)
        weights = self.talking_head2(self.talking_head1(logits).softmax(dim=-1))
        heads = behind(self.__dict__[TRANSFORM], weights @ values.transpose(2, 3), weights)
        y = heads.transpose(2, 3).unflatten(3, self.resolution).flatten(1, 2) + self.v_local(v)
        if self.upsample is not None:
            y = self.upsample(y)
        z: Tensor = self.proj(self.act(y))
        return z


@swapped_for(Attention2dDownsample, queries=False)
class ConditionedAttention2dDownsample(Attention2dDownsample):
    """EfficientFormer-v2 with fewer queries than keys: the transform comes before the local branch and activation."""

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        v = self.v(x)
        q = self.q(x).reshape(b, self.num_heads, -1, self.N2)
        k, values = (t.reshape(b, self.num_heads, -1, self.N) for t in (self.k(x), v))  # (B, H, D, N)
        logits = (q.transpose(2, 3) @ k) * self.scale + self.get_attention_biases(x.device)
        weights = logits.softmax(dim=-1)
        heads = behind(self.__dict__[TRANSFORM], weights @ values.transpose(2, 3), weights)
        y = heads.transpose(2, 3).unflatten(3, self.resolution2).flatten(1, 2) + self.v_local(v)
        z: Tensor = self.proj(self.act(y))
        return z


@swapped_for(CascadedGroupAttention, queries=False)
class ConditionedCascadedGroupAttention(CascadedGroupAttention):
    """EfficientViT of MSRA: the transformed output of each head goes to the projection and into the next head.

    The rule "before anything else happens to it" leaves no choice: the next head's input is one of these things.
    The transform is called once per head.
    """

    def forward(self, x: Tensor) -> Tensor:
        parts = x.chunk(len(self.qkvs), dim=1)
        biases = self.get_attention_biases(x.device)
        outputs: list[Tensor] = []
        for part, project, convolve, bias in zip(parts, self.qkvs, self.dws, biases):
            qkv = project(part if not outputs else outputs[-1] + part)
            q, k, v = qkv.split([self.key_dim, self.key_dim, self.val_dim], dim=1)
            q, k, v = convolve(q).flatten(2) * self.scale, k.flatten(2), v.flatten(2)  # (B, D, N)
            weights = (q.transpose(1, 2) @ k + bias).softmax(dim=-1)
            outputs.append(_one_head(self, weights, v).unflatten(2, x.shape[2:]))
        y: Tensor = self.proj(torch.cat(outputs, 1))
        return y


@swapped_for(SHSA, queries=False)
class ConditionedSHSA(SHSA):
    """SHViT: one head on some of the channels; the transform comes before the others are put beside it."""

    def forward(self, x: Tensor) -> Tensor:
        attended, others = x.split([self.pdim, self.dim - self.pdim], dim=1)
        qkv = self.qkv(self.pre_norm(attended)).flatten(2)
        q, k, v = qkv.split([self.qk_dim, self.qk_dim, self.pdim], dim=1)  # (B, D, N)
        weights = ((q.transpose(1, 2) @ k) * self.scale).softmax(dim=-1)
        head = _one_head(self, weights, v).unflatten(2, x.shape[2:])
        y: Tensor = self.proj(torch.cat((head, others), dim=1))
        return y


@swapped_for(MultiQueryAttentionV2, queries=False)
class ConditionedMultiQueryAttentionV2(MultiQueryAttentionV2):
    """Many queries on one key and value head; its output projection is a bare parameter."""

    def forward(self, x: Tensor, m: Tensor | None = None) -> Tensor:
        queries = x.flatten(2).transpose(1, 2)
        keys = queries if m is None else m.flatten(2).transpose(1, 2)
        q = torch.einsum("bnc,hdc->bnhd", queries, self.query_proj)
        k = torch.einsum("bmc,cd->bmd", keys, self.key_proj)
        v = torch.einsum("bmc,cd->bmd", keys, self.value_proj)
        logits = torch.einsum("bnhd,bmd->bnhm", q, k) * self.scale
        weights = self.attn_drop(logits.softmax(dim=-1))
        heads = torch.einsum("bnhm,bmd->bnhd", weights, v)
        heads = behind(self.__dict__[TRANSFORM], heads.transpose(1, 2), weights.transpose(1, 2)).transpose(1, 2)
        y: Tensor = self.proj_drop(torch.einsum("bnhd,chd->bcn", heads, self.out_proj)).unflatten(2, x.shape[2:])
        return y


def _one_head(module: nn.Module, weights: Tensor, v: Tensor) -> Tensor:
    """The output (B, D, N) of a single head with weights (B, N, M) and v (B, D, M), transformed."""
    output = (v @ weights.transpose(1, 2)).transpose(1, 2)
    head = behind(module.__dict__[TRANSFORM], output.unsqueeze(1), weights.unsqueeze(1))
    return head.squeeze(1).transpose(1, 2)


torch.fx.wrap("behind")  # one node for torch.fx, because it branches on sizes
