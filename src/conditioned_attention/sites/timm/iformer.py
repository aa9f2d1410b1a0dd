"""iFormer's attention with its forward rewritten; in a file of its own, because timm 1.0.20 has no iFormer.

Shapes: B batch (windows), N tokens, D head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models.iformer import SHMA
from torch import Tensor

from conditioned_attention.functional import attend, behind
from conditioned_attention.preconditioner import TRANSFORM, HeadTransform
from conditioned_attention.sites.swap import swapped_for


@swapped_for(SHMA)
class ConditionedSHMA(SHMA):
    """iFormer: a single head, C before the gate; in windows, whose padding is cut off again, or over the image."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.window_size:
            return self._attend(x)
        height, width = x.shape[2:]
        right, bottom = -width % self.window_size, -height % self.window_size
        windows = self._window_partition(F.pad(x, (0, right, 0, bottom)), self.window_size)
        y = self._window_reverse(self._attend(windows), self.window_size, height + bottom, width + right)
        return y[:, :, :height, :width].contiguous()

    def _attend(self, x: Tensor) -> Tensor:
        v, gate = self.gate_act(self.v_gate(x)).chunk(2, dim=1)
        q, k, v = (t.flatten(2).transpose(1, 2) for t in (self.q(x), self.k(x), v))  # (B, N, D)
        head = self._head(q, k, v)
        y: Tensor = self.proj(head.transpose(1, 2).reshape(gate.shape) * gate)
        return y

    def _head(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The transformed head (B, N, D); without ``fused_attn`` its weights (B, N, N) pass through ``attn_drop``."""
        transform: HeadTransform = self.__dict__[TRANSFORM]
        if self.fused_attn:
            q, k, v = (t.unsqueeze(1) for t in (q, k, v))
            return attend(transform, q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0).squeeze(1)
        q, k = (t.squeeze(1) for t in transform.queries(q.unsqueeze(1), k.unsqueeze(1)))
        weights = self.attn_drop(((q * self.scale) @ k.transpose(1, 2)).softmax(dim=-1))
        return behind(transform, (weights @ v).unsqueeze(1), weights.unsqueeze(1)).squeeze(1)


torch.fx.wrap("attend")  # one node for torch.fx, because it checks its arguments
torch.fx.wrap("behind")
