"""The HTML page of a comparison."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path

from conditioned_attention.experiments.comparison import Comparison, describe_machines
from conditioned_attention.experiments.tables import CONDITIONING, EXPLANATION, conditioning_table, table, tuning_table
from conditioned_attention.experiments.variants import descriptions

TEMPLATE = Path(__file__).with_name("page.html.jinja")


def page(comparison: Comparison, pictures: Mapping[str, bytes]) -> str:
    from jinja2 import Environment

    header, rows = table(comparison)
    captions = {
        "score.png": "Score on the evaluation set. Lines are means over seeds, bands reach from lowest to highest.",
        "kappa.png": "Condition number of the head outputs as the model uses them (figure 3 of arXiv 2603.27153): on a "
        "held-out probe batch, median over samples, mean over heads, then over layers. Heads at the numerical floor "
        "have no number and are left out, which flatters the variant that has more of them.",
    }
    return Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8")).render(
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
