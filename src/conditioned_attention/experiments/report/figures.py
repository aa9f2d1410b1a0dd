"""Makes the charts of one comparison or run for which there are data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conditioned_attention.experiments.evidence.statistics import clock, finite_or_nan, times
from conditioned_attention.experiments.evidence.stored import ProjectionRow, TrainRow
from conditioned_attention.experiments.report.charts import (
    Chart,
    Drawn,
    Palette,
    axes,
    curve_chart,
    difference_chart,
    over_seeds,
    reached_chart,
    with_last_third,
)
from conditioned_attention.experiments.report.columns import Heads, common_steps, read_columns, read_heads
from conditioned_attention.experiments.report.curves import POINTS, Curve, Curves
from conditioned_attention.experiments.report.heat import heat_chart, kappa_chart, log_mu_chart
from conditioned_attention.experiments.report.subjects import Subject

Folders = Mapping[str, Mapping[int, Path]]
Growing = tuple[dict[str, dict[int, Curve]], dict[str, Any]]  # a view whose curves are being gathered


def charts_of(subject: Subject, heads: Mapping[str, list[Heads]], palette: Palette) -> list[Chart]:
    """Every chart for which there is something to draw.

    Args:
        subject: what is reported.
        heads: its condition numbers, as `heads_of` reads them; charts of them need a step at which all runs of a
            variant were measured.
        palette: how every variant is drawn.
    """
    comparison = subject.comparison
    rows = comparison.summary()
    found = [
        difference_chart(rows, comparison.metric, palette),
        _scores(subject, palette),
        reached_chart(rows, palette),
        _rates(subject, palette),
        _training(subject, palette),
    ]
    drawn = {name: runs for name, runs in heads.items() if len(common_steps(runs)[0])}
    if drawn:
        found += [kappa_chart(drawn, palette), heat_chart(drawn), log_mu_chart(drawn, palette)]
    found += [_by_epoch(subject, bool(drawn), palette), _projections(subject.folders, palette)]
    return [chart for chart in found if chart]


def heads_of(folders: Folders) -> dict[str, list[Heads]]:
    """The condition numbers of every run that was monitored, by variant."""
    found: dict[str, list[Heads]] = {}
    for variant, by_seed in folders.items():
        for path in by_seed.values():
            heads = read_heads(path / "conditions.jsonl")
            if heads is not None:
                found.setdefault(variant, []).append(heads)
    return found


def _history_curves(subject: Subject, key: str) -> Curves:
    """One number of every evaluation, by epoch or by step, where it is known and finite."""
    found: dict[str, dict[int, Curve]] = {}
    by = clock(subject.comparison.runs)
    for variant, by_seed in subject.comparison.runs.items():
        for seed, history in by_seed.items():
            values = [finite_or_nan(row.get(key)) for row in history]
            points = [(x, y) for x, y in zip(times(history, by), values) if math.isfinite(y)]
            if points:
                found.setdefault(variant, {})[seed] = ([x for x, _ in points], [y for _, y in points])
    return found


def _scores(subject: Subject, palette: Palette) -> Chart | None:
    metric, by = subject.comparison.metric, clock(subject.comparison.runs)
    way = "higher" if metric.higher_is_better else "lower"
    drawn = Drawn(_history_curves(subject, "score"), axes(by, metric.name))
    views = with_last_third("", f"all {by}s", drawn)
    return curve_chart(
        "score",
        f"{metric.name[:1].upper()}{metric.name[1:]} by {by}",
        f"On the evaluation set; {way} is better.{over_seeds(views)}",
        views,
        palette,
    )


def _rates(subject: Subject, palette: Palette) -> Chart | None:
    """The chart of scores at every learning rate, not only the best: it shows how far to trust a choice by few runs."""
    tuning = subject.comparison.tuning
    curves: dict[str, dict[int, Curve]] = {}
    for variant, trials in tuning.trials.items() if tuning else ():
        for seed in dict.fromkeys(seed for trial in trials.values() for seed in trial.scores):
            points = [(lr, trial.scores[seed]) for lr, trial in trials.items() if seed in trial.scores]
            if variant in palette:
                curves.setdefault(variant, {})[seed] = ([lr for lr, _ in points], [score for _, score in points])
    name = tuning.metric.name if tuning else ""
    views = {"": Drawn(curves, axes("learning rate", f"validation {name}", log_x=True))}
    failed = any(trial.failures for trials in tuning.trials.values() for trial in trials.values()) if tuning else False
    return curve_chart(
        "rates",
        f"Validation {name} by learning rate",
        "Each variant at each rate of the grid, on data that the comparison does not see; the best mean was chosen."
        + over_seeds(views)
        + (" A rate at which a run failed has no point." if failed else ""),
        views,
        palette,
    )


def _training(subject: Subject, palette: Palette) -> Chart | None:
    """The chart of training, from the logs of single steps, or else from the means in the evaluations."""
    columns = {"loss": "training loss", "lr": "learning rate", "grad_norm": "gradient norm"}
    found: dict[str, Growing] = {
        title: ({}, axes("optimizer step", title, log=key == "grad_norm")) for key, title in columns.items()
    }
    for variant, by_seed in subject.folders.items():
        for seed, path in by_seed.items():
            log = read_columns(path / "train.jsonl", ("step", *columns), TrainRow)
            for key, title in columns.items():
                known = np.isfinite(log[key]) & np.isfinite(log["step"])
                if known.any():
                    found[title][0].setdefault(variant, {})[seed] = (log["step"][known], log[key][known])
    drawn = {title: Drawn(*view) for title, view in found.items() if view[0]}
    if not drawn:
        by = clock(subject.comparison.runs)
        means = Drawn(_history_curves(subject, "train_loss"), axes(by, "training loss"))
        views = with_last_third("training loss", "training loss", means)
        caption = f"Mean since the last evaluation.{over_seeds(views)}"
        return curve_chart("training_by_epoch", f"Training loss by {by}", caption, views, palette)
    longest = max(np.size(x) for view in drawn.values() for seeds in view.curves.values() for x, _ in seeds.values())
    thinned = " A point stands for a stretch of steps, with the mean of the line and the extremes of the band."
    views = {}
    for title, one in drawn.items():
        views |= with_last_third(title, title, one) if title == "training loss" else {title: one}
    return curve_chart(
        "training",
        f"Training: {', '.join(drawn).replace('training loss', 'loss')}",
        f"From every logged step.{over_seeds(views)}{thinned if longest > POINTS else ''}",
        views,
        palette,
    )


# For each number: its title, how the table combines it over seeds, and a sentence for the caption
_MEASURED: dict[str, tuple[str, Callable[..., Any], str]] = {
    "log10_kappa": ("median log10 κ of heads", np.median, ""),
    "largest_scale": (
        "largest C", np.max, "Largest C: the largest factor on a row (of plain attention: what C would be).",
    ),
    "value_growth": (
        "‖W_V‖ over that at the start", np.mean, "The gradient that C leaves along the rows could drive ‖W_V‖ up.",
    ),
    "log10_kappa_weights": ("median log10 κ of W_Q, W_K, W_V", np.median, ""),
    "floor_share": ("share of heads beyond the limit", np.mean, "Heads beyond the limit of precision have no κ."),
}  # fmt: skip


def _by_epoch(subject: Subject, measured: bool, palette: Palette) -> Chart | None:
    """The chart of what evaluations measured about conditioning, of numbers that were measured more than once."""
    views, words, by = {}, [], clock(subject.comparison.runs)
    for key, (title, middle, about) in _MEASURED.items():
        curves = _history_curves(subject, key)
        again = any(np.size(x) > 1 for by_seed in curves.values() for x, _ in by_seed.values())
        if again and not (measured and key == "log10_kappa"):
            views[title] = Drawn(curves, axes(by, title, log=key == "largest_scale"), middle)
            words += [about] * bool(about)
    return curve_chart(
        "conditioning",
        "Scale and growth during training",
        " ".join(["Measured at evaluations.", *words]) + over_seeds(views, "what the table has"),
        views,
        palette,
    )


def _projections(folders: Folders, palette: Palette) -> Chart | None:
    """The chart of κ of W_Q, W_K and W_V as the model uses them, from ``projections.jsonl``."""
    views: dict[str, Growing] = {}
    for variant, by_seed in folders.items():
        for seed, path in by_seed.items():
            for role, curve in _kappa_by_role(path / "projections.jsonl"):
                curves, _ = views.setdefault(
                    role, ({}, axes("optimizer step", f"κ of the {role} projections", log=True))
                )
                curves.setdefault(variant, {})[seed] = curve
    drawn = {role: Drawn(*view) for role, view in views.items()}
    return curve_chart(
        "projections",
        "Condition numbers of the projections",
        f"κ of W_Q, W_K and W_V as the model uses them, corrections included: median over layers.{over_seeds(drawn)}",
        drawn,
        palette,
    )


def _kappa_by_role(path: Path) -> Iterator[tuple[str, Curve]]:
    log = read_columns(path, ("step", "role", "kappa_corrected"), ProjectionRow, null=math.inf)
    for i, role in enumerate(log.words):
        mine = log["role"] == i
        steps, kappa = log["step"][mine], log["kappa_corrected"][mine]
        measured = np.unique(steps)
        medians = np.array([np.median(kappa[steps == step]) for step in measured])
        finite = np.isfinite(medians)
        if finite.any():
            yield role, (measured[finite], medians[finite])
