"""What a report is about: a comparison, or a single run, finished or under way, with the folders of its runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from conditioned_attention.experiments.evidence.comparison import Comparison, calls_of, machines_of
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.evidence.stored import Begun, Result, Row, TrainRow
from conditioned_attention.experiments.runs.run import data_of, name_of_run, reason_of, run_folder
from conditioned_attention.storage.files import read_json, readable
from conditioned_attention.storage.json_lines import JsonLines


@dataclass(frozen=True)
class Subject:
    """What one column of a page is about.

    Attributes:
        name: its name in headings.
        comparison: the runs; a single run is stored as a comparison of one.
        folders: the folder with the logs of each run, by variant and seed; empty if there are no logs.
        unfinished: the progress of each run that has neither finished nor failed, by ``"variant, seed n"``.
        single: whether this is the folder of a single run.
    """

    name: str
    comparison: Comparison
    folders: dict[str, dict[int, Path]] = field(default_factory=dict)
    unfinished: dict[str, str] = field(default_factory=dict)
    single: bool = False

    @property
    def variants(self) -> list[str]:
        """Every variant that has a folder or a result, the baseline first."""
        return list(dict.fromkeys([*self.comparison.runs, *self.folders]))

    @property
    def failures(self) -> dict[str, str]:
        """The reason why each run has no result, without runs that are still under way."""
        return {name: why for name, why in self.comparison.failures.items() if name not in self.unfinished}


def is_single_run(folder: Path) -> bool:
    """Whether a folder is that of a single run, as ``train`` writes it."""
    return (folder / "begun.json").is_file() and not (folder / "runs").is_dir()


def comparison_subject(comparison: Comparison, folder: Path) -> Subject:
    """The subject of a comparison whose runs are, or were, in a folder."""
    folders = {
        variant: {seed: run_folder(folder, variant, seed) for seed in by_seed}
        for variant, by_seed in comparison.runs.items()
    }
    unfinished = {}
    for file in sorted(folder.glob("runs/*/seed-*/begun.json")):
        name = f"{file.parent.parent.name}, seed {file.parent.name.removeprefix('seed-')}"
        if comparison.failures.get(name) == "not finished":
            unfinished[name] = how_far(file.parent, read_json(file, Begun))
    return Subject(readable(folder.resolve().name), comparison, folders, unfinished)


def read_single_run(folder: Path) -> Subject:
    """Reads the subject of a folder that ``train`` has written, or is writing.

    Raises:
        ValueError: ``begun.json`` or ``result.json`` is not what a run writes.
    """
    result = folder / "result.json"
    file = result if result.is_file() else folder / "begun.json"
    about = read_json(file, Result if file == result else Begun)
    variant, seed, settings = about["variant"], about["seed"], about["settings"]
    if own := about.get("variant_settings"):
        settings = {**(settings if isinstance(settings, dict) else {"settings": settings}), **own}
    history = about["history"] if file == result else JsonLines(folder / "metrics.jsonl", Row).read()
    name = name_of_run(variant, seed)
    reason = None if file == result else reason_of(folder)
    comparison = Comparison(
        {variant: {seed: history} if history else {}},
        Metric(**about["metric"]),
        {name: reason} if reason else {},
        settings,
        machines=machines_of([about]),
        data=data_of([folder]),
        calls=calls_of([about]),
    )
    under_way = {} if file == result or reason else {name: how_far(folder, about)}
    return Subject(name, comparison, {variant: {seed: folder}}, under_way, single=True)


def how_far(folder: Path, begun: Mapping[str, Any]) -> str:
    """Describes how far a run without a result has come, as far as its logs show it."""
    rows = JsonLines(folder / "metrics.jsonl", Row).read()
    step = JsonLines(folder / "train.jsonl", TrainRow).last().get("step")
    parts = []
    if rows:
        parts.append(f"evaluated {len(rows)} time{'s' * (len(rows) > 1)}")
        if (epoch := rows[-1].get("epoch")) is not None:  # a stream without a length has none
            parts[-1] += f", last at epoch {epoch:g}"
    training = _within(_within(begun, "settings"), "training")
    shorter = any(training.get(name) is not None for name in ("max_steps", "tokens", "seconds"))
    whole = training.get("epochs")
    if rows and "epoch" in rows[-1] and isinstance(whole, (int, float)) and not shorter:
        parts[-1] += f" of {whole:g}"
    if step is not None:
        parts.append(f"logged up to step {step:,}")
    logs = [path.stat().st_mtime for path in folder.glob("*.jsonl")]
    if logs:
        parts.append(f"last written {datetime.fromtimestamp(max(logs), UTC):%Y-%m-%d %H:%M} UTC")
    return "not finished: " + ("; ".join(parts) or "begun, nothing logged")


def _within(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The object under a key of plain data, or an empty one if something else is there: settings may be anything."""
    found = data.get(key)
    return found if isinstance(found, dict) else {}


def with_distinct_names(subjects: list[Subject], folders: list[Path]) -> list[Subject]:
    """Renames subjects after the paths of their folders if their names are not distinct."""
    if len({subject.name for subject in subjects}) == len(subjects):
        return subjects
    return [replace(subject, name=readable(str(folder))) for subject, folder in zip(subjects, folders)]
