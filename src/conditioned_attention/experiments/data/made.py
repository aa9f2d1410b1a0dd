"""Random data that are generated in numbered parts, by any number of processes, and kept in a file."""

from __future__ import annotations

import io
import itertools
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from conditioned_attention.experiments.data.scan import default_cache_dir, stamp_of
from conditioned_attention.storage.files import write_bytes

Part = TypeVar("Part", bound=NamedTuple)


def kept_or_made(
    name: str,
    kind: type[Part],
    settings: Mapping[str, Any],
    count: int,
    processes: int,
    cache_dir: Path | None,
    make: Callable[[], Part],
) -> Part:
    """Reads arrays from their file, or makes them and writes the file if it is missing or damaged.

    The file is written completely or not at all.  It lies in ``cache_dir``, by default in `default_cache_dir`, and is
    called ``name`` with a stamp of the settings and the count.

    Raises:
        ValueError: ``count`` or ``processes`` is below 1.
        OSError: the file cannot be written.
    """
    if min(count, processes) < 1:
        raise ValueError(f"count and processes must be at least 1, got {count} and {processes}")
    folder = (default_cache_dir() if cache_dir is None else cache_dir).expanduser()
    file = folder / f"{name}-{stamp_of([*settings.values(), count])}.npz"
    kept = _read(file, kind)
    if kept is None:
        kept = make()
        content = io.BytesIO()
        np.savez_compressed(content, **kept._asdict())
        write_bytes(file, content.getvalue())
    return kept


def _read(file: Path, kind: type[Part]) -> Part | None:
    try:
        with np.load(file) as kept:
            return kind(*(kept[name] for name in kind._fields))
    except Exception:  # as many kinds as there are ways for a file to be damaged
        return None


@contextmanager
def parts_of(draw: Callable[[int], Any], processes: int) -> Iterator[Iterator[Any]]:
    """An endless iterator over parts 0, 1, 2, …, in order; with more than one process, new ones are spawned for it."""
    if processes == 1:
        yield map(draw, itertools.count())
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        firsts = itertools.count(0, processes)
        yield (part for first in firsts for part in pool.map(draw, range(first, first + processes)))
