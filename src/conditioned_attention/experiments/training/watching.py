"""Measures the heads and projections of a model while it trains."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conditioned_attention.experiments.evidence.stored import HeadRow, ProjectionRow
from conditioned_attention.experiments.training.launch import Launch
from conditioned_attention.measure import ConditionMonitor
from conditioned_attention.measure.monitoring.records import summary
from conditioned_attention.measure.probing.projections import ProjectionRecord, projection_records, value_norm
from conditioned_attention.storage.json_lines import JsonLines


class Watch:
    """Writes condition numbers of every head and projection to ``conditions.jsonl`` and ``projections.jsonl``.

    The model is called with ``probe``, in ``precision`` if its own is lower.  It must be freshly built, since growth of
    W_V is measured relative to the W_V that it has then.
    """

    def __init__(self, model: nn.Module, probe: Any, folder: Path, launch: Launch, precision: str) -> None:
        self.conditions, self.projections = (
            JsonLines(folder / name, schema)
            for name, schema in (("conditions.jsonl", HeadRow), ("projections.jsonl", ProjectionRow))
        )
        self.monitor = ConditionMonitor(
            model, probe, path=self.conditions.path, samples=None, keep=0, dtype=getattr(torch, precision),
            max_kappa=launch.max_kappa, max_scale=launch.max_scale,
        )  # fmt: skip
        self.value_norm_before = value_norm(model)

    def measure(self, step: int, model: nn.Module, *, main: bool) -> dict[str, float]:
        """Measures the heads of the model that trains and the projections of ``model``, and returns their summary.

        Every process calls this, but only the ``main`` one writes.
        """
        heads, projections = self.monitor.measure(step), projection_records(model)
        if main:
            self.projections.append(*({"step": step} | record.to_json() for record in projections))
        return summary(heads) | summarise_projections(projections, self.value_norm_before)

    def cut_after(self, step: int) -> None:
        """Drops what was measured at later steps."""
        for log in (self.conditions, self.projections):
            log.cut_after(step)


def summarise_projections(records: list[ProjectionRecord], value_norm_before: float) -> dict[str, float]:
    """Returns median log₁₀ κ of W_Q, W_K and W_V as the model uses them, and ‖W_V‖ relative to before training."""
    if not records:
        return {}
    values = [record.norm for record in records if record.role == "value"]
    return {
        "log10_kappa_weights": statistics.median(math.log10(record.kappa_corrected) for record in records),
        "value_growth": math.sqrt(statistics.fmean(norm**2 for norm in values)) / value_norm_before,
    }
