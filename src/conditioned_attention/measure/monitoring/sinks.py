"""Records into files, and back: JSON Lines or Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from conditioned_attention.measure.monitoring.records import HeadRecord
from conditioned_attention.storage.json_lines import JsonLines


class Sink(Protocol):
    """Where records go."""

    def write(self, records: Sequence[HeadRecord]) -> None:
        """Appends the records of one measurement."""


class Lines:
    """One line of JSON a record; numbers that are not finite are null."""

    def __init__(self, path: Path) -> None:
        self.log = JsonLines(path)

    def write(self, records: Sequence[HeadRecord]) -> None:
        """Appends the records of one measurement."""
        self.log.append(*(record.to_json() for record in records))


class Parquet:
    """A folder of Parquet files, one a measurement, which pandas, pyarrow, polars and duckdb read as one table.

    A Parquet file cannot be appended to: it is readable only once it is closed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if folder.is_file():
            raise ValueError(f"path={str(folder)!r} is a file; Parquet records are a folder, one file a measurement")
        _arrow()

    def write(self, records: Sequence[HeadRecord]) -> None:
        """Writes the records of one measurement; measured again at the same step, a run replaces what it had."""
        if not records:
            return
        pyarrow = _arrow()
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"step-{records[0].step:012d}.parquet"
        rows = [record.to_json() for record in records]
        unfinished = file.with_name(f".{file.name}")  # readers of folders pass by names with a dot
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), unfinished)
        unfinished.replace(file)


def sink_for(path: str | Path) -> Sink:
    """Parquet for a path that ends so, else JSON Lines.

    Raises:
        ModuleNotFoundError: Parquet without pyarrow.
        ValueError: Parquet into a file.
    """
    path = Path(path)
    return Parquet(path) if path.suffix == ".parquet" else Lines(path)


def read_records(path: str | Path) -> list[HeadRecord]:
    """The records in a file or folder that a monitor has written, in the order of steps, layers and heads.

    Of a head that was measured twice at a step, because a run went on from an earlier checkpoint, the later one counts.
    Lines that a killed process left unfinished are passed over.

    Args:
        path: JSON Lines, or a folder of Parquet files (or one of them).

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: a line that is not one of ours.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there are no records at {path}")
    rows = _from_parquet(path) if path.suffix == ".parquet" else _from_lines(path)
    found = {(record.step, record.layer, record.head): record for record in rows}
    return [found[key] for key in sorted(found)]


def _from_lines(path: Path) -> Iterator[HeadRecord]:
    for row in JsonLines(path):
        try:
            yield HeadRecord.from_json(row)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} holds a line that is no record of a head: {error}; the line is {row}") from error


def _from_parquet(path: Path) -> Iterable[HeadRecord]:
    table: Any = _arrow().parquet.read_table(path)
    return (HeadRecord.from_json(row) for row in table.to_pylist())


def _arrow() -> Any:
    import pyarrow
    import pyarrow.parquet

    return pyarrow
