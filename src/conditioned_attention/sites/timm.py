"""timm: the `Attention` of ViT and DeiT.  Imported only for models that hold a module of timm.

Shapes: B batch, H heads, N tokens, D head width, C channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn

from conditioned_attention.functional import attend
from conditioned_attention.preconditioner import TRANSFORM, HeadTransform
from conditioned_attention.sites.table import Site, transform_of


class ConditionedAttention(Attention):
    """timm's `Attention` whose heads pass through a `HeadTransform` before norm, gate and projection.

    No module is ever built as this class: instances of timm's own class are switched to it and back, which keeps
    parameters, hooks, state_dict keys and ``isinstance``.
    """

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
        assert isinstance(x, torch.Tensor)
        return x


SWAPPED = ConditionedAttention

# Blocks of timm.models.vision_transformer whose attention is written out in their own forward
_INLINE = ("ParallelScalingBlock", "DiffParallelScalingBlock")


def recognise(module: nn.Module) -> tuple[str, str] | None:
    """(mechanism, reason against) for a module this file knows, else None."""
    if type(module) is Attention or isinstance(module, ConditionedAttention):
        return "class swap", ""
    if isinstance(module, Attention):
        return "", f"{type(module).__qualname__} is a subclass of timm's Attention and may compute something else"
    if type(module).__module__ == "timm.models.vision_transformer" and type(module).__qualname__ in _INLINE:
        return (
            "",
            f"{type(module).__qualname__} computes attention in its own forward, where heads cannot be reached yet",
        )
    return None


def reaches_heads(module: nn.Module) -> bool:
    """Whether a transform left on the module acts."""
    return isinstance(module, ConditionedAttention)


def install(site: Site, transform: HeadTransform) -> Callable[[], None]:
    before = transform_of(site.module)
    site.module.__dict__[TRANSFORM] = transform
    if not isinstance(site.module, ConditionedAttention):
        site.module.__class__ = ConditionedAttention

    def undo() -> None:
        if before is None:
            uninstall(site)
        else:
            site.module.__dict__[TRANSFORM] = before

    return undo


def uninstall(site: Site) -> bool:
    """Whether there was a transform to take off."""
    if site.module.__dict__.pop(TRANSFORM, None) is None:
        return False
    site.module.__class__ = Attention
    return True
