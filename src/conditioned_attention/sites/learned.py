"""Transforms with parameters of their own: a gain, a gate, a temperature, a power of C.

The parameters are on the attention module under keys of their own, the stated exception to unchanged state_dict keys.
Shapes: B batch, H heads, N tokens, D head width, C features of the attention module's input.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conditioned_attention.preconditioner import HeadTransform, RowNorm, check_positive, row_norm
from conditioned_attention.sites.hook import Hook
from conditioned_attention.sites.projections import Projections, as_matrix
from conditioned_attention.sites.site import HOOK_KEY, Mechanism, transform_of

_KEY = HOOK_KEY - 2
_INPUT = "_head_gate_input"  # attribute of an attention module while it runs
_NAMES_OF_INPUT = ("hidden_states", "x", "query", "input")


class OnModule(HeadTransform):
    """A transform that keeps something of its own on every module, as requested; conversion makes it a `Bound` one."""

    @abstractmethod
    def begin(self, attention: nn.Module, projections: Projections) -> None:
        """Puts what the transform keeps of its own on an attention module."""

    @abstractmethod
    def end(self, attention: nn.Module) -> None:
        """Takes that off the attention module again."""

    def against(self, attention: nn.Module, projections: Projections) -> str:
        """Why the transform cannot be put on this module; empty if it can."""
        return ""

    def apply(self, attention: nn.Module, output: Tensor) -> Tensor:
        """Maps head outputs (B, H, N, D) with what is kept on the module."""
        return output

    def apply_before(self, attention: nn.Module, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """The same for queries (B, H, N, D) and keys, for a transform that `changes_queries`."""
        return query, key

    def __call__(self, output: Tensor, weights: Tensor | None = None) -> Tensor:
        raise TypeError(f"{self} acts on modules that it was put on by conversion, where it has something of its own")


class Learned(OnModule):
    """A transform that keeps a learned parameter on every module."""

    parameter: ClassVar[str]  # its name on the attention module
    reads_input: ClassVar[bool] = False  # whether `apply` needs what the attention module is called with

    @abstractmethod
    def initial(self, heads: int, width: int, features: int) -> Tensor:
        """The parameter's first value, for H heads of width D and C features."""

    def begin(self, attention: nn.Module, projections: Projections) -> None:
        query = next(weight for weight in projections.weights if "q" in weight.roles)
        owner = query.owner(attention)
        weight = getattr(owner, query.parameter)
        width = projections.head_widths(attention)["v"]
        initial = self.initial(projections.heads, width, as_matrix(owner, weight).shape[1])
        if self.parameter not in attention._parameters:  # else its own, from before the module's forward changed
            attention.register_parameter(self.parameter, nn.Parameter(initial.to(weight)))
        if self.reads_input:
            attention._forward_pre_hooks[_KEY] = _remember_input
            attention._forward_pre_hooks_with_kwargs[_KEY] = True
            attention._forward_hooks[_KEY] = _forget_input
            attention._forward_hooks_always_called[_KEY] = True  # also where its forward raises

    def end(self, attention: nn.Module) -> None:
        attention._parameters.pop(self.parameter, None)
        before = attention._forward_pre_hooks, attention._forward_pre_hooks_with_kwargs
        for hooks in (*before, attention._forward_hooks, attention._forward_hooks_always_called):
            hooks.pop(_KEY, None)

    def against(self, attention: nn.Module, projections: Projections) -> str:
        if self.reads_input and isinstance(attention, nn.MultiheadAttention) and not attention.batch_first:
            return f"{self} wants inputs (batch, tokens, features), and this module takes (tokens, batch, features)"
        present = transform_of(attention)
        its_own = present is not None and isinstance(present.settings, type(self))
        if hasattr(attention, self.parameter) and not its_own:
            return f"{self} needs the name {self.parameter!r}, which this module has already"
        return ""


@dataclass(frozen=True)
class HeadRMSNormWithGain(Learned):
    """`HeadRMSNorm` times a learned gain (D,), the same for all heads, as in Differential Transformer.  It starts at 1.

    Args:
        eps: added to the mean square of the row.
    """

    eps: float = 1e-6

    kind: ClassVar[str] = "head_rmsnorm_gain"
    parameter: ClassVar[str] = "head_gain"

    def __post_init__(self) -> None:
        check_positive("eps", self.eps)

    def initial(self, heads: int, width: int, features: int) -> Tensor:
        return torch.ones(width)

    def apply(self, attention: nn.Module, output: Tensor) -> Tensor:
        gain: Tensor = getattr(attention, self.parameter)
        return F.rms_norm(output, output.shape[-1:], gain.to(output.dtype), eps=self.eps)


