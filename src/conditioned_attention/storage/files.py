"""Files that survive a crash, because they are written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from conditioned_attention.storage.schema import Rule, check

UNFINISHED = ".conditioned-attention.tmp"  # how names of unfinished files and folders end: nobody else's do


def write_text(path: Path, text: str) -> None:
    """Writes a file so that a reader, even after a crash, finds the old content or the new, never a part.

    In names that are not UTF-8, as names of files may be, the invalid bytes are spelt out (``\\udce9``).
    """
    write_bytes(path, spelt(text).encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Writes bytes as `write_text` writes text."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the name of a file to an OSError that has none, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def readable(name: str) -> str:
    """The name of a file as readable text, even if it is not UTF-8."""
    return os.fsencode(name).decode(errors="replace")


def write_json(path: Path, data: Any) -> None:
    """Writes JSON atomically; numbers that are not finite become null."""
    write_text(path, json.dumps(finite(data), indent=2) + "\n")


def read_json(path: Path, schema: Any = Any) -> Any:
    """Reads the data of a JSON file; numbers that JSON does not have (NaN, Infinity) become None, as in `finite`.

    Raises:
        ValueError: the file is damaged, or holds something that the schema (see `storage.schema`) does not allow; the
            message names the file, the key, what was found and what is valid.
    """
    try:
        text = path.read_bytes()
        data = parsed(text)
    except (ValueError, RecursionError) as error:  # also text that is not UTF-8, or endless brackets
        raise ValueError(f"{path} is damaged: it holds no JSON ({error})") from error
    check_read(text, data, schema, str(path))
    return data


def parsed(text: bytes) -> Any:
    """The data of a JSON text, with None for numbers that are not finite; raises ValueError or RecursionError."""
    return json.loads(text, parse_constant=lambda name: None)


def check_read(text: bytes, data: Any, schema: Any, place: str) -> None:
    """Raises ValueError unless the data of a text fit a schema and can be written again."""
    if _SUSPECT.search(text):
        check(data, Writable, place)
    check(data, schema, place)


_SUSPECT = re.compile(rb"\\u[dD][89a-fA-F]|\d{300}|[eE]\+?\d{3}")  # half a letter, or a number beyond any float


def _writable(data: Any) -> bool:
    if isinstance(data, (dict, list)):
        return all(map(_writable, [*data, *data.values()] if isinstance(data, dict) else data))
    if isinstance(data, str):
        return not any("\ud800" <= letter <= "\udfff" for letter in data)
    return not isinstance(data, (int, float)) or abs(data) < 1e308


Writable = Annotated[Any, Rule(_writable, "whole letters of Unicode and numbers below 1e308")]


def spelt(text: str) -> str:
    """A text of whole characters: bytes of a file's name that are not UTF-8 are spelt out.

    >>> spelt("a" + chr(0xDCFF))
    'a\\\\udcff'
    """
    return text.encode(errors="backslashreplace").decode()


def finite(data: Any) -> Any:
    """The data as we store and read them: numbers that JSON cannot hold are None, and texts are those of `spelt`."""
    if isinstance(data, str):
        return spelt(data)
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {spelt(key) if isinstance(key, str) else key: finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return data


def remove_leftovers(folder: Path) -> None:
    """Removes the unfinished files of processes that were killed; only for a process that has the folder to itself."""
    for path in folder.glob(f".*{UNFINISHED}") if folder.is_dir() else []:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
