"""Folders of runs: one process at a time works in a folder, and all its runs have the same settings."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conditioned_attention.storage.files import finite, read_json, write_json
from conditioned_attention.storage.ownership import checkpoints_in, claim

FINGERPRINT = "data_fingerprint"  # the setting that identifies the data, not how they were requested
_ABSENT = "as in earlier versions"  # the words for a setting that was not written: see `settings.added`


@contextmanager
def working_folder(folder: str | Path | None) -> Iterator[Path]:
    """Claims a folder and locks it against a second process; the lock ends with the process that holds it.

    Raises:
        ValueError: the folder is somebody else's, see `claim`.
        RuntimeError: another process is working in it.
    """
    from filelock import FileLock, Timeout

    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    path = Path(folder)
    claim(path)
    try:
        with FileLock(path / ".lock", timeout=0):
            yield path
    except Timeout as error:
        raise RuntimeError(f"another process is working in {path}") from error


def check_settings(folder: Path, settings: Any) -> None:
    """Writes the settings of what is run into a folder; raises ValueError if it holds runs of something else."""
    if (folder / "begun.json").exists():
        raise ValueError(f"{folder} is the folder of a single run; choose another folder")
    file, now = folder / "settings.json", json.loads(json.dumps(finite(settings)))
    if not file.exists() or not _has_runs(folder):  # an attempt without any result does not reserve the folder
        write_json(file, settings)
        return
    there = read_json(file)
    if different := changes(there, now):
        raise ValueError(f"{folder} holds runs of other settings ({different}); choose another folder")
    if there != now:  # an earlier version did not write what the data are
        write_json(file, {**there, **now})


def says_its_data(settings: Any) -> bool:
    """Whether settings have a `FINGERPRINT`; those of tuning have it within the settings of their runs."""
    return isinstance(settings, dict) and (FINGERPRINT in settings or says_its_data(settings.get("runs")))


def changes(there: Any, now: Any) -> str:
    """What differs between two pieces of plain data, in words; empty if nothing does."""
    return ", ".join(f"{key}: {old} there, {new} now" for key, old, new in differences(there, now))


def _has_runs(folder: Path) -> bool:
    """Whether anything in a comparison's folder was made with its settings."""
    for place in (folder, folder / "tuning"):
        runs = place.glob("runs/*/seed-*")
        if (place / "tuning.json").exists() or any((r / "result.json").exists() or checkpoints_in(r) for r in runs):
            return True
    return False


def _is_grid(found: dict[str, Any]) -> bool:
    """Whether this is what `tuning.grid_of` returns; a file may have been edited."""
    rates, seeds = found.get("rates"), found.get("seeds")
    numbers = isinstance(rates, list) and all(isinstance(rate, float) for rate in rates)
    return numbers and isinstance(seeds, int) and len(found) == 2


def differences(a: Any, b: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every key at which two pieces of plain data differ, with both values; a missing one is given in words.

    If one of them does not say what its data are (`FINGERPRINT`), that is no difference: earlier versions did not.
    Nor is it one if the second has a grid of tuning that contains the first's: a grid only decides on learning rates,
    and the rate of a run is a setting of its own.
    """
    if isinstance(a, dict) and isinstance(b, dict):
        if _is_grid(a) and _is_grid(b) and {*a["rates"]} <= {*b["rates"]} and a["seeds"] <= b["seeds"]:
            return
        for key in [*a, *(key for key in b if key not in a)]:
            said = key != FINGERPRINT or (key in a and key in b)
            if said and a.get(key) != b.get(key):
                yield from differences(a.get(key, _ABSENT), b.get(key, _ABSENT), f"{prefix}.{key}" if prefix else key)
    elif a != b:
        yield prefix or "settings", a, b
