"""The numbers that a paper prints, beside those that a comparison has measured."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from conditioned_attention.experiments.evidence.comparison import Comparison
from conditioned_attention.experiments.evidence.outcomes import PRECISIONS
from conditioned_attention.experiments.evidence.published import ITEMS, Item, Row
from conditioned_attention.experiments.evidence.tables import conditioning_table, table

HEADER = ["", "plain", "conditioned", "change", "plain, measured", "conditioned, measured", "difference [95 %]"]
# for each measure of a paper, the column of a comparison's tables that has the same number
COLUMNS = {
    "score": "final",
    "epochs": "reaches baseline",
    "steps": "reaches baseline, step",
    "kappa": "log10 κ(heads)",
    "kappa_weights": "log10 κ(W)",
    "hours": "time ×",
    "memory": "memory ×",
    **PRECISIONS,
}

Cells = Mapping[str, Mapping[str, str]]  # by variant and column


def change(row: Row) -> str:
    """How a paper's two numbers differ: a difference for scores, a ratio for everything else.

    >>> change(Row("ViT-B", None, "80.2", "81.4")), change(Row("ViT-B", None, "29:28", "30:45", "hours"))
    ('+1.2', '× 1.044')
    """
    if not (row.plain and row.conditioned):
        return ""
    plain, conditioned = _number(row.plain), _number(row.conditioned)
    return f"{conditioned - plain:+}" if row.measure in ("score", *PRECISIONS) else f"× {conditioned / plain:.3f}"


def _number(printed: str) -> Decimal:
    whole, _, minutes = printed.partition(":")
    return Decimal(whole) + Decimal(minutes) / 60 if minutes else Decimal(whole)


def cells_of(comparison: Comparison) -> Cells:
    """The cells of a comparison's tables by variant and column."""
    rows, found = comparison.summary(), dict[str, dict[str, str]]()
    for header, cells in (table(rows, comparison.cost), conditioning_table(rows)):
        for row in cells:
            found.setdefault(row[0], {}).update(zip(header, row))
    for one in rows:
        step = one.reached.step
        found[one.variant][COLUMNS["steps"]] = str(one.reached) if step is None else f"{step:,}"
    for outcome in comparison.outcomes():
        for variant, _, final, _, difference, *_ in table(outcome.summary())[1]:
            found[variant] |= {outcome.metric.name: final, _difference(outcome.metric.name): difference}
    return found


def _difference(column: str) -> str:
    return "difference [95 %]" if column == COLUMNS["score"] else f"{column}, difference [95 %]"


def beside(item: Item, found: Mapping[str, Cells]) -> list[list[str]]:
    """The rows under `HEADER`: the paper's numbers, and beside them the measured ones in ``found``."""
    rows = []
    for row in item.rows:
        by_variant, column = found.get(row.key, {}), COLUMNS[row.measure]
        ours = [by_variant.get(name, {}).get(column, "") for name in ("baseline", item.variant)]
        difference = by_variant.get(item.variant, {}).get(_difference(column), "")
        rows.append([row.what, row.plain, row.conditioned, change(row), *ours, difference])
    return rows


def tables_of(comparison: Comparison) -> list[tuple[Item, list[list[str]]]]:
    """The items that a comparison's recipe belongs to, each with those rows of `beside` in which both have numbers."""
    settings = comparison.settings if isinstance(comparison.settings, Mapping) else {}
    names = [str(settings[key]) for key in ("recipe", "glue_task") if settings.get(key)]
    found = {"_".join(names): cells_of(comparison)} if names else {}
    tables = []
    for item in ITEMS.values():
        if item.variant in comparison.runs and any(row.key in found for row in item.rows):
            tables.append((item, [row for row in beside(item, found) if row[1] and row[4] and row[5]]))
    return [(item, rows) for item, rows in tables if rows]


def elsewhere(item: Item) -> tuple[list[str], list[list[str]]]:
    """Header and rows of scores that others reported on the same tasks, the paper's own, and the error of a single run.

    There are no rows if no such scores are known.  The mean is that of the scores shown in a row.

    >>> header, rows = elsewhere(ITEMS["table4"])
    >>> rows[-1]
    ['standard error of one test run', '1.08', '0.30', '0.30', '0.49', '0.31', '']
    """
    header = ["", *(row.what for row in item.rows), "mean"]
    if not item.elsewhere:
        return header, []
    found = {other.who: [other.scores[row.recipe or ""] for row in item.rows] for other in item.elsewhere}
    found |= {
        f"arXiv {item.paper}, plain": [row.plain for row in item.rows],
        f"arXiv {item.paper}, conditioned": [row.conditioned for row in item.rows],
    }
    told = [[who, *scores, f"{sum(map(Decimal, scores)) / len(scores):.2f}"] for who, scores in found.items()]
    errors = [f"{row.standard_error:.2f}" for row in item.rows]
    return header, [*told, ["standard error of one test run", *errors, ""]]
