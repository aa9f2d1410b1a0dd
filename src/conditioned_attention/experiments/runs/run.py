"""Carries out one run: writes the rows of any training loop to the run's files, and its error if it fails."""

from __future__ import annotations

import dataclasses
import json
import math
import traceback
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from conditioned_attention.environment import command, short_environment
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.evidence.statistics import final_score
from conditioned_attention.experiments.evidence.stored import Begun, Data, Result, Row
from conditioned_attention.experiments.runs.own import Run, wants_run
from conditioned_attention.experiments.variants.variant import Variant
from conditioned_attention.storage.files import finite, read_json, write_json, write_text
from conditioned_attention.storage.folder import changes, differences, working_folder
from conditioned_attention.storage.json_lines import JsonLines
from conditioned_attention.storage.ownership import check_ours, checkpoints_in, claim
from conditioned_attention.storage.schema import check

Train = Callable[..., Iterable[Mapping[str, Any]]]  # takes a variant, a seed and, if it asks for one, a `Run`


@dataclass(frozen=True)
class Job:
    """One run to be made, and its own folder.

    ``sets`` is what determines its numbers, as plain data: the settings of all runs, those of its variant, and the
    metric.
    """

    variant: Variant
    seed: int
    path: Path
    sets: dict[str, Any]

    @property
    def name(self) -> str:
        """The run's name for display."""
        return name_of_run(self.variant.name, self.seed)

    @property
    def result(self) -> Path:
        """The file that exists once the run has finished."""
        return self.path / "result.json"

    @property
    def error(self) -> Path:
        """The file that says why the run failed, with a summary in its first line."""
        return self.path / "error.txt"


def name_of_run(variant: str, seed: int) -> str:
    """Returns a run's name for display."""
    return f"{variant}, seed {seed}"


def job_of(
    folder: Path, variant: Variant, seed: int, metric: Metric, settings: Any, variant_settings: Mapping[str, Any]
) -> Job:
    """The job of one variant and seed in a folder of runs."""
    sets = {
        "metric": dataclasses.asdict(metric),
        "settings": settings,
        "variant_settings": variant_settings.get(variant.name),
    }
    return Job(variant, seed, run_folder(folder, variant.name, seed), json.loads(json.dumps(finite(sets))))


def single_job(path: Path, variant: Variant, seed: int, metric: Metric, settings: Any) -> Job:
    """The job of a run that has a folder to itself."""
    return dataclasses.replace(job_of(path, variant, seed, metric, settings, {}), path=path)


def check_origin(job: Job) -> None:
    """Raises ValueError if the run's folder holds another run, or files that are not from this package.

    Another run is one of another variant, seed, setting or metric; the folder may have been copied from elsewhere.
    Only a result counts, or a checkpoint that the run would resume from.  Nothing is written.
    """
    found = made_before(job.path)
    if found is None:
        check_ours(job.path)
        return
    who = [("variant", job.variant.name), ("seed", job.seed)]
    if other := [f"{key}: {found[key]} there, {now} now" for key, now in who if found[key] != now]:
        raise ValueError(f"{job.path} holds another run ({', '.join(other)}); choose another folder")
    different = ", ".join(
        f"{name}: {old} there, {new} now" for _, name, old, new in differences_of_sets(found, job.sets)
    )
    if different:
        raise ValueError(f"{job.path} holds a run of other settings ({different}); choose another folder")


def check_metric(folder: Path, metric: Metric) -> None:
    """Raises ValueError if a folder of runs holds a run of another metric, whatever its variant and seed."""
    for place in sorted(folder.glob("runs/*/seed-*")):
        there = (made_before(place) or {}).get("metric")
        if there and (different := changes(there, dataclasses.asdict(metric))):
            raise ValueError(f"{place} holds a run of another metric ({different}); choose another folder")


def made_before(path: Path) -> dict[str, Any] | None:
    """Returns what a run's folder records about its run; None if no run has finished there or can be resumed."""
    if (path / "result.json").exists():
        return read_run(path / "result.json")
    return read_run(path / "begun.json") if checkpoints_in(path) else None


def read_run(file: Path) -> dict[str, Any]:
    """Reads a ``result.json`` or ``begun.json``; raises ValueError if it does not give the run's settings."""
    found: Any = read_json(file) if file.exists() else {}
    if isinstance(found, dict) and "settings" not in found:
        raise ValueError(f"{file} does not say with which settings its run was made; move that run away")
    check(found, Result if file.name == "result.json" else Begun, str(file))
    made: dict[str, Any] = found
    return made


