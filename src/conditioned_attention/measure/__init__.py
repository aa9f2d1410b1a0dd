"""Measurements of conditioning: pure functions of tensors, a monitor that watches a model, and plots."""

from conditioned_attention.measure.monitoring.alarms import Alarm
from conditioned_attention.measure.monitoring.monitor import ConditionMonitor
from conditioned_attention.measure.monitoring.records import HeadRecord
from conditioned_attention.measure.monitoring.sinks import read_records
from conditioned_attention.measure.numbers.spectra import Spectrum, condition_number, log_complexity, spectrum

__all__ = [
    "Alarm", "ConditionMonitor", "HeadRecord", "Spectrum", "condition_number", "log_complexity", "read_records",
    "spectrum",
]  # fmt: skip
