"""Writes and reads logs with one JSON object per line, also after a crash; all logs go through this."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from conditioned_attention.storage.files import check_read, finite, naming, parsed, write_text


class JsonLines:
    """A log with one JSON object a line.

    A process that is killed while it writes leaves half a line.  The next writer begins a new line after it, and
    readers skip it, so that only this line is lost, wherever it is.

    Args:
        path: path of the file.
        schema: the schema of each row, see `storage.schema`; it is checked when rows are read.
    """

    def __init__(self, path: Path, schema: Any = dict[str, Any]) -> None:
        self.path, self.schema = path, schema

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Writes rows at the end; numbers that are not finite become null."""
        lines = "".join(json.dumps(finite(row)) + "\n" for row in rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with naming(self.path), self.path.open("a+b") as file:
            if lines and file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                lines = lines if file.read(1) == b"\n" else "\n" + lines
            file.write(lines.encode())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields the rows one by one, so that a log of any length can be read; none if there is no file.

        Raises:
            ValueError: a line is not even the beginning of an object, so this is not such a log; or the schema does
                not allow a row.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                row = _object(line)
                if row is not None:
                    check_read(line, row, self.schema, f"{self.path}, line {number}")
                    yield row
                elif not line.lstrip(b" \t\r\n\0").startswith(b"{") and line.strip(b" \t\r\n\0"):
                    raise ValueError(f"{self.path}, line {number} is no JSON object: {line[:80]!r}")

    def read(self) -> list[dict[str, Any]]:
        """All rows."""
        return list(self)

    def last(self, tail: int = 1 << 16) -> dict[str, Any]:
        """The last row, searched from the end because logs may be long; empty if there is none in ``tail`` bytes."""
        if not self.path.exists():
            return {}
        with self.path.open("rb") as file:
            file.seek(max(0, self.path.stat().st_size - tail))
            lines = reversed(file.read().splitlines())
        for line in lines:
            row = _object(line)
            if row is not None:
                check_read(line, row, self.schema, f"{self.path}, last line")
                return row
        return {}

    def cut_after(self, step: int) -> None:
        """Drops the rows of later steps, which a resumed run will write again."""
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in self if row["step"] <= step))


def _object(line: bytes) -> dict[str, Any] | None:
    """The object of a line; None for half a line, an empty one, or one with something else."""
    try:
        row = parsed(line)
    except (ValueError, RecursionError):  # also what is not UTF-8
        return None
    return row if isinstance(row, dict) else None
