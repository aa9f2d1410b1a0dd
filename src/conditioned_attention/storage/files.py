"""Files that survive: written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Writes a file so that a reader, or a crash, finds the old content or the new, never a part.

    Of a name that is not UTF-8, as names of files may be, the odd bytes are spelt out (``\\udce9``).
    """
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: Path, data: bytes) -> None:
    """`write_text` for bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def readable(name: str) -> str:
    """The name of a file for people: letters, even where it is not UTF-8."""
    return os.fsencode(name).decode(errors="replace")


def write_json(path: Path, data: Any) -> None:
    """Writes JSON atomically; numbers that are not finite become null."""
    write_text(path, json.dumps(finite(data), indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The data of a JSON file; raises ValueError with its name if it is damaged."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:  # also what is not UTF-8
        raise ValueError(f"{path} is damaged: it holds no JSON ({error})") from error


def finite(data: Any) -> Any:
    """The same data with every number that JSON cannot hold replaced by None."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return data


def remove_leftovers(folder: Path) -> None:
    """Removes the unfinished files and folders of processes that were killed; for the folder's only user."""
    for path in folder.glob(".*.tmp") if folder.is_dir() else []:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
