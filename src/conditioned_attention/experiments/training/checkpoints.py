"""The checkpoints of one run: each is complete or absent, checked before use, and the newest good one is loaded."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch

from conditioned_attention.experiments.evidence.stored import Number
from conditioned_attention.experiments.training.sharded import load_state, save_state
from conditioned_attention.storage.files import UNFINISHED, read_json, write_json
from conditioned_attention.storage.ownership import checkpoint_name, checkpoints_in
from conditioned_attention.storage.schema import Count

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

_KEEP = 2  # the newest, and the one before in case it is damaged


class _StepRow(TypedDict):
    step: Count
    score: Number


class _Best(TypedDict):
    score: float | None
    step: Count


class _Position(TypedDict):
    step: Count
    tick: Count
    seconds: float
    loss_count: Count
    losses: dict[str, float] | float
    history: list[_StepRow]
    processes: Count
    run: dict[str, Any]


class PositionData(_Position, total=False):
    """``position.json``, as `Keeper` writes it and as version 0.1 wrote it."""

    taken: Count
    place: dict[str, Any] | None
    best: _Best


class Checkpoints:
    """``checkpoint-NNNNNNNN`` folders, written by all processes of a run into a folder that they share.

    Each holds what Accelerate saves (model, optimizer, schedule, scaler, random states of every process), tensors that
    Accelerate does not save, ``position.json``, and ``files.json`` with size and CRC-32 of every file.
    """

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.folder, self.accelerator = folder, accelerator

    def save(self, step: int, position: dict[str, Any], extra: dict[str, Any] | None = None) -> Path:
        """Writes the checkpoint of ``step``, with a position (plain data) and extra tensors; removes old checkpoints.

        Raises:
            OSError: it could not be written (a full disk, say); earlier checkpoints are untouched.
        """
        path = self.folder / checkpoint_name(step)
        temporary, main = self.folder / f".{path.name}{UNFINISHED}", self.accelerator.is_main_process
        if main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        try:
            with _quiet():
                save_state(self.accelerator, temporary)
            if main:
                if extra is not None:
                    torch.save(extra, temporary / "extra.pt")
                write_json(temporary / "position.json", position)
            self.accelerator.wait_for_everyone()
            if main:
                _seal(temporary)
                shutil.rmtree(path, ignore_errors=True)  # if there is one, it is of the same step and replaced now
                temporary.rename(path)
                self._remove_before(path)
        except Exception as error:  # for a full disk, an OSError, a RuntimeError or a SafetensorError: writers differ
            shutil.rmtree(temporary, ignore_errors=True)
            peer = ", or see why another process has ended," * (self.accelerator.num_processes > 1)
            raise OSError(
                f"the checkpoint {path} could not be written ({type(error).__name__}: {error}); those before it are as "
                f"they were. Make room{peer} and call again: the run goes on from the newest of them"
            ) from error
        self.accelerator.wait_for_everyone()
        return path

    def _remove_before(self, newest: Path) -> None:
        """Removes checkpoints older than ``newest`` and the one before it, but no links, which somebody else made."""
        found = checkpoints_in(self.folder)
        for old in found[: max(0, found.index(newest) + 1 - _KEEP)]:
            if not old.is_symlink():
                shutil.rmtree(old)

    def load_newest(
        self, check: Callable[[dict[str, Any]], None]
    ) -> tuple[dict[str, Any], dict[str, Any] | None] | None:
        """Loads the newest checkpoint that is not damaged; returns its position and extra, or None if there is none.

        Newer ones that are damaged are set aside under another name, with a warning.  ``check`` gets the position
        before anything is loaded, and raises if the checkpoint must not be loaded.

        Raises:
            RuntimeError: all checkpoints are damaged, or a good one does not fit this run.
        """
        path = self._choose()
        if path is None:
            return None
        position = read_json(path / "position.json", PositionData)
        check(position)
        try:
            load_state(self.accelerator, path)
            self._check_random_states(path, position["processes"])
            extra = torch.load(path / "extra.pt", weights_only=True) if (path / "extra.pt").exists() else None
        except Exception as error:  # which exception it is depends on the reader of the file that does not fit
            raise RuntimeError(
                f"the checkpoint {path} cannot be loaded ({type(error).__name__}: {error}); its files are as they were "
                "written, so it belongs to another model or version. Choose another folder, or remove it to start anew"
            ) from error
        return position, extra

    def _choose(self) -> Path | None:
        """Returns the checkpoint to load; the main process chooses, so that all processes load the same one."""
        from accelerate.utils import broadcast_object_list

        choice: list[Any] = [None]
        if self.accelerator.is_main_process:
            try:
                choice = [self._newest_good()]
            except RuntimeError as error:
                choice = [error]
        broadcast_object_list(choice)
        if isinstance(choice[0], RuntimeError):
            raise choice[0]
        found: Path | None = choice[0]
        return found

    def _newest_good(self) -> Path | None:
        damaged: list[tuple[Path, str]] = []
        for path in reversed(checkpoints_in(self.folder)):
            reason = damage(path)
            if not reason:
                for bad, why in damaged:
                    aside = _free(bad.with_name(f"damaged-{bad.name}"))
                    bad.rename(aside)
                    logger.warning("%s is damaged (%s): kept as %s, and %s is used", bad, why, aside.name, path.name)
                return path
            damaged.append((path, reason))
        if damaged:
            names = "; ".join(f"{path.name}: {why}" for path, why in damaged)
            raise RuntimeError(
                f"no checkpoint in {self.folder} can be read ({names}); nothing was changed. "
                "Put a good one back, or remove them to start from the beginning"
            )
        return None

    def _check_random_states(self, path: Path, processes: int) -> None:
        """Raises if random states were not loaded, since Accelerate silently skips those that it cannot load."""
        from accelerate.utils import load

        if processes != self.accelerator.num_processes:
            return  # written by another number of processes: an exact continuation is not possible
        states = load(path / f"random_states_{self.accelerator.process_index}.pkl")
        if not torch.equal(states["torch_manual_seed"], torch.get_rng_state()):
            raise RuntimeError("its random states were not taken over")


def _free(path: Path) -> Path:
    """Returns the path, with a number appended if something is there already."""
    others = (path.with_name(f"{path.name}-{i}") for i in itertools.count(2))
    return next(one for one in itertools.chain([path], others) if not one.exists())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Accelerate, which warns of tied weights at every checkpoint, although loading ties them again."""
    log = logging.getLogger("accelerate.utils.other")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _seal(folder: Path) -> None:
    """Writes a list of all files with size and checksum, and waits until all of them are on the disk."""
    files = {
        str(file.relative_to(folder)): size_and_checksum(file) for file in sorted(folder.rglob("*")) if file.is_file()
    }
    for name in files:
        with (folder / name).open("rb") as opened:
            os.fsync(opened.fileno())
    write_json(folder / "files.json", files)


def damage(folder: Path) -> str:
    """Returns what is wrong with a checkpoint's files; empty if nothing is."""
    try:
        files = read_json(folder / "files.json", dict[str, list[int]])
        for name, expected in files.items():
            if size_and_checksum(folder / name) != expected:
                return f"{name} is not what was written"
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def size_and_checksum(file: Path) -> list[int]:
    """Returns a file's size in bytes and its CRC-32."""
    crc = 0
    with file.open("rb") as opened:
        while block := opened.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return [file.stat().st_size, crc]
