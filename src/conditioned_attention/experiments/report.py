"""What a comparison says: table, pictures, page."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conditioned_attention.experiments.comparison import Comparison, describe_machines
from conditioned_attention.experiments.files import JsonLines, read_json, write_bytes, write_json, write_text
from conditioned_attention.experiments.folder import run_folder
from conditioned_attention.experiments.statistics import Spread, Summary, decimals, epochs, scores
from conditioned_attention.experiments.task import Metric
from conditioned_attention.experiments.tuning import Tuning
from conditioned_attention.experiments.variants import descriptions
from conditioned_attention.measure.plots import legend_above, legend_height, plot_band, plot_condition_numbers, styles
from conditioned_attention.measure.records import HeadRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EXPLANATION = (
    "final and best: mean ± standard deviation over seeds of the last and of the best score (the best is chosen on "
    "the data it is measured on, so it flatters). difference: of the final scores, same seeds in pairs, with its 95 % "
    "t interval. reaches baseline: median epoch at which a run reached the baseline's final score with its seed; "
    "'never' if half of the runs or more did not. time and memory: of a training step, relative to the baseline, "
    "measured afterwards in one process, variants taking turns; in brackets the 20th and 80th percentile of the rounds."
)
CONDITIONING = (
    "At the end of training. κ(heads): median over heads of log10 of the condition number of head outputs, median over "
    "seeds; floor: share of heads whose κ is not told from infinity in float32. largest C: the largest factor on a row "
    "(of the baseline: what C would be). κ(W): median over W_Q, W_K and W_V, corrections included. ‖W_V‖ ×: over that "
    "at the start, mean over seeds."
)


def table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of scores, as text."""
    header = ["variant", "seeds", "final", "best", "difference [95 %]", "reaches baseline"]
    header += ["time ×", "memory ×"] if comparison.cost else []
    return header, [_row(summary, comparison.cost) for summary in comparison.summary()]


def conditioning_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what was measured of heads and projections, as text; no rows if nothing was."""
    header = ["variant", "log10 κ(heads)", "floor", "largest C", "log10 κ(W)", "‖W_V‖ ×"]
    rows = [
        [
            summary.variant,
            _number(summary.log10_kappa, ".2f"),
            _number(summary.floor_share, ".0%"),
            _number(summary.largest_scale, ".3g"),
            _number(summary.log10_kappa_weights, ".2f"),
            _number(summary.value_growth, ".2f"),
        ]
        for summary in comparison.summary()
        if summary.measured
    ]
    return header, rows


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _row(summary: Summary, cost: Mapping[str, Any] | None) -> list[str]:
    digits = decimals(summary.final.mean)
    difference = "" if summary.difference is None else f"{summary.difference.mean:+.{digits}f}"
    if summary.difference is not None and summary.difference.n > 1:
        difference += f" [{summary.difference.low:+.{digits}f}, {summary.difference.high:+.{digits}f}]"
    row = [summary.variant, str(summary.final.n), _spread(summary.final), _spread(summary.best)]
    row += [difference, str(summary.reached)]
    if cost:
        costs = cost["variants"].get(summary.variant)
        row += [_time(costs), f"{costs['memory_ratio']:.3f}"] if costs else ["-", "-"]
    return row


def _spread(spread: Spread) -> str:
    if spread.n == 0:
        return "-"
    digits = decimals(spread.mean)
    return f"{spread.mean:.{digits}f}" if spread.n == 1 else f"{spread.mean:.{digits}f} ± {spread.sd:.{digits}f}"


def _time(costs: Mapping[str, Any]) -> str:
    return f"{costs['time_ratio']:.2f} ({costs['time_p20']:.2f}–{costs['time_p80']:.2f})"


def text_table(comparison: Comparison) -> str:
    """The tables for a terminal or a file, columns aligned by spaces."""
    tables = [table(comparison), conditioning_table(comparison)]
    return "\n\n".join([f"score: {comparison.metric.name}", *(_aligned(*found) for found in tables if found[1])])


def _aligned(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in [header, *rows]]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def tuning_table(tuning: Tuning) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what was tried for each variant, as text."""
    header = ["variant", "learning rate", "runs", f"validation {tuning.metric.name}", "chosen"]
    rows = []
    for variant, trials in tuning.trials.items():
        for lr, trial in trials.items():
            score = _spread(Spread.of(list(trial.scores.values())))
            if trial.failures:
                score = f"{len(trial.failures)} failed: {next(iter(trial.failures.values()))}"
            runs = len(trial.scores) + len(trial.failures)
            rows.append([variant, f"{lr:g}", str(runs), score, "chosen" if lr == tuning.chosen(variant) else ""])
    return header, rows


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
    write_text(folder / "report.html", _page(comparison, pictures))


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


