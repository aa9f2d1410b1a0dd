"""What is drawn by chance in numbered parts, in as many processes as one likes, and kept in a file."""

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
    """The arrays of a file, or new ones, which are written whole or not at all; a damaged file is made anew.

    The file, in ``cache_dir`` or else in `default_cache_dir`, is named by what it holds and by a stamp of the settings
    and the count.

    Raises:
        ValueError: nothing is to be made, or by no process.
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
    """Parts 0, 1, 2, … without end, in their order, of as many processes; they are started by spawning."""
    if processes == 1:
        yield map(draw, itertools.count())
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        firsts = itertools.count(0, processes)
        yield (part for first in firsts for part in pool.map(draw, range(first, first + processes)))
