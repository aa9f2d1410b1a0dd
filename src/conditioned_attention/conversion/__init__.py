"""Conversion of whole models: everything is checked before anything is changed, and can be undone and repeated."""

from conditioned_attention.conversion.convert import convert, precondition, restore
from conditioned_attention.conversion.persistence import apply_conditioning
from conditioned_attention.conversion.record import conditioning
from conditioned_attention.conversion.report import ConversionReport, ReportRow
from conditioned_attention.conversion.spectral import fold, spectral_condition, unfold

__all__ = [
    "ConversionReport",
    "ReportRow",
    "apply_conditioning",
    "conditioning",
    "convert",
    "fold",
    "precondition",
    "restore",
    "spectral_condition",
    "unfold",
]
