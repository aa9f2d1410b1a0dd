"""What is measured of a model while it trains."""

from __future__ import annotations

import math
import statistics

from conditioned_attention.measure.probing.projections import ProjectionRecord


def summarise_projections(records: list[ProjectionRecord], value_norm_before: float) -> dict[str, float]:
    """Median log₁₀ κ of W_Q, W_K and W_V as the model uses them, and ‖W_V‖ over that before training."""
    if not records:
        return {}
    values = [record.norm for record in records if record.role == "value"]
    return {
        "log10_kappa_weights": statistics.median(math.log10(record.kappa_corrected) for record in records),
        "value_growth": math.sqrt(statistics.fmean(norm**2 for norm in values)) / value_norm_before,
    }
