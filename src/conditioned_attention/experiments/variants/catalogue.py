"""What is compared: each variant is a named change of an otherwise identical model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from conditioned_attention.controls import HeadRMSNorm, PowerNorm, QKNorm
from conditioned_attention.conversion.spectral import SpectralChange
from conditioned_attention.d_optimal import DOptimal
from conditioned_attention.experiments.variants.variant import Variant
from conditioned_attention.preconditioner import RowNorm
from conditioned_attention.sites.learned import HeadRMSNormWithGain, SigmoidGate

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