def _page(comparison: Comparison, pictures: Mapping[str, bytes]) -> str:
    from jinja2 import Environment

    header, rows = table(comparison)
    captions = {
        "score.png": "Score on the evaluation set. Lines are means over seeds, bands reach from lowest to highest.",
        "kappa.png": "Condition number of the head outputs as the model uses them (figure 3 of arXiv 2603.27153): on a "
        "held-out probe batch, median over samples, mean over heads, then over layers. Heads at the numerical floor "
        "have no number and are left out, which flatters the variant that has more of them.",
    }
    return Environment(autoescape=True).from_string(_TEMPLATE).render(
        header=header,
        rows=rows,
        metric=comparison.metric.name,
        verdicts=comparison.verdicts() or ["One variant only: nothing is compared."],
        warnings=comparison.tuning.warnings() if comparison.tuning else [],
        conditioning=conditioning_table(comparison),
        conditioning_explanation=CONDITIONING,
        tuning=tuning_table(comparison.tuning) if comparison.tuning else None,
        failures=comparison.failures,
        explanation=EXPLANATION,
        about=descriptions(comparison.runs),
        pictures=[(captions[name], base64.b64encode(data).decode()) for name, data in pictures.items()],
        settings=json.dumps(comparison.settings, indent=2),
        machines=describe_machines(comparison.machines) if comparison.machines else "",
        environment=json.dumps(comparison.environment, indent=2),
        cost=json.dumps(comparison.cost, indent=2) if comparison.cost else "",
    )  # fmt: skip


_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>conditioned-attention: comparison</title>
<style>
  :root { color-scheme: light; }
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a;
         background: #fff; }
  h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
  .scroll { overflow-x: auto; }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
  th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid #ddd; white-space: nowrap; }
  figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
  figcaption, .small { color: #555; font-size: .9rem; }
  pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; font-size: .85rem; }
  .failure { color: #a00; }
</style>
</head>
<body>
<h1>Did it help?</h1>
{% for sentence in verdicts %}<p><strong>{{ sentence }}</strong></p>
{% endfor %}
{% for sentence in warnings %}<p class="failure">{{ sentence }}</p>
{% endfor %}
{% for name, reason in failures.items() %}<p class="failure">{{ name }} has no result: {{ reason }}</p>
{% endfor %}
<p>Score: {{ metric }}</p>
<div class="scroll"><table>
<tr>{% for cell in header %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
<p class="small">{{ explanation }}</p>
{% if conditioning[1] %}<div class="scroll"><table>
<tr>{% for cell in conditioning[0] %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in conditioning[1] %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
<p class="small">{{ conditioning_explanation }}</p>{% endif %}
{% for caption, data in pictures %}<figure><img alt="{{ caption }}" src="data:image/png;base64,{{ data }}">
<figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
<h2>Variants</h2>
<ul>{% for name, text in about.items() %}<li><strong>{{ name }}</strong>: {{ text }}</li>
{% endfor %}</ul>
{% if tuning %}<h2>Learning rates</h2>
<p class="small">Every variant was tried at the same rates with the same seeds, trained on nine tenths of the
training set and scored on the other tenth; the evaluation set took no part. The best mean was chosen, of equal ones the
lowest rate; a rate with a run that failed was not.</p>
<div class="scroll"><table>
<tr>{% for cell in tuning[0] %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in tuning[1] %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>{% endif %}
<h2>Settings</h2><pre>{{ settings }}</pre>
{% if cost %}<h2>Cost of a training step</h2><pre>{{ cost }}</pre>{% endif %}
<h2>Environment</h2>{% if machines %}<p>{{ machines }}</p>{% endif %}
<p class="small">This report was put together in:</p><pre>{{ environment }}</pre>
</body>
</html>
"""


def print_table(comparison: Comparison) -> None:
    """The table and its sentences on a terminal, wrapped to its width."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 160)

    def print_grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        grid = Table(box=None, padding=(0, 2, 0, 0))
        for name in header:
            grid.add_column(escape(name))
        for row in rows:
            grid.add_row(*map(escape, row))
        console.print(grid)

    warnings: list[str] = []
    if comparison.tuning is not None:
        console.print("learning rates, chosen on validation data", highlight=False, markup=False)
        print_grid(*tuning_table(comparison.tuning))
        console.print()
        warnings = comparison.tuning.warnings()
    console.print(f"score: {comparison.metric.name}", highlight=False, markup=False)
    print_grid(*table(comparison))
    if (conditioning := conditioning_table(comparison))[1]:
        console.print()
        print_grid(*conditioning)
        console.print()
    failed = [f"{name} has no result: {reason}" for name, reason in comparison.failures.items()]
    machines = [describe_machines(comparison.machines)] if len(comparison.machines) > 1 else []
    for line in [*comparison.verdicts(), *warnings, *failed, *machines]:
        console.print(line, highlight=False, markup=False)
