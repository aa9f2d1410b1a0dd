"""Condition numbers of heads as charts: κ and log μ by step, and a map of layers and heads."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conditioned_attention.experiments.report.charts import Chart, Palette, axes, band_chart, limit_line
from conditioned_attention.experiments.report.columns import Heads, Numbers, average_kappa, common_steps
from conditioned_attention.experiments.report.curves import Band
from conditioned_attention.measure.plots.curves import limit_of

FRAMES = 50  # steps of a heat map
AT_FLOOR = -1  # in place of 100 · log10 κ, which is never negative

ByVariant = Mapping[str, Sequence[Heads]]  # the runs of each variant


def kappa_chart(heads: ByVariant, palette: Palette) -> Chart:
    """The chart of κ by step, for the head outputs that the model uses.

    Args:
        heads: the heads of every run that was measured, by variant.
        palette: how every variant is drawn.
    """
    resolution = min(
        (h.resolution for runs in heads.values() for h in runs if math.isfinite(h.resolution)), default=math.nan
    )
    layout = {
        **axes("optimizer step", "κ of head outputs", log=True),
        **(limit_line(resolution) if _at_floor(heads) else {}),
    }
    medians = {name: _band(runs, _median, "used", resolution, _middle) for name, runs in heads.items()}
    means = {name: _band(runs, average_kappa, "used", resolution) for name, runs in heads.items()}
    return band_chart(
        "kappa",
        "Condition numbers of the heads",
        "Of the head outputs as the model uses them, on a held-out probe batch, median over samples. Median: over "
        "heads, then over seeds, as in the table. Mean: over the heads of a layer, then over layers, then over seeds "
        "(figure 3 of arXiv 2603.27153), which few heads with a large κ set. The band holds the middle 80 % of heads "
        "and seeds." + (_beyond(resolution) if _at_floor(heads) else ""),
        {"median": (medians, layout), "mean": (means, layout)},
        palette,
    )


def _beyond(resolution: float) -> str:
    """The part of a caption about heads whose κ cannot be distinguished from infinity."""
    known = math.isfinite(resolution)
    line = f"The dashed line is the {limit_of(resolution)}: above it" if known else "Beyond the limit of precision"
    return (
        f" {line} κ cannot be distinguished from infinity, because the smallest singular value is lost in rounding. "
        "Heads there are at the top of the band. The median counts them, so its line ends where half of them are "
        "there; the mean leaves them out, which flatters variants that have many."
    )


def log_mu_chart(heads: ByVariant, palette: Palette) -> Chart | None:
    """The chart of log μ by step, median over heads; None if no head has a finite value."""
    bands = {name: _band(runs, _median_log_mu, "log_mu", math.nan) for name, runs in heads.items()}
    if not any(np.isfinite(band.mean).any() for band in bands.values()):
        return None
    return band_chart(
        "log_mu",
        "Complexity measure log μ",
        "log μ of the head outputs as the model uses them, natural logarithm: median over heads, mean over seeds; the "
        "band holds the middle 80 % of heads and seeds."
        + (" Heads whose κ is beyond the limit of precision have none." if _at_floor(heads) else ""),
        {"": (bands, axes("optimizer step", "log μ"))},
        palette,
    )


def _at_floor(heads: ByVariant) -> bool:
    return any(np.isinf(h.used).any() for runs in heads.values() for h in runs)


def _band(
    runs: Sequence[Heads],
    line: Callable[[Heads], Numbers],
    what: str,
    top: float,
    middle: Callable[..., Any] = np.mean,
) -> Band:
    """A line that averages the seeds, in a band of quantiles over all heads of all seeds, at the steps that all share.

    Args:
        top: where heads at the numerical floor lie in the band; if it is not finite, at the largest finite value.
        middle: how the lines of the seeds are averaged.
    """
    steps, places = common_steps(runs)
    mean = middle([line(h)[at] for h, at in zip(runs, places)], axis=0)
    pooled = np.concatenate([getattr(h, what)[at].reshape(len(steps), -1) for h, at in zip(runs, places)], 1)
    pooled = _without_floor(pooled) if what == "log_mu" else pooled
    finite = pooled[np.isfinite(pooled)]
    top = top if math.isfinite(top) else finite.max() if len(finite) else math.inf
    low, high = (np.minimum(_quantile(pooled, q), top) for q in (0.1, 0.9))
    return Band(steps, np.where(np.isfinite(mean), mean, np.nan), low, high)


def _quantile(values: NDArray[np.float32], q: float) -> Numbers:
    """A quantile of every row, ignoring NaN; it is one of the elements, since inf cannot be interpolated."""
    ordered = np.sort(values, axis=1)  # NaN come last
    count = (~np.isnan(values)).sum(1)
    places = np.clip(np.round(q * (count - 1)), 0, None).astype(int)
    found: Numbers = np.take_along_axis(ordered, places[:, None], 1)[:, 0].astype(np.float64)
    return found


def _median(heads: Heads) -> Numbers:
    return _middle(heads.used.reshape(len(heads.used), -1).astype(np.float64), axis=1)


def _middle(values: Any, axis: int) -> Numbers:
    """The median, ignoring NaN; of two middle values the geometric mean, as in a median of log10 κ."""
    with warnings.catch_warnings():  # a step at which no head was finite has no median
        warnings.simplefilter("ignore", RuntimeWarning)
        found: Numbers = 10 ** np.nanmedian(np.log10(values), axis=axis)
    return found


def _median_log_mu(heads: Heads) -> Numbers:
    return _quantile(_without_floor(heads.log_mu).reshape(len(heads.log_mu), -1), 0.5)


def _without_floor(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Replaces inf by NaN."""
    return np.where(np.isinf(values), np.float32(np.nan), values)