@dataclass(frozen=True)
class SigmoidGate(Learned):
    """``output -> 2 σ(W_g x) ∘ output`` with x the input of the attention module: gated attention (arXiv 2505.06708).

    One gate for every entry of every head.  W_g (H · D, C) starts at 0, where the gate is 1.
    """

    kind: ClassVar[str] = "sigmoid_gate"
    parameter: ClassVar[str] = "head_gate"
    reads_input: ClassVar[bool] = True

    def initial(self, heads: int, width: int, features: int) -> Tensor:
        return torch.zeros(heads * width, features)

    def apply(self, attention: nn.Module, output: Tensor) -> Tensor:
        x: Tensor = attention.__dict__[_INPUT]
        x = x.to_padded_tensor(0.0) if x.is_nested else x  # as torch.nn's attention goes on with it
        weight: Tensor = getattr(attention, self.parameter)
        gate: Tensor = 2 * torch.sigmoid(F.linear(x, weight.to(x.dtype)))
        gate = gate.unflatten(-1, (output.shape[1], -1)).transpose(-3, -2)
        if gate.shape != output.shape[-gate.dim() :]:
            raise ValueError(
                f"the gate of this {type(attention).__qualname__}, computed from its input, has shape "
                f"{tuple(gate.shape)}, and its heads {tuple(output.shape)}: leave the module out (exclude)"
            )
        return output * gate.to(output.dtype)


@dataclass(frozen=True)
class QKNormWithTemperature(Learned):
    """The control `QKNorm` with a learned temperature for every head: logits ``exp(t_h) · q̂ k̂ᵀ / √D`` of normed rows.

    t (H,) starts at 0, where it is `QKNorm`.  The exponential keeps the factor positive, as in Swin V2, and here it has
    no upper bound.  Without the factor logits are at most √D, and narrow heads cannot attend to one token alone.

    Args:
        eps: added to the mean square of queries and keys.
    """

    eps: float = 1e-6

    kind: ClassVar[str] = "qk_norm_temperature"
    parameter: ClassVar[str] = "head_temperature"

    def __post_init__(self) -> None:
        check_positive("eps", self.eps)

    @property
    def changes_queries(self) -> bool:
        return True

    def initial(self, heads: int, width: int, features: int) -> Tensor:
        return torch.zeros(heads)

    def apply_before(self, attention: nn.Module, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        query, key = (F.rms_norm(t, t.shape[-1:], eps=self.eps) for t in (query, key))
        temperature: Tensor = getattr(attention, self.parameter)
        return query * temperature.exp()[:, None, None].to(query.dtype), key


@dataclass(frozen=True)
class LearnedPowerNorm(Learned):
    """``output -> C^α · output`` with a learned α for every head; there is no gradient through C, but one for α.

    α (H,) starts at 0, where it is plain attention; at 1 it is the preconditioner.  It is not bounded: below 0 large
    rows become larger.

    Args:
        eps: smallest row norm that is divided by.
    """

    eps: float = 1e-6

    kind: ClassVar[str] = "learned_power_norm"
    parameter: ClassVar[str] = "head_power"

    def __post_init__(self) -> None:
        check_positive("eps", self.eps)

    def initial(self, heads: int, width: int, features: int) -> Tensor:
        return torch.zeros(heads)

    def apply(self, attention: nn.Module, output: Tensor) -> Tensor:
        alpha: Tensor = getattr(attention, self.parameter)
        norm = row_norm(output, RowNorm(eps=self.eps).floor(output.dtype))
        return (output / norm ** alpha[:, None, None].to(norm.dtype)).to(output.dtype)


@dataclass(eq=False)
class Bound(HeadTransform, recorded=False):
    """A transform that keeps something of its own, with the attention module on which it is kept."""

    asked: OnModule
    attention: nn.Module

    kind: ClassVar[str] = "bound"

    @property
    def settings(self) -> HeadTransform:
        return self.asked

    @property
    def changes_queries(self) -> bool:
        return self.asked.changes_queries

    def queries(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return self.asked.apply_before(self.attention, query, key)

    def __call__(self, output: Tensor, weights: Tensor | None = None) -> Tensor:
        return self.asked.apply(self.attention, output)


def bind(attention: nn.Module, asked: OnModule, projections: Projections) -> Bound:
    """Puts what a transform keeps of its own on an attention module; returns the transform for this module."""
    asked.begin(attention, projections)
    return Bound(asked, attention)


def against(attention: nn.Module, mechanism: Mechanism, asked: OnModule, projections: Projections | str) -> str:
    """Why a transform that keeps something of its own cannot be put on a module; empty if it can."""
    if isinstance(projections, str):
        return projections
    if isinstance(mechanism, Hook) and mechanism.layout.along != "D":
        return f"{asked} wants heads whose rows are tokens, and here they are channels"
    if isinstance(mechanism, Hook) and mechanism.layout.axes != "B N H*D":
        return f"{asked} wants heads that lie as 'B N H*D', and here they lie as {mechanism.layout.axes!r}"
    return asked.against(attention, projections)


def _remember_input(attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    inputs = [*args[:1], *(kwargs[name] for name in _NAMES_OF_INPUT if name in kwargs)]
    if not inputs:
        raise TypeError(
            f"this {type(attention).__qualname__} was called without any of {_NAMES_OF_INPUT}, from which its gate is "
            "computed"
        )
    attention.__dict__[_INPUT] = inputs[0]


def _forget_input(attention: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    if hasattr(attention, _INPUT):
        delattr(attention, _INPUT)  # PyTorch 2.9 can compile this, but not a pop from __dict__
