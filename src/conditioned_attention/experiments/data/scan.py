"""Every item of a data set is read once before training, and those that cannot be read are left out by name.

Up front, so that the training set is the same for every run, variant and machine, and a report can say what is missing.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conditioned_attention._warnings import warn
from conditioned_attention.environment import is_main
from conditioned_attention.storage.files import write_json

_CHUNK = 64  # items a thread takes at a time
_SHOWN = 5  # unreadable items in a message


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/conditioned-attention``, or ``~/.cache/conditioned-attention``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "conditioned-attention"


def find_unreadable(
    names: Sequence[str],
    read: Callable[[int], object],
    stamp: str,
    *,
    max_unreadable: int = 10,
    cache_dir: Path | None = None,
) -> dict[int, str]:
    """Reads every item once; a later call with the same stamp takes the result from the cache.

    Args:
        names: of the items, for messages.
        read: reads item i whole and raises if it cannot; called from several threads at a time.
        stamp: changes whenever an item may have changed; see `stamp_of`.
        max_unreadable: more than so many are an error.
        cache_dir: where results are kept; default `default_cache_dir`.  Any file there may be deleted.

    Returns:
        Why it cannot be read, by the index of the item, in order.

    Raises:
        ValueError: more than ``max_unreadable`` items cannot be read.
        OSError: ``cache_dir`` cannot be written.
    """
    check_bound(max_unreadable)
    file = (default_cache_dir() if cache_dir is None else cache_dir).expanduser() / f"scan-{stamp}.json"
    with _locked(file):  # of several processes that start at once, one reads and the others wait for its result
        found = _cached(file, len(names))
        if found is None or len(found) > max_unreadable:  # too many: they may have been repaired, the others are known
            found = _read_all(names, read, range(len(names)) if found is None else list(found))
            write_json(file, {"items": len(names), "unreadable": {str(i): reason for i, reason in found.items()}})
    check_unreadable({names[i]: reason for i, reason in found.items()}, len(names), max_unreadable)
    return found


def stamp_of(parts: Iterable[Any]) -> str:
    """A digest of what identifies the items: names, sizes, times of change, version of the reader."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part).encode())
    return digest.hexdigest()[:32]


def check_bound(max_unreadable: int) -> None:
    if max_unreadable < 0:
        raise ValueError(f"max_unreadable must not be negative, got {max_unreadable}")


def check_unreadable(unreadable: Mapping[str, str], items: int, max_unreadable: int) -> None:
    """Raises ValueError if there are more reasons (by name) than allowed, or nothing is left."""
    if len(unreadable) > max_unreadable:
        raise ValueError(
            f"{_say(unreadable, items)}. At most max_unreadable={max_unreadable} are left out; "
            "repair or remove them, or allow more"
        )
    if items == 0:
        raise ValueError("there is nothing to read")
    if len(unreadable) == items:
        raise ValueError(f"nothing can be read: {_say(unreadable, items)}")


def tell_unreadable(unreadable: Mapping[str, str], items: int) -> list[str]:
    """Warns of items that are left out, in one process of several; returns the lines for a report, one an item."""
    if not unreadable:
        return []
    if multiprocessing.parent_process() is None and is_main():
        warn(f"left out: {_say(unreadable, items)}")
    return [f"left out, unreadable: {name} ({reason})" for name, reason in unreadable.items()]


def reason_of(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _say(unreadable: Mapping[str, str], items: int) -> str:
    shown = [f"{name} ({reason})" for name, reason in list(unreadable.items())[:_SHOWN]]
    more = ["…"] if len(unreadable) > _SHOWN else []
    return f"{len(unreadable)} of {items} items cannot be read: {', '.join(shown + more)}"


def _cached(file: Path, items: int) -> dict[int, str] | None:
    """The result of an earlier scan; None if there is none, or the file is damaged."""
    try:
        data = json.loads(file.read_bytes())
        found = {int(i): str(reason) for i, reason in data["unreadable"].items()}
        whole = data["items"] == items and all(0 <= i < items for i in found)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return found if whole else None


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """A lock beside the file; raises before the long reading if the result could not be kept."""
    from filelock import FileLock

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file.with_suffix(".lock"))
        lock.acquire()
    except OSError as error:
        raise OSError(f"cache_dir={file.parent} cannot be written ({reason_of(error)}); name another") from error
    try:
        yield
    finally:
        lock.release()


def _read_all(names: Sequence[str], read: Callable[[int], object], rows: Sequence[int]) -> dict[int, str]:
    """Reads these items in threads (decoders release the interpreter's lock), with a bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    def read_some(some: Sequence[int]) -> dict[int, str]:
        found = {}
        for i in some:
            try:
                read(i)
            except Exception as error:  # damaged files fail in as many ways as there are readers
                found[i] = reason_of(error)
        return found

    chunks = [rows[i : i + _CHUNK] for i in range(0, len(rows), _CHUNK)]
    found: dict[int, str] = {}
    pool = ThreadPoolExecutor(min(32, (os.cpu_count() or 1) + 4))
    try:
        for some in track(
            pool.map(read_some, chunks), description=f"reading {len(names)} items once", total=len(chunks),
            console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty(),
        ):  # fmt: skip
            found |= some
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for the rest
    return found
