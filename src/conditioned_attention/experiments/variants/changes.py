"""The changes of which variants are made: each changes all attention modules of a model, or those that are named."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from conditioned_attention.calibration import calibrate
from conditioned_attention.controls import ConstantGain
from conditioned_attention.conversion import ConversionReport, convert, fold, spectral_condition
from conditioned_attention.conversion.selection import select
from conditioned_attention.conversion.spectral import SpectralChange
from conditioned_attention.experiments.variants.initialise import conditioned_projections, orthogonal_projections
from conditioned_attention.measure.probing.probe import head_outputs
from conditioned_attention.preconditioner import HeadTransform, RowNorm, row_norm
from conditioned_attention.sites import find_sites
from conditioned_attention.sites.clip import QKClip, clip_logits

Patterns = str | tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True)
class Change(ABC):
    """One change of a model, in place.

    Attributes:
        include, exclude: patterns for the names of attention modules, as `precondition` takes them; None includes all
            of them and excludes none.
        initial: whether it changes only the initial weights, so that a model that has trained has it already.
        of: the part of a module that it changes; each part of a module can have only one change.
    """

    include: Patterns = None
    exclude: Patterns = None
    initial: ClassVar[bool] = False
    of: ClassVar[str]

    @abstractmethod
    def apply(self, model: nn.Module, batch: Any = None) -> ConversionReport | None:
        """Changes every selected module; raises ValueError if one cannot be changed, or a pattern matches none."""

    def apply_structure(self, model: nn.Module) -> ConversionReport | None:
        """`apply` with meaningless numbers: to count or time what a model does, without data or on the meta device."""
        return self.apply(model)

    def after_step(self, model: nn.Module) -> None:  # noqa: B027 - most changes have nothing left to do
        """Changes the model after every optimizer step; by default not at all."""

    @property
    def _modules(self) -> dict[str, Any]:
        return {"include": self.include, "exclude": self.exclude, "strict": True}


@dataclass(frozen=True)
class Heads(Change):
    """A head transform, applied to every attention head."""

    transform: HeadTransform = RowNorm()  # noqa: RUF009 - frozen
    of: ClassVar[str] = "heads"

    def apply(self, model: nn.Module, batch: Any = None) -> ConversionReport:
        return convert(model, self.transform, **self._modules)


@dataclass(frozen=True)
class ClippedLogits(Change):
    """QK-Clip: after each step W_Q and W_K of heads with a logit above the threshold are scaled down."""

    threshold: float = 100.0
    of: ClassVar[str] = "heads"

    def __post_init__(self) -> None:
        QKClip(self.threshold)  # raises for a bad one

    def apply(self, model: nn.Module, batch: Any = None) -> ConversionReport:
        return convert(model, QKClip(self.threshold), **self._modules)

    def after_step(self, model: nn.Module) -> None:
        clip_logits(model)


@dataclass(frozen=True)
class Spectral(Change):
    """W + λ I or another correction of the projections, with the arguments of `spectral_condition`."""

    strength: float | str = "auto"
    correction: str = "identity"
    per_head: bool = False
    roles: str = "qkv"
    of: ClassVar[str] = "projections"

    def __post_init__(self) -> None:
        SpectralChange(self.strength, self.correction, self.per_head, self.roles)  # raises for a bad λ

    def apply(self, model: nn.Module, batch: Any = None) -> ConversionReport:
        how = {"correction": self.correction, "per_head": self.per_head, "roles": self.roles}
        return spectral_condition(model, self.strength, **how, **self._modules)  # type: ignore[arg-type]


@dataclass(frozen=True)
class SpectralStart(Spectral):
    """The correction, added to the weights before training; afterwards these change and decay as a whole."""

    initial: ClassVar[bool] = True

    def apply(self, model: nn.Module, batch: Any = None) -> ConversionReport:
        report = super().apply(model, batch)
        fold(model)
        return report


@dataclass(frozen=True)
class OrthogonalStart(Change):
    """Draws new, semi-orthogonal projections before training."""

    initial: ClassVar[bool] = True
    of: ClassVar[str] = "first weights"

    def apply(self, model: nn.Module, batch: Any = None) -> None:
        orthogonal_projections(model, self.include, self.exclude)

    def apply_structure(self, model: nn.Module) -> None:
        """Does nothing, since the change is only one of numbers."""


@dataclass(frozen=True)
class ConditionedStart(OrthogonalStart):
    """Makes W_V the identity, and W_Q and W_K of every head semi-orthogonal (singular values 1), before training."""

    def apply(self, model: nn.Module, batch: Any = None) -> None:
        conditioned_projections(model, self.include, self.exclude)


@dataclass(frozen=True)
class CalibratedStart(OrthogonalStart):
    """Scales W_O per head, so that trained weights compute nearly the same with a head transform as without it."""

    transform: HeadTransform = RowNorm()  # noqa: RUF009 - frozen

    def apply(self, model: nn.Module, batch: Any = None) -> None:
        if batch is None:
            raise ValueError("the scales of the heads are computed from inputs: call apply(model, batch) with some")
        with convert(model, self.transform, **self._modules):
            calibrate(model, batch)


@dataclass(frozen=True)
class MeanOfC(Change):
    """Multiplies the heads of each layer by the mean that C = 1 / ‖row‖ has there before training."""

    of: ClassVar[str] = "heads"

    def apply(self, model: nn.Module, batch: Any = None) -> ConversionReport:
        if batch is None:
            raise ValueError("the mean of C is computed from inputs: call apply(model, batch) with some")
        gains = {
            call.module: (1 / row_norm(call.before, RowNorm.eps)).mean().item() for call in head_outputs(model, batch)
        }
        sites = select([site for site in find_sites(model) if site.attention], self.include, self.exclude)
        idle = [
            f"{site.name}: {site.reason or 'the batch does not reach it'}" for site in sites if site.name not in gains
        ]
        if idle:
            raise ValueError("no mean of C could be computed for\n" + "\n".join(idle))
        reports = [convert(model, ConstantGain(gains[site.name]), include=site.name, strict=True) for site in sites]
        return ConversionReport(tuple(row for report in reports for row in report.rows if row.status == "converted"))

    def apply_structure(self, model: nn.Module) -> ConversionReport:
        """Applies a gain of 1."""
        return convert(model, ConstantGain(1.0), **self._modules)
