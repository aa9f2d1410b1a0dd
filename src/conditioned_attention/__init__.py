"""Preconditioned attention for PyTorch: a drop-in function, one-call model conversion, live condition numbers."""

from conditioned_attention import _interrupt, _torch  # noqa: F401 - the first of all, in this order
from conditioned_attention.calibration import Calibration, calibrate
from conditioned_attention.conversion import (
    apply_conditioning,
    conditioning,
    fold,
    precondition,
    restore,
    spectral_condition,
    unfold,
)
from conditioned_attention.functional import explain, implementation, precondition_rows, preconditioned_attention
from conditioned_attention.measure import ConditionMonitor, condition_number, log_complexity
from conditioned_attention.modules import MultiheadAttention
from conditioned_attention.sites import register_attention, watch
from conditioned_attention.varlen import preconditioned_attention_varlen

__version__ = "0.1.0"

watch()  # for checkpoints of Hugging Face models that are not plain

__all__ = [
    "Calibration",
    "ConditionMonitor",
    "MultiheadAttention",
    "__version__",
    "apply_conditioning",
    "calibrate",
    "condition_number",
    "conditioning",
    "explain",
    "fold",
    "implementation",
    "log_complexity",
    "precondition",
    "precondition_rows",
    "preconditioned_attention",
    "preconditioned_attention_varlen",
    "register_attention",
    "restore",
    "spectral_condition",
    "unfold",
]
