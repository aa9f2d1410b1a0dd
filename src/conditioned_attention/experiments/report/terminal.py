"""Prints comparisons and runs in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from conditioned_attention.experiments.evidence.comparison import Comparison, describe_machines
from conditioned_attention.experiments.evidence.glue import glue_means
from conditioned_attention.experiments.evidence.tables import (
    conditioning_table,
    difference_table,
    table,
    tuning_table,
    without_empty_columns,
)
from conditioned_attention.experiments.report.subjects import Subject
from conditioned_attention.experiments.report.words import description

if TYPE_CHECKING:
    from rich.console import Console

_BETWEEN = 2  # spaces between columns


def say(lines: Sequence[str]) -> None:
    """Prints sentences on the terminal, with line breaks between words."""
    console = _console()
    for line in lines:
        console.print(line, highlight=False, markup=False)


def _console() -> Console:
    """A console as wide as the terminal; 160 columns where the output is not a terminal."""
    from rich.console import Console

    return Console(width=None if Console().is_terminal else 160)


def print_table(comparison: Comparison, *, outcomes: bool = False) -> None:
    """Prints the verdicts and then their tables on a terminal; columns that do not fit into its width continue below.

    Args:
        comparison: the comparison to show.
        outcomes: also compare the runs by other numbers, which otherwise happens only if final scores are close to
            their limit.
    """
    from rich.markup import escape
    from rich.table import Table

    console = _console()

    def print_grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        for columns in fitting(header, rows, console.width):
            grid = Table(box=None, padding=(0, _BETWEEN, 0, 0))
            for i in columns:
                grid.add_column(escape(header[i]))
            for row in rows:
                grid.add_row(*(escape(row[i]) for i in columns))
            console.print(grid)

    failed = [f"{name} has no result: {reason}" for name, reason in comparison.failures.items()]
    machines = [describe_machines(comparison.machines)] if len(comparison.machines) > 1 else []
    warnings = [] if comparison.tuning is None else comparison.tuning.warnings()
    say([*comparison.verdicts(), *warnings, *failed, *machines])
    console.print()
    if comparison.tuning is not None:
        console.print("learning rates, chosen on validation data", highlight=False, markup=False)
        print_grid(*tuning_table(comparison.tuning))
        console.print()
    console.print(f"score: {comparison.metric.name}", highlight=False, markup=False)
    rows = comparison.summary()
    print_grid(*table(rows, comparison.cost))
    for found in (difference_table(rows, comparison.blocked()), without_empty_columns(*conditioning_table(rows))):
        if found[1]:
            console.print()
            print_grid(*found)
    if (outcomes or comparison.saturated) and (found := comparison.outcome_table())[1]:
        console.print()
        print_grid(*found)
        console.print()
        say(comparison.outcome_sentences())


def fitting(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """Groups the columns of a table to fit into a width; each group begins with the first column, which names the row.

    >>> fitting(["variant", "final", "best"], [["baseline", "98.19 ± 0.48", "98.33 ± 0.42"]], 32)
    [[0, 1], [0, 2]]
    """
    wide = [max(map(len, (name, *(row[i] for row in rows)))) + _BETWEEN for i, name in enumerate(header)]
    groups = [[0]]
    for i in range(1, len(header)):
        if len(groups[-1]) > 1 and sum(wide[j] for j in groups[-1]) + wide[i] > width:
            groups.append([0])
        groups[-1].append(i)
    return groups


def print_subject(subject: Subject, *, outcomes: bool = False) -> None:
    """Prints on a terminal what a page says at its top."""
    print_table(subject.comparison, outcomes=outcomes)
    say(description(subject)[:-1] if subject.single else [])
    say([f"{name} {far}" for name, far in subject.unfinished.items()])


def print_means(subjects: Sequence[Subject]) -> None:
    """Prints the means over the tasks of GLUE, if there are comparisons of all of them."""
    for mean in glue_means(subject.comparison for subject in subjects):
        print_table(mean)
