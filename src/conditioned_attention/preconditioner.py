"""The core of the method: computes one factor for each row of an attention head.

``C = diag(1 / ‖row‖₂)`` (arXiv 2603.27153, Theorem 4.4) is defined here and nowhere else.  Everything that multiplies
attention heads, such as a fused kernel or a converted model, takes C, its ``eps`` and its stopped gradient from this
file.

Shapes: B batch, H heads, N queries, M keys, D head width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

ROWS = ("output", "weights")
GRADIENTS = ("stopped", "through")

# Attribute of an attention module that holds its transform.  Plain data: no key of the state_dict.
TRANSFORM = "_head_transform"

# Below its smallest normal number float16 keeps fewer and fewer bits, so a row norm there is mostly rounding.
_FLOAT16_EPS = 6.1e-5


class HeadTransform(ABC):
    """What is done to an attention head's output before the output projection.

    The row norm (`RowNorm`) is one; every control of a comparison is another.  Instances are small immutable values:
    they are stored on the attention modules they act on, and travel with ``deepcopy`` and ``pickle``.  A dataclass with
    a ``kind`` is known by it in what `conditioning` records.
    """

    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type[HeadTransform]]] = {}  # every class that has a kind of its own, by that

    def __init_subclass__(cls, recorded: bool = True) -> None:
        super().__init_subclass__()
        if recorded and "kind" in vars(cls):
            HeadTransform.kinds[cls.kind] = cls

    @property
    def needs_weights(self) -> bool:
        """True if the transform reads the attention weights, which fused attention never builds."""
        return False

    @property
    def norms_suffice(self) -> bool:
        """True if of the weights the transform reads only how long their rows are: (B, H, N, 1) may come for them."""
        return False

    @property
    def changes_queries(self) -> bool:
        """True if `queries` is to be called before attention, which only some mechanisms can do."""
        return False

    @property
    def mixes_rows(self) -> bool:
        """True if a row's result depends on the other rows of its head, which no causal model may have."""
        return False

    @property
    def settings(self) -> HeadTransform:
        """The transform as it was asked for, without what belongs to one module."""
        return self

    def queries(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Maps queries (B, H, N, D) and keys (B, H, M, D) before their product is taken."""
        return query, key

    @abstractmethod
    def __call__(self, output: Tensor, weights: Tensor | None = None) -> Tensor:
        """Maps head outputs (B, H, N, D) to head outputs; ``weights`` (B, H, N, M) come only if needed."""


@dataclass(frozen=True)
class RowNorm(HeadTransform):
    """``output -> C · output`` with ``C_ii = 1 / max(‖row_i‖, eps)``, and ``C_ii = 1`` where the row is zero.

    Args:
        rows: whose rows set C: ``"output"`` (Theorem 4.4, section 4.3 of the paper) or ``"weights"`` (Algorithm 1
            read literally: the rows of ``softmax(q kᵀ)``).
        gradient: ``"stopped"`` treats C as a constant in backward, as the paper does; ``"through"`` gives the
            ordinary derivative of the normalisation.
        eps: smallest row norm that is divided by, in units of the head output.  float16 uses at least 6.1e-5.
    """

    rows: str = "output"
    gradient: str = "stopped"
    eps: float = 1e-6

    kind: ClassVar[str] = "row_norm"

    def __post_init__(self) -> None:
        if self.rows not in ROWS:
            raise ValueError(f"rows={self.rows!r} is unknown; valid are {ROWS}")
        if self.gradient not in GRADIENTS:
            raise ValueError(f"gradient={self.gradient!r} is unknown; valid are {GRADIENTS}")
        check_positive("eps", self.eps)

    @property
    def needs_weights(self) -> bool:
        return self.rows == "weights"

    @property
    def norms_suffice(self) -> bool:
        return self.needs_weights

    def __call__(self, output: Tensor, weights: Tensor | None = None) -> Tensor:
        if self.rows == "weights":
            if weights is None:
                raise ValueError("rows='weights' needs the attention weights, and none were given")
            source = weights
        else:
            source = output
        norm = row_norm(source, self.floor(output.dtype), gradient=self.gradient)
        # A half-precision output meets a float32 norm, so the quotient is taken in float32 and rounded once.
        return (output / norm).to(output.dtype)

    def floor(self, dtype: torch.dtype) -> float:
        """The smallest row norm that is divided by, for head outputs of this dtype."""
        return max(self.eps, _FLOAT16_EPS) if dtype == torch.float16 else self.eps


def check_rows(transform: HeadTransform, *, causal: bool = False, masked: bool = False) -> None:
    """Raises ValueError if a transform mixes rows, and they may not know of each other or stand for no tokens."""
    if transform.mixes_rows and (causal or masked):
        what = "is causal" if causal else "has a mask, such as one for padding"
        raise ValueError(
            f"{transform} makes each row depend on the other rows of its head, and this attention {what}: later tokens "
            "would change earlier ones, and padding would count"
        )


def check_positive(name: str, value: float) -> None:
    """Raises unless the argument of this name is a positive, finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")


def row_norm(rows: Tensor, eps: float, *, gradient: str = "stopped") -> Tensor:
    """1 / C_ii, what rows (..., N, D) are divided by, as (..., N, 1); float32, or float64 for float64 rows.

    A row of exactly zero (a fully masked query, a zero-initialised W_V) gets 1: it stays zero in forward and sends
    back what plain attention would, where eps would make the first gradient a million times too large.
    Squares are summed in float32, so entries below about 1e-23 count as zero and rows above about 1e19 overflow.
    """
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    source = rows.detach() if gradient == "stopped" else rows
    if rows.is_nested:  # jagged tensors have no vector_norm, and their sum no backward
        if gradient == "through":
            raise ValueError("gradient='through' is not available for nested tensors; use 'stopped' or pad them")
        norm = source.to(dtype).square().sum(-1, keepdim=True).sqrt()
        return torch.where(norm == 0, 1.0, norm.clamp_min(eps))
    if _heads_inside(source):  # along memory the norm takes half the time, and so does dividing by it
        norm = torch.linalg.vector_norm(source.transpose(1, 2), dim=-1, keepdim=True, dtype=dtype).transpose(1, 2)
    else:
        norm = torch.linalg.vector_norm(source, dim=-1, keepdim=True, dtype=dtype)
    # threshold and clamp pass no gradient where they act: exactly "nothing removed below eps".  Norms that overflow
    # count as the largest number there is, so that a row divided and multiplied by it is not NaN.
    largest = torch.finfo(dtype).max
    if eps > 1.0 or torch.onnx.is_in_onnx_export():  # its exporter of traced models knows no threshold but 0 for 0
        return torch.where(norm == 0, 1.0, norm.clamp(eps, largest))
    return torch.threshold(norm, 0.0, 1.0).clamp(eps, largest)


def precondition_(output: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``(C · output, 1 / C_ii)`` for head outputs (B, H, N, D) that nobody else holds: they may be overwritten.

    No gradient is recorded.  On a CPU it is one pass over memory, by the kernel PyTorch has for weight normalisation.
    """
    rows = _as_matrix(output) if _weight_norm_takes(output) else None
    if rows is not None:
        unit, norm = torch._weight_norm_interface(rows, rows.new_ones(rows.shape[0], 1), 0)
        smallest, largest = norm.aminmax()
        if smallest.item() >= eps and largest.item() < math.inf:  # it knows neither eps nor zero or overflowing rows
            # Not a view of `unit`, which autograd would not let anybody write to.
            output.set_(unit.untyped_storage(), 0, output.shape, output.stride())
            return output, _like_heads(norm, output)
    norm = row_norm(output, eps)
    return output.div_(norm), norm


def _heads_inside(output: Tensor) -> bool:
    """Whether (B, H, N, D) lies in memory as (B, N, H, D), as projections leave it."""
    # Under torch.compile strides may be symbols, and inductor orders the loops by itself.
    return output.dim() == 4 and not torch.compiler.is_compiling() and output.stride(1) < output.stride(2)


def _weight_norm_takes(output: Tensor) -> bool:
    """Whether PyTorch's weight norm may run: it crashes the process on nothing, and rounds float16 twice."""
    fits = output.device.type == "cpu" and output.dtype != torch.float16 and output.numel() > 0
    return fits and not torch.compiler.is_compiling()


def _as_matrix(output: Tensor) -> Tensor | None:
    """The rows (B·H·N, D) in the order in which they lie in memory, as a view; None if there is no such view."""
    inside = output.transpose(1, 2) if _heads_inside(output) else output
    return inside.view(-1, inside.shape[-1]) if inside.is_contiguous() else None


def _like_heads(matrix: Tensor, output: Tensor) -> Tensor:
    """The inverse of `_as_matrix`: (B·H·N, X) as (B, H, N, X)."""
    b, h, n, _ = output.shape
    if _heads_inside(output):
        return matrix.view(b, n, h, -1).transpose(1, 2)
    return matrix.view(b, h, n, -1)
