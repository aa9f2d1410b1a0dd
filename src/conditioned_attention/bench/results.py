"""The files of a benchmark: NAME.csv with one row per measurement, and NAME.json with how and where it was measured.

Rows come in groups, such as those of a case or of a model.  The whole CSV is rewritten after each group, so a run that
is stopped keeps what it has measured, and the same command continues with the missing groups.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import statistics
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeVar, get_type_hints

from conditioned_attention.environment import environment
from conditioned_attention.profiling.clock import paired_ratio
from conditioned_attention.storage.files import finite, read_json, write_json, write_text
from conditioned_attention.storage.folder import changes, working_folder
from conditioned_attention.storage.schema import Count

Row = TypeVar("Row")
Key = TypeVar("Key", bound=Hashable)


def measure_missing(
    file: Path,
    cls: type[Row],
    settings: Any,
    groups: Mapping[Key, Callable[[], Sequence[Row]]],
    key: Callable[[Row], Key],
) -> Iterator[list[Row]]:
    """Measures the groups that a file does not hold yet, and yields every group's rows in turn.

    Args:
        file: the CSV; no other process may use its folder meanwhile.
        cls: dataclass of its rows.
        settings: a dataclass; everything that affects the numbers, but not which groups were requested.
        groups: the functions that measure the groups, by name.
        key: the name of the group that a row belongs to.

    Raises:
        ValueError: the file holds measurements with other settings or from another environment.
    """
    with working_folder(file.parent):
        rows = begin(file, cls, settings)
        for name, measure in groups.items():
            if all(key(row) != name for row in rows):
                rows = [*rows, *measure()]
                write_rows(file, rows)
            yield [row for row in rows if key(row) == name]


def begin(file: Path, cls: type[Row], settings: Any) -> list[Row]:
    """Reads the rows of an earlier run, and writes the JSON beside the CSV; arguments and errors: `measure_missing`."""
    now = json.loads(json.dumps(finite({"settings": dataclasses.asdict(settings), "environment": environment()})))
    rows = read_rows(file, cls) if file.exists() else []
    if rows and (different := changes(read_json(file.with_suffix(".json")), now)):
        raise ValueError(f"{file} was measured differently ({different}); choose another folder or remove the file")
    write_json(file.with_suffix(".json"), now)
    return rows


def write_rows(file: Path, rows: Sequence[Any]) -> None:
    """Writes rows, instances of one dataclass, as CSV; None becomes an empty cell, a list its numbers with spaces."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(field.name for field in dataclasses.fields(rows[0]))
    writer.writerows([_text(value) for value in vars(row).values()] for row in rows)
    write_text(file, stream.getvalue())


def read_rows(file: Path, cls: type[Row]) -> list[Row]:
    """Reads the rows that `write_rows` wrote; raises FileNotFoundError for no file and ValueError for another one."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file}; 'conditioned-attention bench {file.stem}' writes it")
    kinds = get_type_hints(cls)
    with file.open(newline="") as opened:
        reader = csv.DictReader(opened)
        if reader.fieldnames != list(kinds):
            raise ValueError(f"{file} has columns {reader.fieldnames}, expected {list(kinds)}")
        try:
            return [cls(**{name: _value(kinds[name], cell) for name, cell in record.items()}) for record in reader]
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} cannot be read: {error}") from error


def time_columns(seconds: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """The columns of a row that hold times, one per round, and ratios to the baseline's in the same rounds."""
    ratio = paired_ratio(seconds, base)
    return {
        "ratio": ratio.median,
        "p20": ratio.p20,
        "p80": ratio.p80,
        "milliseconds": 1000 * statistics.median(seconds),
        "rounds_milliseconds": [1000 * each for each in seconds],
    }


class _Settings(TypedDict):
    threads: Count
    rounds: Count
    dtype: str
    device: str


class _Environment(TypedDict):
    machine: str
    devices: list[str]
    torch: str


class About(TypedDict):
    """What tables say about how attention or training steps were measured, from the JSON beside the CSV."""

    settings: _Settings
    environment: _Environment


def read_about(file: Path) -> Any:
    """Reads the settings and the environment of a CSV from the JSON beside it."""
    return read_json(file.with_suffix(".json"), About)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return " ".join(map(_text, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _value(kind: Any, cell: str) -> Any:
    if kind is str:
        return cell
    if kind == list[float]:
        return [float(number) for number in cell.split()]
    if cell == "":
        return None
    return int(cell) if kind in (int, int | None) else float(cell)
