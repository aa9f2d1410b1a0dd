"""The variants by name, each a change of an otherwise identical model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from conditioned_attention.controls import HeadRMSNorm, PowerNorm, PreconditionedQKNorm, QKNorm
from conditioned_attention.d_optimal import DOptimal
from conditioned_attention.experiments.variants.changes import (
    CalibratedStart,
    ClippedLogits,
    ConditionedStart,
    Heads,
    MeanOfC,
    OrthogonalStart,
    Spectral,
    SpectralStart,
)
from conditioned_attention.experiments.variants.variant import Variant
from conditioned_attention.preconditioner import RowNorm
from conditioned_attention.sites.learned import (
    HeadRMSNormWithGain,
    LearnedPowerNorm,
    QKNormWithTemperature,
    SigmoidGate,
)
from conditioned_attention.spectral import ON_LOGITS, PUBLISHED

_AUTO = Spectral()
_ON_LOGITS = Spectral(strength=ON_LOGITS, roles="qk")

VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("baseline", (), "plain attention"),
        Variant("preconditioned", (Heads(),), "each head's rows to unit length, C without gradient (2603.27153)"),
        Variant("preconditioned_weights", (Heads(RowNorm("weights")),), "C from the rows of softmax(q kᵀ): Algorithm 1"),
        Variant("preconditioned_scaled", (Heads(PowerNorm(1.0, scaled=True)),), "C · √d: rows to the length √d"),
        Variant("preconditioned_power", (Heads(PowerNorm(0.5)),), "C to the power ½: keeps part of the information in row norms"),
        Variant("preconditioned_learned", (Heads(LearnedPowerNorm()),), "C^α, a learned α for each head that starts at 0"),
        Variant("preconditioned_calibrated", (CalibratedStart(), Heads()), "C, with W_O scaled at the start for trained weights"),
        Variant("preconditioned_power_calibrated", (CalibratedStart(PowerNorm(0.5)), Heads(PowerNorm(0.5))), "C to the power ½, with W_O scaled at the start for trained weights"),
        Variant("d_optimal", (Heads(DOptimal()),), "C, refined by 1 step towards a D-optimal design; not for causal models"),
        Variant("spectral", (_AUTO,), "W + λ I for queries, keys, values (2603.07162), λ = d^(-1/4)"),
        Variant("spectral_published", (Spectral(strength=PUBLISHED["identity"]),), "W + 10 I, the λ of the paper"),
        Variant("spectral_polar", (Spectral(correction="polar"),), "W + σ_max(W) U Vᵀ: κ at most 2 at the start"),
        Variant("spectral_qk", (_ON_LOGITS,), "W + λ I for queries and keys alone, λ = 1: logits of standard deviation 1"),
        Variant("identity_init", (SpectralStart(),), "control: spectral's λ I at the start only"),
        Variant("preconditioned+spectral", (_AUTO, Heads()), "both methods, λ = d^(-1/4)"),
        Variant("head_l2", (Heads(RowNorm(gradient="through")),), "control: rows to unit length, ordinary gradient"),
        Variant("head_rmsnorm", (Heads(HeadRMSNorm()),), "control: RMSNorm of each head's row without gain, ordinary gradient"),
        Variant("head_rmsnorm_gain", (Heads(HeadRMSNormWithGain()),), "control: RMSNorm of each head's row with a learned gain"),
        Variant("constant_gain", (MeanOfC(),), "control: one factor per layer, the mean of C before training"),
        Variant("sigmoid_gate", (Heads(SigmoidGate()),), "control: heads times a learned gate of the layer's input"),
        Variant("qk_norm", (Heads(QKNorm()),), "control: queries and keys of each head to root mean square 1"),
        Variant("qk_norm_temperature", (Heads(QKNormWithTemperature()),), "control: qk_norm with a learned temperature per head"),
        Variant("qk_clip", (ClippedLogits(),), "control: W_Q, W_K of a head scaled down when a logit passes 100 (Kimi K2)"),
        Variant("preconditioned+qk_norm", (Heads(PreconditionedQKNorm()),), "C on the heads, and queries and keys normalised"),
        Variant("orthogonal_init", (OrthogonalStart(),), "control: semi-orthogonal W_Q, W_K, W_V at the start"),
        Variant("conditioned_init", (ConditionedStart(),), "control: W_V = I, W_Q, W_K of each head orthogonal at the start"),
    )
}  # fmt: skip


def _with_steps(variant: Variant, number: float) -> Variant:
    if not number.is_integer():
        raise ValueError(f"variant {variant.name!r} takes a whole number of steps, got {number}")
    about = f"C, refined by {number:g} steps towards a D-optimal design; not for causal models"
    return replace(variant, changes=(Heads(DOptimal(int(number))),), about=about)


def _with_power(variant: Variant, alpha: float) -> Variant:
    return replace(variant, changes=(Heads(PowerNorm(alpha)),), about=f"C^{alpha:g}")


def _with_strength(variant: Variant, strength: float) -> Variant:
    changes = tuple(replace(c, strength=strength) if isinstance(c, Spectral) else c for c in variant.changes)
    return replace(variant, changes=changes, about=f"{variant.about.split(', λ')[0]}, λ = {strength:g}")


def _with_threshold(variant: Variant, threshold: float) -> Variant:
    about = variant.about.replace("passes 100", f"passes {threshold:g}")
    return replace(variant, changes=(ClippedLogits(threshold),), about=about)


# What a number after the name of a variant sets: spectral=0.3, preconditioned_power=0.25, d_optimal=10
_NUMBERS: dict[str, Callable[[Variant, float], Variant]] = {
    "d_optimal": _with_steps,
    "preconditioned_power": _with_power,
    **dict.fromkeys(
        ("spectral", "spectral_polar", "spectral_qk", "identity_init", "preconditioned+spectral"), _with_strength
    ),
    "qk_clip": _with_threshold,
}


def find_variant(name: str) -> Variant:
    """The variant of this name; ``spectral=0.3``, ``spectral_polar=…``, ``spectral_qk=…``, ``identity_init=…`` and
    ``preconditioned+spectral=…`` set λ, ``preconditioned_power=0.25`` sets α, ``qk_clip=50`` τ, and ``d_optimal=10`` the
    steps.  Its name has the number in its shortest form: ``spectral=1.0`` is ``spectral=1``.

    Raises:
        ValueError: no variant is called that, or takes that number.

    >>> find_variant("preconditioned_power=0.25").changes[0].transform
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
        shown = int(value) if value.is_integer() else value  # "1" and "1.0" are one variant, and one folder
        return replace(_NUMBERS[base](VARIANTS[base], value), name=f"{base}={shown!r}")
    if equals and base in VARIANTS:
        raise ValueError(f"variant {name!r}: {base} takes no number; {', '.join(_NUMBERS)} do")
    raise ValueError(f"variant {name!r} is unknown; valid are {', '.join(VARIANTS)}")


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
