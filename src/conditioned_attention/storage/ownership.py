"""Tells our folders from those that somebody else has filled: nothing is written into these or deleted from them.

Every folder gets a mark before it is used.  Folders of versions that left no mark are recognised by their files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from conditioned_attention.storage.files import read_json

MARK = ".conditioned-attention"
_WORDS = "conditioned-attention writes, replaces and removes files of its own in this folder.\n"

_MEASUREMENTS = ("operator", "step", "monitor", "spectra", "spectral", "blocks", "gpu")
# Files of versions that left no mark, and keys that each of them has.
_EARLIER = {
    "begun.json": {"variant", "seed"},
    "result.json": {"variant", "seed"},
    "runs/*/seed-*/begun.json": {"variant", "seed"},
    "runs/*/seed-*/result.json": {"variant", "seed"},
    "checkpoint-*/position.json": {"step", "run"},
    "settings.json": {"recipe", "training"},  # of a comparison
    "tuning.json": {"metric", "trials"},
    "results.json": {"metric", "table", "runs"},
    "tuning/tuning.json": {"metric", "trials"},
    **{f"{name}.json": {"settings", "environment"} for name in _MEASUREMENTS},
}
_SETTINGS_OF_TUNING = {"grid", "runs"}


def claim(folder: Path) -> None:
    """Marks a folder as ours, and creates it if it does not exist.

    Raises:
        ValueError: it is not empty, and holds nothing of ours.
    """
    check_ours(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / MARK
    if not mark.exists():  # directly and not by way of another name: a second process may look meanwhile
        mark.write_text(_WORDS, encoding="utf-8")


def check_ours(folder: Path) -> None:
    """Raises ValueError if a folder is not empty and holds nothing of ours; writes nothing."""
    if not folder.is_dir():
        return
    names = set(os.listdir(folder))
    if MARK in names or names <= {".lock"} or _of_earlier_versions(folder):
        return
    shown = sorted(names)[:4] + ["…"] * (len(names) > 4)
    raise ValueError(
        f"{folder} is not empty, and nothing in it says that it is a folder of conditioned-attention (it holds "
        f"{', '.join(shown)}); nothing was written. Choose a new or empty folder"
    )


def _of_earlier_versions(folder: Path) -> bool:
    if any(_has(folder.glob(pattern), keys) for pattern, keys in _EARLIER.items()):
        return True
    if _has([folder / "settings.json"], _SETTINGS_OF_TUNING):
        return True
    failed = folder / "error.txt"  # alone where a worker died before its run began
    return failed.is_file() and failed.read_bytes().startswith(b"its worker process died")


def _has(files: Iterable[Path], keys: set[str]) -> bool:
    """Whether any of the files is JSON with all of these keys."""
    return any(keys <= _keys(file) for file in files if file.is_file())


def _keys(file: Path) -> set[str]:
    try:
        data: Any = read_json(file)
    except ValueError:
        return set()
    return set(data) if isinstance(data, dict) else set()


_CHECKPOINT = re.compile(r"checkpoint-(\d{8}|[1-9]\d{8,})")


def checkpoint_name(step: int) -> str:
    """The name of the folder that holds the checkpoint of a step."""
    return f"checkpoint-{step:08d}"


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in the folder of a run, oldest first: only folders with names that runs give them."""
    found = [(match[1], path) for path in folder.glob("checkpoint-*") if (match := _CHECKPOINT.fullmatch(path.name))]
    return [path for _, path in sorted((int(step), path) for step, path in found) if path.is_dir()]
