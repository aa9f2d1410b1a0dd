"""timm's most used attention classes with their forward rewritten, so that the heads pass through a transform.

With ``fused_attn`` all of attention goes to `attend`, with an additive bias as its mask.  Without it, the softmax is
written out as in timm and passes through the same modules, because a hook on ``attn_drop`` is how attention maps are
read and heads switched off.

It is imported only for models that contain one of them.  Shapes: B batch, H heads, N tokens, D head width, C channels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention, AttentionRope
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.beit import Attention as BeitAttention
from timm.models.eva import EvaAttention
from timm.models.hiera import MaskUnitAttention
from timm.models.swin_transformer import WindowAttention
from timm.models.vision_transformer import ParallelScalingBlock
from torch import Tensor

from conditioned_attention.functional import attend, behind
from conditioned_attention.preconditioner import TRANSFORM, HeadTransform, check_rows
from conditioned_attention.sites.swap import swapped_for


@swapped_for(Attention)
class ConditionedAttention(Attention):
    """ViT, DeiT and most of timm: the transform comes before norm, gate and projection."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        gate = _gate(self, x)
        q, k, v = _split(self, self.qkv(x))
        heads = _attend(self, self.q_norm(q), self.k_norm(k), v, attn_mask, is_causal)
        return _gated_projection(self, heads, gate)


@swapped_for(AttentionRope)
class ConditionedAttentionRope(AttentionRope):
    """ViTs with rotary positions and grouped queries: the transform comes before norm, gate and projection."""

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        gate = _gate(self, x)
        q, k, v = _split(self, self.qkv(x)) if self.qkv is not None else _project_apart(self, x)
        q, k = _rotate(self, self.q_norm(q), self.k_norm(k), v, rope)
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        return _gated_projection(self, _attend(self, q, k, v, attn_mask, is_causal), gate)


@swapped_for(EvaAttention)
class ConditionedEvaAttention(EvaAttention):
    """EVA-02, DINOv3 and the Perception Encoder: the transform comes before norm, gate and projection."""

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        gate = _gate(self, x)
        q, k, v = _split(self, _project_biased(self, x)) if self.qkv is not None else _project_apart(self, x)
        q, k = _rotate(self, self.q_norm(q), self.k_norm(k), v, rope)
        return _gated_projection(self, _attend(self, q, k, v, attn_mask, is_causal), gate)


@swapped_for(BeitAttention)
class ConditionedBeitAttention(BeitAttention):
    """BEiT: the relative positions of the layer and those that all layers share are added to the logits."""

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        q, k, v = _split(self, _project_biased(self, x))
        bias = shared_rel_pos_bias
        if self.relative_position_bias_table is not None:
            own = self._get_rel_pos_bias()
            bias = own if bias is None else own + bias
        return _projection(self, _attend(self, q, k, v, bias))


