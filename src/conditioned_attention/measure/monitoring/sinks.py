"""Writes records to files and reads them back: JSON Lines or Parquet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from conditioned_attention.measure.monitoring.records import HeadRecord
from conditioned_attention.storage.json_lines import JsonLines


def sink_for(path: Path) -> Callable[[Sequence[HeadRecord]], None]:
    """The function that writes the records of one measurement: as Parquet if the path ends so, else as JSON Lines.

    Raises ModuleNotFoundError for Parquet without pyarrow, and ValueError if the path for Parquet is a file.
    """
    if path.suffix != ".parquet":
        return partial(_write_lines, path)  # unlike a function made here, it can go to another process
    if path.is_file():
        raise ValueError(f"path={str(path)!r} is a file; Parquet records are a folder, one file a measurement")
    _arrow()
    return partial(_write_parquet, path)


def _write_lines(file: Path, records: Sequence[HeadRecord]) -> None:
    JsonLines(file).append(*(record.to_json() for record in records))


def _write_parquet(folder: Path, records: Sequence[HeadRecord]) -> None:
    """Writes a new file, as Parquet cannot be appended to; pandas, pyarrow, polars and duckdb read a folder as a table.

    If a run measures again at the same step, its earlier file is replaced.
    """
    if not records:
        return
    pyarrow = _arrow()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"step-{records[0].step:012d}.parquet"
    unfinished = file.with_name(f".{file.name}")  # readers of folders skip names that begin with a dot
    # If a column is None in all rows, as κ is at the floor, pyarrow would not infer that it holds numbers.
    types = {"int": pyarrow.int64(), "float": pyarrow.float64(), "str": pyarrow.string(), "bool": pyarrow.bool_()}
    schema = pyarrow.schema([(field.name, types[str(field.type)]) for field in fields(HeadRecord)])
    table = pyarrow.Table.from_pylist([record.to_json() for record in records], schema)
    pyarrow.parquet.write_table(table, unfinished)
    unfinished.replace(file)


def read_records(path: str | Path) -> list[HeadRecord]:
    """Reads the records that a monitor has written, in the order of steps, layers and heads.

    It reads JSON Lines, or a folder of Parquet files (or one of them).  If a head was measured twice at a step, because
    a run was resumed from an earlier checkpoint, the later record counts.  Lines that a killed process left unfinished
    are skipped.  Raises FileNotFoundError if there is nothing at the path, and ValueError for a line that is no record.

    >>> import tempfile, torch
    >>> from conditioned_attention import ConditionMonitor
    >>> from conditioned_attention.measure import read_records
    >>> layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = f"{folder}/conditions.jsonl"
    ...     records = ConditionMonitor(layer, torch.randn(2, 5, 32), path=path).measure(0)
    ...     read_records(path) == list(records)
    True
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there are no records at {path}")
    rows: Iterable[Any] = JsonLines(path)
    if path.suffix == ".parquet":
        rows = _arrow().parquet.read_table(path).to_pylist()
    found = {(record.step, record.layer, record.head): record for record in _records(path, rows)}
    return [found[key] for key in sorted(found)]


def _records(path: Path, rows: Iterable[Any]) -> Iterator[HeadRecord]:
    for row in rows:
        try:
            yield HeadRecord.from_json(row)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} holds a line that is no record of a head: {error}; the line is {row}") from error


def _arrow() -> Any:
    import pyarrow
    import pyarrow.parquet

    return pyarrow
