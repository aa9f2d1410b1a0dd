"""Logs of one JSON object a line: the one way in which they are written and read, also after a crash."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from conditioned_attention.storage.files import check_read, finite, naming, parsed, write_text


class JsonLines:
    """A log with one JSON object a line.

    A process that is killed while it writes leaves half a line.  Whoever goes on begins a new one behind it, and
    readers pass over it: it costs that line alone, wherever it stands.

    Args:
        path: of the file.
        schema: what each row is, see `storage.schema`; checked where rows are read.
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
        """The rows one by one, so that a log of any length may be read; none if there is no file.

        Raises:
            ValueError: a line that is not the beginning of an object, so that this is no such log; or a row that the
                schema does not allow.
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
        """The last row, found from the end, so that the log may be long; empty if there is none in ``tail`` bytes."""
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
        """Drops the rows of later steps: what a resumed run will write again."""
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in self if row["step"] <= step))


def _object(line: bytes) -> dict[str, Any] | None:
    """The object of a line; None for half a line, an empty one, or one with something else."""
    try:
        row = parsed(line)
    except (ValueError, RecursionError):  # also what is not UTF-8
        return None
    return row if isinstance(row, dict) else None
