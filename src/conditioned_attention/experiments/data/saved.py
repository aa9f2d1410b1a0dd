"""Hugging Face data sets that were saved to disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conditioned_attention.environment import needs
from conditioned_attention.experiments.data.scan import reason_of


def is_saved_dataset(path: Path) -> bool:
    """Whether this folder was written by ``save_to_disk``."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def load_saved(path: Path) -> dict[str, Any]:
    """The splits of a saved Dataset or DatasetDict; a Dataset is the split ``"train"``.

    Raises:
        ModuleNotFoundError: ``datasets`` is not installed; the message says how to get it.
        ValueError: the data set cannot be loaded.
    """
    with needs("datasets", f"the saved data set {path}"):
        from datasets import DatasetDict, load_from_disk
    try:
        loaded = load_from_disk(str(path))
    except Exception as error:  # damaged files fail in as many ways as there are readers
        raise ValueError(
            f"the saved data set {path} cannot be loaded, it is damaged or empty ({reason_of(error)})"
        ) from error
    return dict(loaded) if isinstance(loaded, DatasetDict) else {"train": loaded}
