"""Finds a record given as data, in a state_dict, or in a file or folder that holds either."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple
from zipfile import is_zipfile

import torch

from conditioned_attention.conversion.configs import CONFIG_KEY
from conditioned_attention.conversion.guard import record_in
from conditioned_attention.conversion.record import FORMAT
from conditioned_attention.storage.files import read_json

_DEEP = 3  # {"epoch": …, "model": {"state_dict": {…}}}


class Found(NamedTuple):
    """A record, and what is known about where it was found.

    Attributes:
        guarded: it comes from a state_dict with a guard.
        loose: its names may have a prefix before those of the model, because torch.distributed.checkpoint joins the
            keys of nested dictionaries.
    """

    record: Any
    guarded: bool = False
    loose: bool = False


def record_from(data: Mapping[str, Any] | str | Path) -> Found:
    """The record that ``data`` is or contains.

    Raises TypeError for another type, and ValueError if nothing says how a model was conditioned.
    """
    if isinstance(data, (str, Path)):
        return _from_path(Path(data))
    if not isinstance(data, Mapping):
        raise TypeError(f"data must be what conditioning() returns, a state_dict or a path, got {type(data).__name__}")
    if "format" in data:
        return Found(data)
    found = [record for state_dict in _state_dicts(data) if (record := record_in(state_dict)) is not None]
    if not found:
        raise ValueError(
            f"data is neither what conditioning() of this version returns (format {FORMAT}) nor the state_dict of a "
            f"model that was converted with guard=True; it has the keys {[*data][:5]}"
        )
    if any(record != found[0] for record in found):
        raise ValueError(
            f"the dictionaries inside of data, which has the keys {[*data][:5]}, say that they were conditioned in "
            "different ways: give the one that the model is to load"
        )
    return Found(found[0], guarded=True)


def _state_dicts(data: Mapping[Any, Any], deep: int = _DEEP) -> Iterator[Mapping[str, Any]]:
    """The dictionary and those inside it, as checkpoints have them: {"state_dict": …, "state_dict_ema": …}."""
    yield {key: value for key, value in data.items() if isinstance(key, str)}
    for value in data.values() if deep else ():
        if isinstance(value, Mapping):
            yield from _state_dicts(value, deep - 1)


def _from_path(path: Path) -> Found:
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {str(path)!r}")
    if path.is_dir():
        return _from_folder(path)
    if path.suffix == ".json":
        return _in_file(path, _in_json(read_json(path)))
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(str(path), "pt") as file:  # the keys are enough
            return record_from(dict.fromkeys(file.keys()))
    mapped = is_zipfile(path)  # PyTorch's older files are not zipped, and cannot be read in part
    try:
        return _in_file(path, torch.load(path, map_location="cpu", mmap=mapped, weights_only=True))
    except UnpicklingError as error:
        raise ValueError(
            f"{str(path)!r} is not made of tensors and plain data alone, and nothing else is unpickled here: load it "
            "yourself, and give its state_dict"
        ) from error


def _in_file(path: Path, data: Any) -> Found:
    """The record in the content of a file."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{str(path)!r} holds a {type(data).__name__}, no record of conditioning() and no state_dict")
    return record_from(data)


def _in_json(read: Any) -> Any:
    """A record by itself, or the one in a config.json or an adapter_config.json."""
    for holder in (read, read.get("auto_mapping")) if isinstance(read, dict) else ():
        if isinstance(holder, dict) and CONFIG_KEY in holder:
            return holder[CONFIG_KEY]
    return read


def _from_folder(folder: Path) -> Found:
    """The record in what save_pretrained has written, or torch.distributed.checkpoint, whose keys are enough."""
    if (folder / ".metadata").exists():
        from torch.distributed.checkpoint.filesystem import FileSystemReader

        keys = FileSystemReader(folder).read_metadata().state_dict_metadata
        return record_from(dict.fromkeys(keys))._replace(loose=True)
    for name in ("config.json", "adapter_config.json"):
        if (folder / name).exists():
            return _in_file(folder / name, _in_json(read_json(folder / name)))
    raise ValueError(
        f"the folder {str(folder)!r} has neither a config.json nor what torch.distributed.checkpoint writes"
    )
