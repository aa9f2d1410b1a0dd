"""A named change of a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from conditioned_attention.controls import ConstantGain
from conditioned_attention.conversion import ConversionReport, convert, fold, spectral_condition
from conditioned_attention.experiments.variants.initialise import orthogonal_projections
from conditioned_attention.measure.probing.probe import head_outputs
from conditioned_attention.preconditioner import HeadTransform, RowNorm, row_norm
from conditioned_attention.sites import find_sites


@dataclass(frozen=True)
class Variant:
    """A change of a model's attention under a name.

    Attributes:
        name: as in tables and folders.
        transform: what every attention head passes through; None leaves the heads as they are.
        about: one line for the report.
        spectral: arguments of `spectral_condition`; None leaves the projections as they are.
        at_start_only: whether the correction becomes part of the weights before training, which then change and decay
            whole.
        orthogonal: whether projections are drawn anew, semi-orthogonal, before training.
        calibrated: whether the heads of each layer are multiplied by the mean that C has there before training.
    """

    name: str
    transform: HeadTransform | None = None
    about: str = ""
    spectral: Mapping[str, Any] | None = field(default=None, hash=False)
    at_start_only: bool = False
    orthogonal: bool = False
    calibrated: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_+-][A-Za-z0-9_.+=-]*", self.name):
            raise ValueError(
                f"a variant's name is also a folder's: letters, digits and _ . + - = only, got {self.name!r}"
            )

    def apply(self, model: nn.Module, batch: Any = None, *, initialise: bool = True) -> ConversionReport | None:
        """Changes ``model`` in place; every attention module must be of a known class.

        Args:
            model: freshly built.
            batch: some inputs, which a calibrated variant runs the model on.
            initialise: False leaves out what a variant does to the start alone, for a model that has trained.

        Returns:
            The report of the last conversion, or None if there was none.

        Raises:
            ValueError: an attention module cannot be changed, or a calibrated variant has no batch, or one that does
                not reach every attention module.
        """
        if self.orthogonal and initialise:
            orthogonal_projections(model)
        report = self._convert(model)
        if self.calibrated:
            if batch is None:
                raise ValueError(f"variant {self.name!r} is calibrated: call apply(model, batch) with some inputs")
            report = _scale_by_mean_of_c(model, batch)
        return report

    def apply_structure(self, model: nn.Module) -> ConversionReport | None:
        """As `apply` with numbers that mean nothing: to count or time what a model does, without data or on meta."""
        report = self._convert(model)
        return convert(model, ConstantGain(1.0), strict=True) if self.calibrated else report

    def _convert(self, model: nn.Module) -> ConversionReport | None:
        report = None
        if self.spectral is not None:
            report = spectral_condition(model, strict=True, **self.spectral)
            if self.at_start_only:
                fold(model)
        if self.transform is not None:
            report = convert(model, self.transform, strict=True)
        return report


def _scale_by_mean_of_c(model: nn.Module, batch: Any) -> ConversionReport:
    """Multiplies the heads of each layer by the mean of C = 1 / ‖row‖ on a batch."""
    gains = {call.module: (1 / row_norm(call.before, RowNorm.eps)).mean().item() for call in head_outputs(model, batch)}
    sites = [site for site in find_sites(model) if site.attention and not site.opt_in]
    idle = [f"{site.name}: {site.reason or 'the batch does not reach it'}" for site in sites if site.name not in gains]
    if idle:
        raise ValueError("there is no mean of C for\n" + "\n".join(idle))
    reports = [convert(model, ConstantGain(gains[site.name]), include=site.name, strict=True) for site in sites]
    return ConversionReport(tuple(row for report in reports for row in report.rows if row.status == "converted"))


def check_suited(variants: Iterable[Variant], *, causal: bool) -> None:
    """Raises ValueError for a variant that a causal task cannot have, because it mixes rows of different tokens."""
    for variant in variants:
        if variant.transform is not None and variant.transform.mixes_rows and causal:
            raise ValueError(
                f"variant {variant.name!r} is not for a causal task: a token's factor would "
                "depend on the tokens after it, which are what is predicted"
            )
