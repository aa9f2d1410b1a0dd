"""How tables of measurements are set: numbers as text, Markdown, and a terminal's grid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from conditioned_attention.profiling.clock import PairedRatio


def milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def spread(ratio: PairedRatio, digits: int = 3) -> str:
    return f"{ratio.median:.{digits}f} ({ratio.p20:.{digits}f}–{ratio.p80:.{digits}f})"


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def print_table(title: str, header: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    grid = Table(title=escape(title), title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in header:
        grid.add_column(escape(name))
    for line in lines:
        grid.add_row(*map(escape, line))
    Console(width=None if Console().is_terminal else 200).print(grid)


def how(about: dict[str, Any]) -> str:
    settings, where = about["settings"], about["environment"]
    machine = where["machine"] if settings["device"] == "cpu" else next(d for d in where["devices"] if "cuda" in d)
    threads = f"{settings['threads']} thread{'s' * (settings['threads'] > 1)}"
    rounds = f"{settings['rounds']} interleaved round{'s' * (settings['rounds'] > 1)}"
    return f"{rounds}, {settings['dtype']}, {threads}, {machine}, torch {where['torch']}"
