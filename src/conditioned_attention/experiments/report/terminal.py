"""Comparisons and runs in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from conditioned_attention.experiments.evidence.comparison import Comparison, describe_machines
from conditioned_attention.experiments.evidence.tables import (
    conditioning_table,
    difference_table,
    table,
    tuning_table,
)
from conditioned_attention.experiments.report.subjects import Subject
from conditioned_attention.experiments.report.words import description


def print_table(comparison: Comparison, *, outcomes: bool = False) -> None:
    """The table and its sentences on a terminal, wrapped to its width.

    Args:
        comparison: what is shown.
        outcomes: show what the runs look like by other numbers, as is done where final scores are close to their limit.
    """
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
    rows = comparison.summary()
    print_grid(*table(rows, comparison.cost))
    for found in (difference_table(rows, comparison.blocked()), conditioning_table(rows)):
        if found[1]:
            console.print()
            print_grid(*found)
    console.print()
    failed = [f"{name} has no result: {reason}" for name, reason in comparison.failures.items()]
    machines = [describe_machines(comparison.machines)] if len(comparison.machines) > 1 else []
    for line in [*comparison.verdicts(), *warnings, *failed, *machines]:
        console.print(line, highlight=False, markup=False)
    if (outcomes or comparison.saturated) and (found := comparison.outcome_table())[1]:
        console.print()
        print_grid(*found)
        console.print()
        for line in comparison.outcome_sentences():
            console.print(line, highlight=False, markup=False)


def print_subject(subject: Subject, *, outcomes: bool = False) -> None:
    """What a page says on top, on a terminal."""
    print_table(subject.comparison, outcomes=outcomes)
    for line in description(subject)[:-1] if subject.single else []:
        print(line)
    for name, far in subject.unfinished.items():
        print(f"{name} {far}")
