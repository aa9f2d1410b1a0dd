"""One run: any training loop's rows into the run's files, and its error if it fails."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from conditioned_attention.experiments.files import JsonLines, write_json, write_text
from conditioned_attention.experiments.folder import run_folder
from conditioned_attention.experiments.variants import Variant

Train = Callable[[Variant, int], Iterable[Mapping[str, Any]]]
Job = tuple[Variant, int]


def run_job(train: Train, variant: Variant, seed: int, folder: Path, update: Callable[[], None]) -> None:
    """One run; its rows go to ``metrics.jsonl`` as they come, and to ``result.json`` when it has finished."""
    path = run_folder(folder, variant.name, seed)
    error_file, log = path / "error.txt", JsonLines(path / "metrics.jsonl")
    error_file.unlink(missing_ok=True)
    log.path.unlink(missing_ok=True)
    history: list[Mapping[str, Any]] = []
    try:
        for row in train(variant, seed):
            history.append(_plain_row(row))
            log.append(history[-1])
            update()
        if not history:
            raise ValueError("train yielded no row")
    except Exception as error:  # whatever a training loop raises is that run's result, and no other run's business
        summary = f"{type(error).__name__}: {error}".splitlines()[0]
        write_text(error_file, f"{summary}\n\n{traceback.format_exc()}")
    else:
        write_json(path / "result.json", {"variant": variant.name, "seed": seed, "history": history})
    update()


def _plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of plain numbers, from those of numpy and torch too; raises unless it has a finite score."""
    plain = {key: value.item() if hasattr(value, "item") else value for key, value in row.items()}
    if "score" not in plain:
        raise ValueError(f"train yielded a row without 'score': {plain}")
    score = plain["score"]
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
        raise ValueError(f"train yielded a score that is not a finite number: {score!r}")
    return plain
