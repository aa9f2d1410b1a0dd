"""What is compared: each variant is a named change of an otherwise identical model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import nn

from conditioned_attention.controls import ConstantGain, HeadRMSNorm, PowerNorm, QKNorm
from conditioned_attention.conversion import ConversionReport, convert, spectral_condition
from conditioned_attention.experiments.initialise import orthogonal_projections
from conditioned_attention.measure.monitor import head_outputs
from conditioned_attention.preconditioner import HeadTransform, RowNorm, row_norm
from conditioned_attention.sites.learned import HeadRMSNormWithGain, SigmoidGate


@dataclass(frozen=True)
class Variant:
    """A change of a model's attention under a name.

    Attributes:
        name: as in tables and folders.
        transform: what every attention head passes through; None leaves the heads as they are.
        about: one line for the report.
        spectral: arguments of `spectral_condition`; None leaves the projections as they are.
        orthogonal: whether projections are drawn anew, semi-orthogonal, before training.
        calibrated: whether the heads of each layer are multiplied by the mean that C has there before training.
    """

    name: str
    transform: HeadTransform | None = None
    about: str = ""
    spectral: Mapping[str, Any] | None = field(default=None, hash=False)
    orthogonal: bool = False
    calibrated: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*", self.name):
            raise ValueError(
                f"a variant's name is also a folder's: letters, digits and _ . + - only, got {self.name!r}"
            )

    def apply(self, model: nn.Module, batch: Any = None) -> ConversionReport | None:
        """Changes ``model`` in place; every attention module must be of a known class.

        Args:
            model: freshly built.
            batch: some inputs, which a calibrated variant runs the model on.

        Returns:
            The report of the last conversion, or None if there was none.

        Raises:
            ValueError: an attention module cannot be changed, or a calibrated variant has no batch.
        """
        report = None
        if self.orthogonal:
            orthogonal_projections(model)
        if self.spectral is not None:
            report = spectral_condition(model, strict=True, **self.spectral)
        if self.transform is not None:
            report = convert(model, self.transform, strict=True)
        if self.calibrated:
            if batch is None:
                raise ValueError(f"variant {self.name!r} is calibrated: call apply(model, batch) with some inputs")
            report = _scale_by_mean_of_c(model, batch)
        return report


def _scale_by_mean_of_c(model: nn.Module, batch: Any) -> ConversionReport:
    """Multiplies the heads of each layer by the mean of C = 1 / ‖row‖ on a batch."""
    gains = {call.module: (1 / row_norm(call.before, RowNorm.eps)).mean().item() for call in head_outputs(model, batch)}
    reports = [convert(model, ConstantGain(gain), include=name, strict=True) for name, gain in gains.items()]
    return ConversionReport(tuple(row for report in reports for row in report.rows if row.status == "converted"))


_AUTO = MappingProxyType({"strength": "auto"})

VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("baseline", None, "plain attention"),
        Variant("preconditioned", RowNorm(), "each head's rows to unit length, C without gradient (2603.27153)"),
        Variant("preconditioned_weights", RowNorm("weights"), "C from the rows of softmax(q kᵀ): Algorithm 1"),
        Variant("preconditioned_scaled", PowerNorm(1.0, scaled=True), "C · √d: rows to the length √d"),
        Variant("preconditioned_power", PowerNorm(0.5), "C to the power ½: keeps part of what row norms say"),
        Variant("spectral", None, "W + λ I for queries, keys, values (2603.07162), λ = d^(-1/4)", _AUTO),
        Variant("spectral_published", None, "W + 10 I, the λ of the paper", MappingProxyType({})),
        Variant(
            "spectral_polar", None, "W + σ_max(W) U Vᵀ: κ at most 2 at the start",
            MappingProxyType({"correction": "polar"}),
        ),
        Variant("preconditioned+spectral", RowNorm(), "both methods, λ = d^(-1/4)", _AUTO),
        Variant("head_l2", RowNorm(gradient="through"), "control: rows to unit length, ordinary gradient"),
        Variant("head_rmsnorm", HeadRMSNorm(), "control: RMSNorm of each head's row without gain, ordinary gradient"),
        Variant("head_rmsnorm_gain", HeadRMSNormWithGain(), "control: RMSNorm of each head's row with a learned gain"),
        Variant("constant_gain", None, "control: one number a layer, the mean of C before training", calibrated=True),
        Variant("sigmoid_gate", SigmoidGate(), "control: heads times a learned gate of the layer's input"),
        Variant("qk_norm", QKNorm(), "control: queries and keys of each head to root mean square 1"),
        Variant("orthogonal_init", None, "control: semi-orthogonal W_Q, W_K, W_V at the start", orthogonal=True),
    )
}  # fmt: skip


def find_variants(variants: Sequence[str | Variant]) -> list[Variant]:
    """The variants of these names; raises ValueError for one that is unknown or given twice."""
    found = []
    for variant in variants:
        if isinstance(variant, Variant):
            found.append(variant)
        elif variant in VARIANTS:
            found.append(VARIANTS[variant])
        else:
            raise ValueError(f"variant {variant!r} is unknown; valid are {', '.join(VARIANTS)}")
    names = [variant.name for variant in found]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"variants must be at least one and all different, got {names}")
    return found