def differences_of_sets(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[tuple[str, str, Any, Any]]:
    """Returns the differences between two runs in the settings of all runs, those of the variant, and the metric.

    Each difference is (which of these three, the name of the setting, the first value, the second value).  A metric's
    direction is as much a part of it as its name: it says which of two scores is better.
    """
    return [
        (key, name.removeprefix("settings."), a, b)
        for key in ("settings", "variant_settings", "metric")
        for name, a, b in differences(one.get(key), two.get(key), key)
    ]


def data_of(paths: Iterable[Path]) -> list[str]:
    """Returns what the runs in these folders say about their data: a line on the sets, and one on each omission."""
    files = [path / "data.json" for path in paths]
    found = [read_json(file, Data) for file in files if file.exists()]
    return list(dict.fromkeys(line for told in found for line in told["in_words"]))


def reason_of(path: Path) -> str | None:
    """Returns in one line why the run in this folder failed; None if it did not."""
    file = path / "error.txt"
    if not file.exists():
        return None
    return next(iter(file.read_text("utf-8", "replace").splitlines()), "error.txt is empty")


def run_job(train: Train, job: Job, update: Callable[[], None] = lambda: None) -> bool:
    """Calls `carry_out` for one of several jobs: an exception makes this run fail and does not affect the others.

    Returns:
        Whether the run has finished.
    """
    try:
        with working_folder(job.path):  # a `train --into` may be working there
            carry_out(train, job, update)
    except Exception as error:
        if not job.error.exists():  # it could not begin, or could not write its result
            note_failure(job, _told(error))
        return False
    return True


def carry_out(train: Train, job: Job, update: Callable[[], None] = lambda: None) -> None:
    """Runs a job; its rows go to ``metrics.jsonl`` as they come, and to ``result.json`` when it has finished.

    ``update`` is called after every row.

    Raises:
        Exception: whatever ``train`` raises; the reason is in ``error.txt`` too.
    """
    before, about = made_before(job.path), {"variant": job.variant.name, "seed": job.seed, **job.sets}
    about |= _signature(job, before)
    log = JsonLines(job.path / "metrics.jsonl", Row)
    log.path.unlink(missing_ok=True)
    job.error.unlink(missing_ok=True)
    write_json(job.path / "begun.json", about)
    history: list[Mapping[str, Any]] = []
    run = Run(job.path)
    rows = train(job.variant, job.seed, run=run) if wants_run(train) else train(job.variant, job.seed)
    try:
        for row in rows:
            history.append(_plain_row({**run.measured(), **row}))
            log.append(history[-1])
            update()
        if not history:
            raise ValueError("train yielded no row")
        if math.isnan(final_score(history)):
            raise ValueError("train ended with a score that is not a finite number")
    except Exception as error:
        note_failure(job, _told(error))
        raise
    finally:
        if isinstance(rows, Generator):  # now, and not when the last reference to it goes
            rows.close()
    write_json(job.result, {**about, "history": history})


def _signature(job: Job, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns where and when the run is made, and by which command.

    A finished run that only shows its rows again keeps its earlier signature; a run that resumes from the checkpoint
    of another machine or version lists both.
    """
    now = short_environment()
    if before is None or not checkpoints_in(job.path):
        return {"environment": now, "date": f"{datetime.now(UTC):%Y-%m-%d}", "command": command()}
    first, continued = before["environment"], before.get("continued", [])
    if not job.result.exists() and now != (continued or [first])[-1]:
        continued = [*continued, now]
    begun = {key: before[key] for key in ("date", "command") if key in before}
    return {"environment": first, **begun, **({"continued": continued} if continued else {})}


def note_failure(job: Job, text: str) -> None:
    """Writes why a run failed, with the reason in the first line, if the folder is ours and can be written to."""
    with suppress(OSError, ValueError):
        claim(job.path)
        write_text(job.error, text)


def _told(error: Exception) -> str:
    """Returns the reason in one line, followed by the traceback."""
    summary = next(iter(f"{type(error).__name__}: {error}".splitlines()))
    return f"{summary}\n\n{traceback.format_exc()}"


def _plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a row's numbers (also numpy's and torch's) to plain ones; raises unless the score is finite or None.

    None stands for a score that is undefined, such as a correlation with a constant: a model may have such a score
    before it has learnt anything, but not at the end.
    """
    plain = {key: value.item() if hasattr(value, "item") else value for key, value in row.items()}
    if "score" not in plain:
        raise ValueError(f"train yielded a row without 'score': {plain}")
    score = plain["score"]
    if score is None:
        return plain
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
        raise ValueError(f"train yielded a score that is not a finite number: {score!r}")
    return plain


def run_folder(folder: Path, variant: str, seed: int) -> Path:
    """Where one run keeps its files."""
    return folder / "runs" / variant / f"seed-{seed}"
