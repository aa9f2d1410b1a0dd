"""Reads every item of a data set once before training; items that cannot be read are named and left out.

This happens up front so that the training set is the same for every run, variant and machine, and a report can say
what is missing.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from conditioned_attention._warnings import warn
from conditioned_attention.environment import is_main
from conditioned_attention.storage.files import write_json

_CHUNK = 64  # items a thread takes at a time
_SHOWN = 5  # unreadable items in a message


Decoded = TypeVar("Decoded")


def default_cache_dir() -> Path:
    """The default cache folder: ``$XDG_CACHE_HOME/conditioned-attention``, or ``~/.cache/conditioned-attention``.

    For a user without a home (an unknown uid, as in containers) it is in the folder for temporary files.
    """
    name = "conditioned-attention"
    if there := os.environ.get("XDG_CACHE_HOME"):
        return Path(there) / name
    try:
        return Path.home() / ".cache" / name
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}"


class Scan(NamedTuple):
    """The result of reading every item once.

    Attributes:
        unreadable: why an item cannot be read, by its index, in order.
        contents: what ``read`` returned for each item; 0 for those that cannot be read.
    """

    unreadable: dict[int, str]
    contents: list[int]


def read_once(
    names: Sequence[str],
    read: Callable[[int], int],
    stamp: str,
    *,
    max_unreadable: int = 10,
    cache_dir: Path | None = None,
) -> Scan:
    """Reads every item once; a later call with the same stamp takes the results of readable items from the cache.

    Items that could not be read are tried again at every call: the reason may have been a permission, a disk that was
    not mounted or a missing library, none of which the stamp covers.

    Args:
        names: of the items, for messages.
        read: reads all of item i, returns a checksum (CRC-32) of it, and raises if it cannot; called from several
            threads at a time.
        stamp: changes whenever an item may have changed; see `stamp_of`.
        max_unreadable: more unreadable items than this are an error.
        cache_dir: where results are kept; default `default_cache_dir`.  Any file there may be deleted.

    Raises:
        ValueError: more than ``max_unreadable`` items cannot be read.
        OSError: ``cache_dir`` cannot be written.
    """
    check_bound(max_unreadable)
    file = (default_cache_dir() if cache_dir is None else cache_dir).expanduser() / f"scan-{stamp}.json"
    with _locked(file):  # of several processes that start at once, one reads and the others wait for its result
        known = _cached(file, len(names))
        found = Scan({}, [0] * len(names)) if known is None else Scan({}, list(known.contents))
        _read_all(names, read, range(len(names)) if known is None else list(known.unreadable), found)
        if found != known:
            write_json(file, _to_json(found))
    check_unreadable({names[i]: reason for i, reason in found.unreadable.items()}, len(names), max_unreadable)
    return found


def stamp_of(parts: Iterable[Any]) -> str:
    """A digest of what identifies the items: names, sizes, modification times, version of the reader."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part).encode())
    return digest.hexdigest()[:32]


def check_bound(max_unreadable: int) -> None:
    if max_unreadable < 0:
        raise ValueError(f"max_unreadable must not be negative, got {max_unreadable}")


def check_unreadable(unreadable: Mapping[str, str], items: int, max_unreadable: int, where: str = "the data") -> None:
    """Raises ValueError if more items are unreadable than allowed, or none is left.

    ``unreadable`` has the reasons by the items' names.
    """
    if len(unreadable) > max_unreadable:
        raise ValueError(
            f"{_say(unreadable, items)}. At most max_unreadable={max_unreadable} are left out; "
            "repair or remove them, or allow more"
        )
    if items == 0:
        raise ValueError(f"there is nothing to read in {where}")
    if len(unreadable) == items:
        raise ValueError(f"nothing can be read: {_say(unreadable, items)}")


def tell_unreadable(unreadable: Mapping[str, str], items: int) -> list[str]:
    """Warns of items that are left out, in only one of several processes; returns lines for a report, one per item."""
    if not unreadable:
        return []
    tell(f"left out: {_say(unreadable, items)}")
    return [f"left out, unreadable: {name} ({reason})" for name, reason in unreadable.items()]


def tell(message: str) -> None:
    """Issues a warning, in only one of several processes."""
    if multiprocessing.parent_process() is None and is_main():
        warn(message)


def as_scanned(
    name: str, load: Callable[[], bytes], decode: Callable[[bytes], Decoded], checksum: int | None
) -> Decoded:
    """Reads an item during training that the scan could read before.

    Args:
        name: of the item.
        load: returns the item's bytes.
        decode: decodes them.
        checksum: CRC-32 of the bytes that the scan saw; None if it kept none.

    Raises:
        RuntimeError: the item can no longer be read, or its bytes have changed.
    """
    try:
        encoded = load()
        decoded = decode(encoded)
    except Exception as error:  # damaged files fail in as many ways as there are readers
        raise RuntimeError(
            f"{name} could be read when the data were scanned, but cannot be read now ({reason_of(error)}); restore "
            "the file, and the run resumes where it stopped"
        ) from error
    if checksum is not None and zlib.crc32(encoded) != checksum:
        raise RuntimeError(
            f"{name} has changed since the data were scanned; restore the file, and the run resumes where it stopped"
        )
    return decoded


def reason_of(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _say(unreadable: Mapping[str, str], items: int) -> str:
    shown = [f"{name} ({reason})" for name, reason in list(unreadable.items())[:_SHOWN]]
    more = ["…"] if len(unreadable) > _SHOWN else []
    return f"{len(unreadable)} of {items} items cannot be read: {', '.join(shown + more)}"


def _to_json(found: Scan) -> dict[str, Any]:
    contents = "".join(f"{content:08x}" for content in found.contents)  # a million of them are 8 MB
    return {"unreadable": {str(i): reason for i, reason in found.unreadable.items()}, "contents": contents}


def _cached(file: Path, items: int) -> Scan | None:
    """The result of an earlier scan; None if there is none, or the file is damaged."""
    try:
        data = json.loads(file.read_bytes())
        unreadable = {int(i): str(reason) for i, reason in data["unreadable"].items()}
        contents = [int(data["contents"][i : i + 8], 16) for i in range(0, 8 * items, 8)]
        whole = len(data["contents"]) == 8 * items and all(0 <= i < items for i in unreadable)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return Scan(unreadable, contents) if whole else None


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Holds a lock beside the file; raises before the long scan if its result could not be saved."""
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


def _read_all(names: Sequence[str], read: Callable[[int], int], rows: Sequence[int], found: Scan) -> None:
    """Reads these items in threads (decoders release the interpreter's lock), with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    def read_some(some: Sequence[int]) -> dict[int, str]:
        unreadable = {}
        for i in some:
            try:
                found.contents[i] = read(i)
            except Exception as error:  # damaged files fail in as many ways as there are readers
                unreadable[i] = reason_of(error)
        return unreadable

    if not rows:
        return
    chunks = [rows[i : i + _CHUNK] for i in range(0, len(rows), _CHUNK)]
    pool = ThreadPoolExecutor(min(32, (os.cpu_count() or 1) + 4))
    try:
        for some in track(
            pool.map(read_some, chunks), description=f"reading {len(names)} items once", total=len(chunks),
            console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty(),
        ):  # fmt: skip
            found.unreadable.update(some)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for the rest
