"""What a comparison leaves in its folder: results, pictures, page; and the results read back."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conditioned_attention.experiments.comparison import Comparison
from conditioned_attention.experiments.files import JsonLines, read_json, write_bytes, write_json, write_text
from conditioned_attention.experiments.folder import run_folder
from conditioned_attention.experiments.page import page
from conditioned_attention.experiments.statistics import epochs, scores
from conditioned_attention.experiments.tables import conditioning_table, table
from conditioned_attention.experiments.task import Metric
from conditioned_attention.experiments.tuning import Tuning
from conditioned_attention.measure.monitor import HeadRecord
from conditioned_attention.measure.plots import legend_above, legend_height, plot_band, plot_condition_numbers, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_scores(comparison: Comparison, ax: Axes) -> Axes:
    """Score by epoch: mean over seeds, in a band from the lowest to the highest."""
    for style, (variant, by_seed) in zip(styles(), comparison.runs.items()):
        curves = [dict(zip(epochs(history), scores(history))) for history in by_seed.values()]
        if curves:
            plot_band(ax, curves, f"{variant} ({len(curves)} seed{'s' * (len(curves) > 1)})", style)
    if ax.get_xlim()[1] > 5:
        ax.locator_params(axis="x", integer=True)
    ax.set_xlabel("epoch")
    ax.set_ylabel(comparison.metric.name)
    legend_above(ax)
    return ax


def conditions_of(comparison: Comparison, folder: Path) -> dict[str, list[list[HeadRecord]]]:
    """The head records of every run that was monitored, by variant."""
    found: dict[str, list[list[HeadRecord]]] = {}
    for variant, by_seed in comparison.runs.items():
        for seed in by_seed:
            rows = JsonLines(run_folder(folder, variant, seed) / "conditions.jsonl").read()
            if rows:
                found.setdefault(variant, []).append([HeadRecord.from_json(row) for row in rows])
    return found


def write_report(comparison: Comparison, folder: Path) -> None:
    """Writes ``results.json``, ``score.png``, ``kappa.png`` (if κ was measured) and ``report.html`` into the folder."""
    pictures = {"score.png": _picture(lambda ax: plot_scores(comparison, ax))}
    conditions = conditions_of(comparison, folder)
    if conditions:
        pictures["kappa.png"] = _picture(lambda ax: plot_condition_numbers(conditions, ax))
    for name, data in pictures.items():
        write_bytes(folder / name, data)
    write_json(folder / "results.json", to_json(comparison))
    write_text(folder / "report.html", page(comparison, pictures))


def to_json(comparison: Comparison) -> dict[str, Any]:
    """The whole comparison as plain data: settings, environment, every score, the table and its sentences."""
    header, rows = table(comparison)
    conditioning = conditioning_table(comparison)
    return {
        "settings": comparison.settings,
        "environment": comparison.environment,
        "metric": {"name": comparison.metric.name, "higher_is_better": comparison.metric.higher_is_better},
        "table": [dict(zip(header, row)) for row in rows],
        "conditioning": [dict(zip(conditioning[0], row)) for row in conditioning[1]],
        "verdicts": comparison.verdicts(),
        "failures": comparison.failures,
        "cost": comparison.cost,
        "machines": comparison.machines,
        "tuning": None if comparison.tuning is None else comparison.tuning.to_json(),
        "runs": [
            {"variant": variant, "seed": seed, "history": history}
            for variant, by_seed in comparison.runs.items()
            for seed, history in by_seed.items()
        ],
    }


def read_report(folder: Path) -> Comparison:
    """The comparison that `write_report` wrote into a folder.

    Raises:
        FileNotFoundError: the folder holds no ``results.json``.
        ValueError: that file is not what `write_report` writes.
    """
    file = folder / "results.json"
    if not file.is_file():
        begun = any(folder.glob("runs/*/seed-*"))
        why = "none of its runs has finished" if begun else "run 'conditioned-attention compare' into it first"
        raise FileNotFoundError(f"{folder} holds no results.json; {why}")
    try:
        data = read_json(file)
        runs: dict[str, dict[int, list[dict[str, Any]]]] = {row["variant"]: {} for row in data["table"]}
        for run in data["runs"]:
            runs[run["variant"]][run["seed"]] = run["history"]
        metric = Metric(**data["metric"])
        tuning = Tuning.from_json(data["tuning"]) if data.get("tuning") else None
        return Comparison(
            runs, metric, data["failures"], data["settings"], data["environment"], data["cost"],
            machines=data.get("machines", []), tuning=tuning,
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a comparison's results ({type(error).__name__}: {error})") from error


def _picture(draw: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.4, 3.6), layout="constrained")
    figure.set_figheight(3.6 + legend_height(draw(figure.add_subplot())))
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)  # type: ignore[no-untyped-call]
    return stream.getvalue()