def heat_chart(heads: ByVariant) -> Chart:
    """The map of log10 κ of every layer and head, with a slider over steps."""
    variants = [heat_numbers(name, runs) for name, runs in heads.items()]
    values = [
        v for one in variants for when in ("before", "after") for frame in one[when] for v in frame if v and v > 0
    ]
    grey = any(AT_FLOOR in frame for one in variants for when in ("before", "after") for frame in one[when])
    kept = max(len(one["steps"]) for one in variants)
    return Chart(
        "heat",
        "Every head: log10 κ by layer and head",
        "Median over seeds, without C and with it; the one that the model uses comes first."
        + (" Grey cells are beyond the limit of precision." if grey else "")
        + (f" {FRAMES} of the steps are kept, the first and the last among them." if kept == FRAMES else ""),
        "Heat map of log10 κ, layers down, heads across, for " + ", ".join(heads) + ".",
        heat={
            "variants": variants,
            "zmin": min(values, default=0) / 100,
            "zmax": max(values, default=100) / 100,
            "title": "log10 κ",
        },
    )


def heat_numbers(variant: str, runs: Sequence[Heads]) -> dict[str, Any]:
    """The numbers of the heat map: 100 · log10 κ as integers, layer by layer, for every kept step.

    A head at the numerical floor has `AT_FLOOR`, and None stands where there is no head.

    Raises:
        ValueError: the runs have different layers or heads.
    """
    shapes = {heads.before.shape[1:] for heads in runs}
    if len(shapes) > 1:
        raise ValueError(f"the runs of {variant} have different (layers, heads): {sorted(shapes)}; report them apart")
    steps, places = common_steps(runs)
    kept = np.unique(np.linspace(0, len(steps) - 1, min(FRAMES, len(steps))).round()).astype(int)
    found: dict[str, Any] = {
        "variant": variant,
        "conditioned": any(heads.conditioned for heads in runs),
        "steps": [int(steps[i]) for i in kept],
        "modules": runs[0].modules,
        "heads": runs[0].before.shape[2],
    }
    for when in ("before", "after"):
        stacked = np.stack([getattr(h, when)[at[kept]] for h, at in zip(runs, places)])
        frames = _quantile(stacked.reshape(len(runs), -1).T, 0.5).reshape(len(kept), -1)
        found[when] = [_cells(frame) for frame in frames]
    return found


def _cells(kappa: Numbers) -> list[int | None]:
    with np.errstate(invalid="ignore"):
        codes = np.where(np.isinf(kappa), AT_FLOOR, np.round(100 * np.log10(np.maximum(kappa, 1))))
    return [None if math.isnan(code) else int(code) for code in codes.tolist()]
