"""The HTML page of comparisons and runs: text, tables and charts in one self-contained file.

plotly.js and the numbers of the charts are embedded compressed, and the page's own script unpacks them.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from conditioned_attention.experiments.evidence.beside import HEADER, tables_of
from conditioned_attention.experiments.evidence.comparison import Comparison, describe_machines
from conditioned_attention.experiments.evidence.statistics import outcome
from conditioned_attention.experiments.evidence.tables import (
    CONDITIONING,
    SCORES,
    TESTS,
    conditioning_table,
    difference_table,
    explained,
    outcomes_explained,
    table,
    tuning_table,
    without_empty_columns,
)
from conditioned_attention.experiments.report.charts import Chart, counterparts, share_axes
from conditioned_attention.experiments.report.columns import Heads
from conditioned_attention.experiments.report.head import head_of
from conditioned_attention.experiments.report.shown import pictures_of
from conditioned_attention.experiments.report.subjects import Subject
from conditioned_attention.experiments.report.words import alarms, description, not_drawn, seeds_to_show, short_answer
from conditioned_attention.experiments.variants.catalogue import descriptions

_ALONE = 4  # columns of the table of scores where nothing is compared: variant, seeds, final, best
WEB = Path(__file__).with_name("web")  # the template, its style and its script

_OUTCOMES = {"better": "better", "worse": "worse", "not shown": "no difference shown", "": "not compared"}


@dataclass(frozen=True)
class Section:
    """What the page shows of one subject."""

    subject: Subject
    charts: Sequence[Chart]
    heads: Mapping[str, Sequence[Heads]] = field(default_factory=dict)
    lead: Sequence[str] = ()  # sentences at the top, where there are no scores to derive them from


def page(sections: Sequence[Section]) -> str:
    """Renders the page of one or more subjects, side by side where the screen has room.

    Args:
        sections: at least one; charts of the same kind get the same axes.
    """
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    share_axes([chart for section in sections for chart in section.charts])
    web = Environment(
        loader=FileSystemLoader(WEB), autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    charts = [[chart.to_json() for chart in section.charts] for section in sections]
    numbers = {"charts": charts, "dark": counterparts()}
    several = len(sections) > 1
    keys = dict.fromkeys(chart.key for section in sections for chart in section.charts)
    subjects = [_words(section) for section in sections]

    def columns(words: Mapping[str, str], key: str) -> list[tuple[str, str]]:
        return explained(words, [name for subject in subjects if subject[key][1] for name in subject[key][0]])

    return web.get_template("page.html.jinja").render(
        title="; ".join(section.subject.name for section in sections),
        several=several,
        subjects=subjects,
        scored=not all(section.lead for section in sections),
        compared=any(_others(section.subject) for section in sections),
        differences=settings_that_differ([section.subject for section in sections]) if several else [],
        chart_rows=[
            [next(((i, j, c) for j, c in enumerate(s.charts) if c.key == key), None) for i, s in enumerate(sections)]
            for key in keys
        ],
        score_columns=columns(SCORES, "table") + columns(TESTS, "tests"),
        conditioning_columns=columns(CONDITIONING, "conditioning"),
        legends=any(len(chart.legend) > 1 for section in sections for chart in section.charts),
        style=Markup((WEB / "page.css").read_text(encoding="utf-8")),
        script=Markup((WEB / "page.js").read_text(encoding="utf-8")),
        plotly=_plotly() if keys else "",
        numbers=packed(json.dumps(numbers, separators=(",", ":"), allow_nan=False)),
    )


def packed(text: str) -> str:
    """Compresses text and encodes it in base64, which is safe inside HTML.

    >>> import base64, gzip
    >>> gzip.decompress(base64.b64decode(packed("κ"))).decode()
    'κ'
    """
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return packed(get_plotlyjs())


def _others(subject: Subject) -> bool:
    """Whether a subject compares several variants."""
    return not subject.single and len(subject.comparison.runs) > 1


def _words(section: Section) -> dict[str, Any]:
    """Everything about one subject that is text or a table."""
    subject, comparison = section.subject, section.subject.comparison
    rows = comparison.summary()
    if _others(subject):
        several = short_answer(comparison)
        sentences = comparison.verdicts()
        marks = [outcome(row.difference, comparison.metric) for row in rows[1:]]
        marked = [(mark.replace(" ", "-"), _OUTCOMES[mark], text) for mark, text in zip(marks, sentences)]
        lead = [sentence for sentence in [several, *sentences[len(marked) :]] if sentence]
    else:
        lead, marked = list(section.lead) or description(subject, section.heads), []
    return {
        "name": subject.name,
        "head": head_of(subject),
        "papers": [(item, (HEADER, rows)) for item, rows in tables_of(comparison)],
        "metric": comparison.metric.name,
        "lead": lead,
        "verdicts": marked,
        "seeds_to_show": seeds_to_show(comparison),
        "alarms": alarms(comparison) + not_drawn(section.heads),
        "warnings": comparison.tuning.warnings() if comparison.tuning else [],
        "unfinished": subject.unfinished,
        "failures": subject.failures,
        "table": _scores(comparison),
        "outcomes": comparison.outcome_table(),
        "outcomes_explained": outcomes_explained(comparison.outcome_table()[0]),
        "outcome_sentences": comparison.outcome_sentences(),
        "saturated": comparison.saturated,
        "tests": difference_table(rows, comparison.blocked()),
        "conditioning": without_empty_columns(*conditioning_table(rows)),
        "pictures": pictures_of(subject),
        "tuning": tuning_table(comparison.tuning) if comparison.tuning else None,
        "about": descriptions(comparison.runs),
        "data": comparison.data,
        "settings": flat(comparison.settings),
        "cost": flat(comparison.cost),
        "machines": describe_machines(comparison.machines) if comparison.machines else "",
        "environment": flat(comparison.environment),
    }


def _scores(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """The table of scores; if there is only one variant, without the columns that compare."""
    header, rows = table(comparison.summary(), comparison.cost)
    if len(rows) > 1:
        return header, rows
    return header[:_ALONE], [row[:_ALONE] for row in rows]


def flat(data: Any, prefix: str = "") -> dict[str, str]:
    """Flattens nested plain data into one table of names and values.

    >>> flat({"training": {"lr": 0.001, "ema": None}, "recipe": "digits"})
    {'training.lr': '0.001', 'training.ema': 'none', 'recipe': 'digits'}
    """
    if isinstance(data, Mapping):
        return {
            k: v for key, value in data.items() for k, v in flat(value, f"{prefix}.{key}" if prefix else key).items()
        }
    if data is None:
        return {prefix: "none"} if prefix else {}
    if isinstance(data, (list, tuple)) and not any(isinstance(value, (Mapping, list, tuple)) for value in data):
        return {prefix: ", ".join(map(str, data)) or "none"}
    return {prefix: data if isinstance(data, str) else json.dumps(data)}


def settings_that_differ(subjects: Sequence[Subject]) -> list[tuple[str, list[str]]]:
    """Every setting, version and machine that is not the same for all subjects, with the value for each of them."""
    tables = [_about(subject) for subject in subjects]
    names = dict.fromkeys(name for found in tables for name in found)
    rows = [(name, [found.get(name, "not set") for found in tables]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _about(subject: Subject) -> dict[str, str]:
    comparison = subject.comparison
    seeds = sorted({seed for by_seed in comparison.runs.values() for seed in by_seed})
    found = {
        "variants": ", ".join(comparison.runs),
        "seeds": ", ".join(map(str, seeds)),
        "score": str(comparison.metric),
    }
    found |= flat(comparison.settings)
    for key in ("machine", "devices", "torch", "conditioned-attention"):
        values = {", ".join(v) if isinstance(v := machine[key], list) else str(v) for machine in comparison.machines}
        if values:
            found[key] = "; ".join(sorted(values))
    return found
