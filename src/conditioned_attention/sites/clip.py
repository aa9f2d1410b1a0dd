"""QK-Clip (Kimi K2's MuonClip, 2025): after a step, W_Q and W_K of heads with too large logits are scaled down.

While a module trains, its transform notes the largest logit of every head; `clip_logits`, called after the optimizer's
step, acts on that and deletes it.  So between two steps there is nothing that a checkpoint would have to hold.

Shapes: B batch, H heads (G key heads under grouped queries), N queries, M keys, D head width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from conditioned_attention.attention.autocast import without_autocast
from conditioned_attention.preconditioner import check_positive
from conditioned_attention.sites.learned import OnModule
from conditioned_attention.sites.projections import Projection, Projections, as_matrix
from conditioned_attention.sites.site import transform_of
from conditioned_attention.sites.table import find_projections

_LARGEST = "_largest_logits"  # attribute of an attention module from a forward in training to `clip_logits`


@dataclass(frozen=True)
class QKClip(OnModule):
    """Unchanged attention whose largest logits q kᵀ / √D are noted for `clip_logits`.

    All pairs of queries and keys count, masked ones too, which takes memory for B · H · N · M numbers.

    Args:
        threshold: τ, the largest logit that is allowed; 100 in Kimi K2.
    """

    threshold: float = 100.0

    kind: ClassVar[str] = "qk_clip"

    def __post_init__(self) -> None:
        check_positive("threshold", self.threshold)

    @property
    def changes_queries(self) -> bool:
        return True  # it has to see them

    def begin(self, attention: nn.Module, projections: Projections) -> None:
        """Does nothing, because nothing is kept on the module before training."""

    def end(self, attention: nn.Module) -> None:
        attention.__dict__.pop(_LARGEST, None)

    def against(self, attention: nn.Module, projections: Projections) -> str:
        if projections.bound_logits(attention):
            return f"{self} scales W_Q and W_K, and here a norm follows them that takes the scale away again"
        return ""

    def apply_before(self, attention: nn.Module, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        if attention.training:
            seen, before = largest_logits(query, key), attention.__dict__.get(_LARGEST)
            setattr(attention, _LARGEST, seen if before is None else torch.maximum(seen, before))
        return query, key


@torch.no_grad()
def largest_logits(query: Tensor, key: Tensor) -> Tensor:
    """The largest q · k / √D of each head (H,), float32, over queries (B, H, N, D) and keys (B, G, M, D).

    It computes in float32 whatever autocast says, because large logits are of interest, and float16 ends at 65504.
    """
    key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    with without_autocast(query.device.type):
        logits = query.detach().float() @ key.detach().float().mT / math.sqrt(query.shape[-1])
    return logits.amax((-2, -1)).flatten(0, -2).amax(0)


@torch.no_grad()
def clip_logits(model: nn.Module) -> None:
    """After an optimizer step, multiplies W_Q and W_K of every head whose largest logit S was above τ by √(τ / S).

    The head's entries of the biases are multiplied too, so that the same inputs give τ exactly.  Where several query
    heads share a key head, W_K stays and W_Q of the one head is multiplied by τ / S.  With several processes, S is the
    largest of all.  Modules without `QKClip` are left alone, and weights of heads below τ stay the same bit for bit.

    Raises:
        ValueError: weights are spread over devices (fsdp2).
    """
    for attention in model.modules():
        transform = transform_of(attention)
        if transform is not None and isinstance(transform.settings, QKClip):
            projections = find_projections(attention)
            assert isinstance(projections, Projections)
            _clip(attention, projections, transform.settings.threshold)


def _clip(attention: nn.Module, projections: Projections, threshold: float) -> None:
    largest = _of_all_processes(attention.__dict__.pop(_LARGEST, None), attention, projections)
    if largest is None:
        return
    factor = torch.where(largest > threshold, threshold / largest, 1.0)
    width = projections.head_widths(attention)["q"]
    rows_of_keys = sum(rows.count for w in projections.weights for r, rows in w.rows(attention).items() if r == "k")
    shared = rows_of_keys < projections.heads * width
    each = {"q": factor if shared else factor.sqrt(), "k": None if shared else factor.sqrt()}
    for projection in projections.weights:
        for role, scale in each.items():
            if scale is not None:
                _scale_rows(attention, projection, role, scale.repeat_interleave(width))


def _of_all_processes(largest: Tensor | None, attention: nn.Module, projections: Projections) -> Tensor | None:
    """The largest logits over all processes; None if there is only one and it has noted none."""
    distributed: Any = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return largest
    if largest is None:
        device = next(attention.parameters()).device
        largest = torch.full((projections.heads,), -math.inf, device=device)
    distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
    return largest


def _scale_rows(attention: nn.Module, projection: Projection, role: str, scale: Tensor) -> None:
    """Multiplies the rows of a role, and its entries of the bias, by one number each, if the weight has such rows."""
    rows = projection.rows(attention).get(role)
    if rows is None:
        return
    owner = projection.owner(attention)
    weight = getattr(owner, projection.parameter)
    if hasattr(weight, "device_mesh"):
        raise ValueError("qk_clip scales rows of W_Q and W_K, which are spread over devices here: not with fsdp2")
    matrix = as_matrix(owner, weight)
    matrix[rows.indices()] *= scale[:, None].to(matrix.dtype)
    bias, entries = projection.biases(attention).get(role, (None, []))
    if bias is not None:
        bias[entries] *= scale.to(bias.dtype)
