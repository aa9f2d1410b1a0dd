"""Walks through a folder of data: its files in the order of their names, and what was left out."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from conditioned_attention.experiments.data.split import Sets, choose_sets, listed, names_a_set

# Folders that file servers, archives and operating systems create, in lower case: thumbnails, and deleted files.
_FILE_SERVERS = ("@eadir", "@recycle", "#recycle", "#snapshot", "lost+found")
GENERATED = {*_FILE_SERVERS, "$recycle.bin", "system volume information", "__macosx", "__pycache__"}


class File(NamedTuple):
    """A file of a data set: its path below the root, as on disk, its size in bytes and modification time in ns."""

    name: str
    size: int
    changed: int


class Walk:
    """A walk through a folder of data.

    Hidden files and folders, whose names begin with a dot, are skipped silently.  Links are followed only if they lead
    out of the data, and no folder is read twice: a link to a folder of the data, or to one above, would give pictures a
    second class.

    Args:
        root: the folder.
        suffixes: of the files that count, in lower case with the dot.
    """

    def __init__(self, root: Path, suffixes: Collection[str]) -> None:
        self.root, self.suffixes = root, suffixes
        self._real, self._read = os.path.realpath(root), set[str]()
        self._links: list[str] = []
        self._generated: list[str] = []
        self._others: Counter[str] = Counter()

    def folders(self, folder: str = "") -> dict[str, str]:
        """The subfolders of a folder below the root, by name; the values are their names as on disk.

        Names with accents are normalized (NFC), however the file system encodes them.

        Raises:
            ValueError: the names of two folders differ only in how accents are encoded.
        """
        found: dict[str, str] = {}
        for entry in self._entries(folder):
            if entry.is_dir():
                if (name := same_letters(entry.name)) in found:
                    raise ValueError(
                        f"{self.root / folder} has two folders {name!r} whose accents are written in two ways; "
                        "put their files into one"
                    )
                found[name] = entry.name
        return found

    def beside(self, folder: str) -> list[str]:
        """The files directly in a folder that count by their suffix."""
        entries = [entry for entry in self._entries(folder) if self._counts(entry.name) and not entry.is_dir()]
        return [os.path.join(folder, entry.name) for entry in entries]

    def files(self, folder: str = "") -> list[File]:
        """All files that count in a folder below the root and in its subfolders, in the order of their paths."""
        return sorted(self._files(folder), key=lambda file: same_letters(file.name))

    def left_out(self) -> list[str]:
        """What has been left out so far, one line per kind."""
        kinds = {
            "links to folders that are already part of the data or contain them": self._links,
            "folders that systems make": self._generated,
        }
        lines = [f"left out, {kind}: {listed(names)}" for kind, names in kinds.items() if names]
        if self._others:
            counts = ", ".join(f"{n} {suffix or 'without a suffix'}" for suffix, n in sorted(self._others.items()))
            lines.append(f"left out, other files by suffix: {counts}")
        return lines

    def _files(self, folder: str) -> Iterator[File]:
        real = os.path.realpath(self.root / folder)
        if real in self._read:
            self._links.append(folder)
            return
        self._read.add(real)
        for entry in self._entries(folder):
            name = os.path.join(folder, entry.name)
            if self._counts(entry.name):
                yield File(name, *_stamp(entry))  # also a folder with such a name: it is reported as unreadable
            elif not entry.is_dir():
                self._others[os.path.splitext(entry.name)[1].lower()] += 1
            elif entry.is_symlink() and self._known(os.path.realpath(entry.path), real):
                self._links.append(name)
            else:
                yield from self._files(name)

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        """The entries of a folder that may be data, in the order of their names."""
        kept = []
        with os.scandir(self.root / folder) as entries:
            for entry in sorted(entries, key=lambda entry: same_letters(entry.name)):
                if entry.name.casefold() in GENERATED:
                    if (name := os.path.join(folder, entry.name)) not in self._generated:
                        self._generated.append(name)
                elif not entry.name.startswith("."):
                    kept.append(entry)
        return kept

    def _counts(self, name: str) -> bool:
        return os.path.splitext(name)[1].lower() in self.suffixes

    def _known(self, target: str, here: str) -> bool:
        """Whether a link from the folder ``here`` leads into the data, or to a folder above."""
        return _within(target, self._real) or _within(self._real, target) or _within(here, target)


def same_letters(name: str) -> str:
    """A name with normalized accents (NFC), because file systems and archives encode them differently.

    >>> same_letters("caf" + "e" + chr(0x301)) == "caf" + chr(0xE9)
    True
    """
    return unicodedata.normalize("NFC", name)


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _stamp(entry: os.DirEntry[str]) -> tuple[int, int]:
    try:
        stat = entry.stat()
    except OSError:  # a link to nothing
        stat = entry.stat(follow_symlinks=False)
    return stat.st_size, stat.st_mtime_ns


def sets_at_top(walk: Walk, places: Mapping[str, str], eval_split: str | None) -> tuple[Sets, list[str]]:
    """Finds the sets among the folders and files at the top of a folder; also returns a line on those left out.

    Folders that hold no files that count are not considered.

    Args:
        walk: through that folder.
        places: the paths of the folders and files at its top, by name.
        eval_split: see `choose_sets`.

    Raises:
        ValueError: as `choose_sets`.
    """
    empty = set[str]()
    if any(map(names_a_set, places)):
        folders = [name for name, place in places.items() if (walk.root / place).is_dir() and not names_a_set(name)]
        empty = {name for name in folders if not Walk(walk.root, walk.suffixes).files(places[name])}
    sets = choose_sets([name for name in places if name not in empty], eval_split, str(walk.root))
    others = [*sets.left_out, *sorted(empty)] if sets.train is not None else []
    return sets, [f"left out, beside these sets: {listed(others)}"] * bool(others)
