"""Numbers from tensors (pure), a monitor that watches a model, plots from numbers."""

from conditioned_attention.measure.monitor import ConditionMonitor
from conditioned_attention.measure.spectra import condition_number, log_complexity

__all__ = ["ConditionMonitor", "condition_number", "log_complexity"]
