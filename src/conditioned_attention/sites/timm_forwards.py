"""timm's attention classes whose forward is written again, so that their heads pass through a `HeadTransform`.

Imported only for models that hold one of them.  Shapes: B batch, H heads, N tokens, D head width, C channels.
"""

from __future__ import annotations

from timm.layers.attention import Attention
from torch import Tensor

from conditioned_attention.functional import attend
from conditioned_attention.preconditioner import TRANSFORM
from conditioned_attention.sites.swap import swapped_for


@swapped_for(Attention)
class ConditionedAttention(Attention):
    """ViT, DeiT and most of timm: before norm, gate and projection."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        b, n, _ = x.shape
        gate = self.gate(x).sigmoid() if self.gate is not None else None
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        heads = attend(
            self.__dict__[TRANSFORM],
            self.q_norm(q),
            self.k_norm(k),
            v,
            attn_mask,
            dropout_p=self.attn_drop.p if self.training else 0.0,
            is_causal=is_causal,
        )
        x = self.norm(heads.transpose(1, 2).reshape(b, n, self.attn_dim))
        if gate is not None:
            x = x * gate
        x = self.proj_drop(self.proj(x))
        assert isinstance(x, Tensor)
        return x
