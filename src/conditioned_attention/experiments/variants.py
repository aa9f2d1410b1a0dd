"""What is compared: each variant is a named change of an otherwise identical model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from conditioned_attention.controls import HeadRMSNorm
from conditioned_attention.conversion import ConversionReport, convert
from conditioned_attention.preconditioner import HeadTransform, RowNorm


@dataclass(frozen=True)
class Variant:
    """A change of a model's attention under a name.

    Attributes:
        name: as in tables and folders.
        transform: what every attention head passes through; None leaves the model as it is.
        about: one line for the report.
    """

    name: str
    transform: HeadTransform | None
    about: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*", self.name):
            raise ValueError(
                f"a variant's name is also a folder's: letters, digits and _ . + - only, got {self.name!r}"
            )

    def apply(self, model: nn.Module) -> ConversionReport | None:
        """Converts ``model`` in place; every attention module must be of a known class."""
        return None if self.transform is None else convert(model, self.transform, strict=True)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("baseline", None, "plain attention"),
        Variant("preconditioned", RowNorm(), "each head's rows to unit length, C without gradient (2603.27153)"),
        Variant("head_rmsnorm", HeadRMSNorm(), "control: RMSNorm of each head's row without gain, ordinary gradient"),
    )
}


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