@swapped_for(WindowAttention)
class ConditionedWindowAttention(WindowAttention):
    """Swin: relative positions, and the mask of shifted windows, are added to the logits."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = _split(self, self.qkv(x))
        bias = self._get_rel_pos_bias()  # (1, H, N, N)
        if mask is not None:  # (windows of one image, N, N); the windows of a batch lie image by image
            bias = (bias + mask.unsqueeze(1)).repeat(x.shape[0] // mask.shape[0], 1, 1, 1)
        return _projection(self, _attend(self, q, k, v, bias))


@swapped_for(MaskUnitAttention)
class ConditionedMaskUnitAttention(MaskUnitAttention):
    """Hiera: attention in windows, which count as further images of the batch, or over all tokens."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        # A window's tokens lie apart: token t of window w is at t · windows + w.
        windows = n // (self.q_stride * self.window_size) if self.use_mask_unit_attn else 1
        qkv = self.qkv(x).reshape(b, n // windows, windows, 3, self.heads, self.head_dim)
        q, k, v = qkv.permute(3, 0, 2, 4, 1, 5).flatten(1, 2).unbind(0)  # (B · windows, H, N, D)
        if self.q_stride > 1:
            q = q.unflatten(2, (self.q_stride, -1)).amax(dim=2)
        heads = _attend(self, q, k, v).unflatten(0, (b, windows))
        y: Tensor = self.proj(heads.permute(0, 3, 1, 2, 4).reshape(b, -1, self.dim_out))
        return y


@swapped_for(ParallelScalingBlock)
class ConditionedParallelScalingBlock(ParallelScalingBlock):
    """ViT-22B's block with attention beside MLP: C comes before the output projection, which both may share."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        mlp, q, k, v = _project_beside_mlp(self, self.in_norm(x))
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)) for t in (q, k, v))
        q, k, v = self.q_norm(q).transpose(1, 2), self.k_norm(k).transpose(1, 2), v.transpose(1, 2)
        attention = _side_by_side(_attend(self, q, k, v, attn_mask, is_causal))
        y = _project_together(self, attention, self.mlp_drop(self.mlp_act(mlp)))
        z: Tensor = x + self.drop_path(self.ls(y))
        return z


def _project_beside_mlp(module: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The hidden layer of the MLP, and q, k and v (B, N, C)."""
    zeros = getattr(module, "qkv_bias", None)
    if zeros is not None:  # up to timm 1.0.25 the bias of the MLP comes last, not where its columns are
        y = F.linear(x, module.in_proj.weight, torch.cat((zeros, module.mlp_bias)))
    else:
        y = module.in_proj(x)
    mlp, q, k, v = y.split(module.in_split, dim=-1)
    if zeros is None and module.mlp_bias is not None:
        mlp = mlp + module.mlp_bias
    return mlp, q, k, v


def _project_together(module: Any, attention: Tensor, mlp: Tensor) -> Tensor:
    """The sum of the two projections, which may be a single one on both inputs side by side."""
    shared = getattr(module, "out_proj", None)  # timm 1.0.20 has none
    y: Tensor
    if shared is not None:
        y = shared(torch.cat((attention, mlp), dim=-1))
    else:
        y = module.attn_out_proj(attention) + module.mlp_out_proj(mlp)
    return y


def _split(module: Any, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, each (B, H, N, D), of one projection (B, N, 3·H·D)."""
    b, n, _ = qkv.shape
    q, k, v = qkv.reshape(b, n, 3, module.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _project_apart(module: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q (B, H, N, D), k and v (B, G, N, D) of three projections."""
    groups = getattr(module, "num_kv_heads", module.num_heads)  # timm 1.0.20 has no grouped queries
    q = module.q_proj(x).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
    k = module.k_proj(x).unflatten(-1, (groups, -1)).transpose(1, 2)
    v = module.v_proj(x).unflatten(-1, (groups, -1)).transpose(1, 2)
    return q, k, v


def _project_biased(module: Any, x: Tensor) -> Tensor:
    """One projection with three biases, of which k's is a buffer of zeros."""
    bias = None if module.q_bias is None else torch.cat((module.q_bias, module.k_bias, module.v_bias))
    if bias is not None and not module.qkv_bias_separate:
        return F.linear(x, module.qkv.weight, bias)
    qkv: Tensor = module.qkv(x)
    return qkv if bias is None else qkv.add_(bias)  # in place: autocast's dtype stays


def _rotate(module: Any, q: Tensor, k: Tensor, v: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor]:
    """q and k with rotary positions on all but the tokens that have none (class token, registers)."""
    if rope is None:
        return q, k

    def rotated(t: Tensor) -> Tensor:
        prefix, rest = t.tensor_split([module.num_prefix_tokens], dim=2)
        turned = apply_rot_embed_cat(rest, rope, half=module.rotate_half)
        return torch.cat((prefix, turned), dim=2).type_as(v)

    return rotated(q), rotated(k)


def _attend(
    module: Any, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """The head outputs (B, H, N, D), transformed."""
    transform: HeadTransform = module.__dict__[TRANSFORM]
    drop = getattr(module, "attn_drop", None)  # Hiera has none
    if module.fused_attn:
        dropout_p = drop.p if drop is not None and module.training else 0.0
        return attend(transform, q, k, v, attn_mask, dropout_p=dropout_p, is_causal=is_causal)
    q, k = transform.queries(q, k)
    logits = _masked((q * module.scale) @ k.transpose(-2, -1), transform, attn_mask, is_causal)
    softmax = getattr(module, "softmax", None)  # Swin has one
    weights = logits.softmax(dim=-1) if softmax is None else softmax(logits)
    weights = weights if drop is None else drop(weights)
    return behind(transform, weights @ v, weights)


def _masked(logits: Tensor, transform: HeadTransform, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
    """Logits (B, H, N, M) under the causal mask or, without that, under ``attn_mask``, as in timm."""
    boolean = attn_mask is not None and attn_mask.dtype == torch.bool
    check_rows(transform, causal=is_causal, masked=boolean)
    if is_causal:
        return logits + logits.new_full(logits.shape[-2:], -math.inf).triu_(1)
    if attn_mask is None:
        return logits
    return logits.masked_fill(~attn_mask, -math.inf) if boolean else logits + attn_mask


def _side_by_side(heads: Tensor) -> Tensor:
    """(B, H, N, D) as (B, N, H·D)."""
    return heads.transpose(1, 2).flatten(2)


def _projection(module: Any, heads: Tensor) -> Tensor:
    y: Tensor = module.proj_drop(module.proj(_side_by_side(heads)))
    return y


def _gate(module: Any, x: Tensor) -> Tensor | None:
    gate = getattr(module, "gate", None)  # timm 1.0.20 has none
    return None if gate is None else gate(x).sigmoid()


def _gated_projection(module: Any, heads: Tensor, gate: Tensor | None) -> Tensor:
    """Norm, gate and projection, in this order."""
    x = module.norm(_side_by_side(heads))
    y: Tensor = module.proj_drop(module.proj(x if gate is None else x * gate))
    return y


# One node for torch.fx, because they check their arguments.
for _name in ("attend", "behind", "_masked"):
    torch.fx.wrap(_name)
