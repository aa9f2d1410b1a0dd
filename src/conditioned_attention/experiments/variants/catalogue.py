"""What is compared: each variant is a named change of an otherwise identical model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from conditioned_attention.controls import ConstantGain, HeadRMSNorm, PowerNorm, QKNorm
from conditioned_attention.conversion import ConversionReport, convert, fold, spectral_condition
from conditioned_attention.conversion.spectral import SpectralChange
from conditioned_attention.d_optimal import DOptimal
from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.experiments.variants.initialise import orthogonal_projections
from conditioned_attention.measure.probing.probe import head_outputs
from conditioned_attention.preconditioner import HeadTransform, RowNorm, row_norm
from conditioned_attention.sites import find_sites
from conditioned_attention.sites.learned import HeadRMSNormWithGain, SigmoidGate


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

    def apply(self, model: nn.Module, batch: Any = None) -> ConversionReport | None:
        """Changes ``model`` in place; every attention module must be of a known class.

        Args:
            model: freshly built.
            batch: some inputs, which a calibrated variant runs the model on.

        Returns:
            The report of the last conversion, or None if there was none.

        Raises:
            ValueError: an attention module cannot be changed, or a calibrated variant has no batch, or one that does
                not reach every attention module.
        """
        if self.orthogonal:
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


_AUTO: dict[str, Any] = {"strength": "auto"}

VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("baseline", None, "plain attention"),
        Variant("preconditioned", RowNorm(), "each head's rows to unit length, C without gradient (2603.27153)"),
        Variant("preconditioned_weights", RowNorm("weights"), "C from the rows of softmax(q kᵀ): Algorithm 1"),
        Variant("preconditioned_scaled", PowerNorm(1.0, scaled=True), "C · √d: rows to the length √d"),
        Variant("preconditioned_power", PowerNorm(0.5), "C to the power ½: keeps part of what row norms say"),
        Variant("d_optimal", DOptimal(), "C, refined by 1 step towards a D-optimal design; not for causal models"),
        Variant("spectral", None, "W + λ I for queries, keys, values (2603.07162), λ = d^(-1/4)", _AUTO),
        Variant("spectral_published", None, "W + 10 I, the λ of the paper", {}),
        Variant("spectral_polar", None, "W + σ_max(W) U Vᵀ: κ at most 2 at the start", {"correction": "polar"}),
        Variant("identity_init", None, "control: spectral's λ I at the start only", _AUTO, at_start_only=True),
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


def _with_steps(variant: Variant, number: float) -> Variant:
    if not number.is_integer():
        raise ValueError(f"variant {variant.name!r} takes a whole number of steps, got {number}")
    about = f"C, refined by {number:g} steps towards a D-optimal design; not for causal models"
    return replace(variant, transform=DOptimal(int(number)), about=about)


# What a number after the name of a variant sets: spectral=0.3, preconditioned_power=0.25, d_optimal=10
_NUMBERS: dict[str, Callable[[Variant, float], Variant]] = {
    "d_optimal": _with_steps,
    "preconditioned_power": lambda variant, alpha: replace(variant, transform=PowerNorm(alpha), about=f"C^{alpha:g}"),
    **dict.fromkeys(
        ("spectral", "spectral_polar", "preconditioned+spectral"),
        lambda variant, strength: replace(
            variant,
            spectral={**(variant.spectral or {}), "strength": strength},
            about=f"{variant.about.split(', λ')[0]}, λ = {strength:g}",
        ),
    ),
}


def find_variant(name: str) -> Variant:
    """The variant of this name; ``spectral=0.3``, ``spectral_polar=…`` and ``preconditioned+spectral=…`` set λ,
    ``preconditioned_power=0.25`` sets α, and ``d_optimal=10`` the steps.

    Raises:
        ValueError: no variant is called that, or takes that number.

    >>> find_variant("preconditioned_power=0.25").transform
    PowerNorm(alpha=0.25, scaled=False, eps=1e-06)
    """
    if name in VARIANTS:
        return VARIANTS[name]
    base, equals, number = name.partition("=")
    if equals and base in _NUMBERS:
        try:
            value = float(number)
        except ValueError:
            raise ValueError(f"variant {name!r}: {number!r} is not a number") from None
        variant = replace(_NUMBERS[base](VARIANTS[base], value), name=name)
        if variant.spectral is not None:
            SpectralChange(**{"correction": "identity", "per_head": False, **variant.spectral})  # raises for a bad λ
        return variant
    if equals and base in VARIANTS:
        raise ValueError(f"variant {name!r}: {base} takes no number; {', '.join(_NUMBERS)} do")
    raise ValueError(f"variant {name!r} is unknown; valid are {', '.join(VARIANTS)}")


def check_suited(variants: Iterable[Variant], task: Task) -> None:
    """Raises ValueError for a variant that a causal task cannot have, because it mixes rows of different tokens."""
    for variant in variants:
        if variant.transform is not None and variant.transform.mixes_rows and task.causal:
            raise ValueError(
                f"variant {variant.name!r} is not for {type(task).__name__}, which is causal: a token's factor would "
                "depend on the tokens after it, which are what is predicted"
            )


def descriptions(names: Iterable[str]) -> dict[str, str]:
    """What the report says about the variants of these names, as far as they are known here."""
    found = {}
    for name in names:
        with suppress(ValueError):
            found[name] = find_variant(name).about
    return found


def find_variants(variants: Sequence[str | Variant]) -> list[Variant]:
    """The variants of these names (see `find_variant`); raises ValueError for one unknown or given twice."""
    found = [variant if isinstance(variant, Variant) else find_variant(variant) for variant in variants]
    names = [variant.name for variant in found]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"variants must be at least one and all different, got {names}")
    return found
