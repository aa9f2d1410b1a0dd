"""Changes a whole model: everything is checked, then everything is done, and can be undone and done again."""

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
