"""One run: any training loop's rows into the run's files, and its error if it fails."""

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

Train = Callable[..., Iterable[Mapping[str, Any]]]  # of a variant, a seed and, if it is asked for, a `Run`


@dataclass(frozen=True)
class Job:
    """One run that is wanted, and its own folder.

    ``sets`` is what sets its numbers, as plain data: the settings of all runs, those of its variant, and the metric.
    """

    variant: Variant
    seed: int
    path: Path
    sets: dict[str, Any]

    @property
    def name(self) -> str:
        """For people."""
        return name_of_run(self.variant.name, self.seed)

    @property
    def result(self) -> Path:
        """The file that is there when the run has finished."""
        return self.path / "result.json"

    @property
    def error(self) -> Path:
        """The file that says why the run failed; its first line says it in one."""
        return self.path / "error.txt"


def name_of_run(variant: str, seed: int) -> str:
    """For people."""
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
    """The job of a run that has a folder for itself."""
    return dataclasses.replace(job_of(path, variant, seed, metric, settings, {}), path=path)


def check_origin(job: Job) -> None:
    """Raises ValueError if the run's folder, perhaps copied from elsewhere, holds another run: of another variant,
    seed, setting or metric; or if it is somebody else's.

    What counts is a result, or a checkpoint that the run would go on from.  Nothing is written.
    """
    found = _made_before(job.path)
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
    """Raises ValueError if a folder of runs holds one of another metric, of whatever variant and seed."""
    for place in sorted(folder.glob("runs/*/seed-*")):
        there = (_made_before(place) or {}).get("metric")
        if there and (different := changes(there, dataclasses.asdict(metric))):
            raise ValueError(f"{place} holds a run of another metric ({different}); choose another folder")


def _made_before(path: Path) -> dict[str, Any] | None:
    """What a run's folder says of itself; None where no run has finished there and none would go on."""
    if (path / "result.json").exists():
        return read_run(path / "result.json")
    return read_run(path / "begun.json") if checkpoints_in(path) else None


def read_run(file: Path) -> dict[str, Any]:
    """What a ``result.json`` or ``begun.json`` says; raises ValueError if it does not say how the run was set."""
    found: Any = read_json(file) if file.exists() else {}
    if isinstance(found, dict) and "settings" not in found:
        raise ValueError(f"{file} does not say with which settings its run was made; move that run away")
    check(found, Result if file.name == "result.json" else Begun, str(file))
    made: dict[str, Any] = found
    return made


def differences_of_sets(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[tuple[str, str, Any, Any]]:
    """Where two runs were set differently: settings of all or of the variant, or the metric; the key, and both values.

    A metric's direction is as much a part of it as its name: it says which of two scores is better.
    """
    return [
        (key, name.removeprefix("settings."), a, b)
        for key in ("settings", "variant_settings", "metric")
        for name, a, b in differences(one.get(key), two.get(key), key)
    ]


def data_of(paths: Iterable[Path]) -> list[str]:
    """What the runs in these folders say of their data: a line on the sets, and one on each thing that was left out."""
    files = [path / "data.json" for path in paths]
    found = [read_json(file, Data) for file in files if file.exists()]
    return list(dict.fromkeys(line for told in found for line in told["in_words"]))


def reason_of(path: Path) -> str | None:
    """Why the run in this folder failed, in a line; None if it has not."""
    file = path / "error.txt"
    if not file.exists():
        return None
    return next(iter(file.read_text("utf-8", "replace").splitlines()), "an error.txt without words")


def run_job(train: Train, job: Job, update: Callable[[], None] = lambda: None) -> bool:
    """`carry_out` for a list of jobs: whatever a loop raises is that run's result, and no other run's business.

    Returns:
        Whether the run has finished.
    """
    try:
        with working_folder(job.path):  # a `train --into` may be at it
            carry_out(train, job, update)
    except Exception as error:
        if not job.error.exists():  # it could not begin, or not write its result
            note_failure(job, _told(error))
        return False
    return True


def carry_out(train: Train, job: Job, update: Callable[[], None] = lambda: None) -> None:
    """Runs it; its rows go to ``metrics.jsonl`` as they come, and to ``result.json`` when it has finished.

    ``update`` is called after every row.

    Raises:
        Exception: whatever ``train`` raises; the reason is in ``error.txt`` too.
    """
    before, about = _made_before(job.path), {"variant": job.variant.name, "seed": job.seed, **job.sets}
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
    """Where the run is made, when and by which command.  One that has finished, and only shows its rows again, keeps
    what it has; one that goes on from another machine's or version's checkpoint has both machines."""
    now = short_environment()
    if before is None or not checkpoints_in(job.path):
        return {"environment": now, "date": f"{datetime.now(UTC):%Y-%m-%d}", "command": command()}
    first, continued = before["environment"], before.get("continued", [])
    if not job.result.exists() and now != (continued or [first])[-1]:
        continued = [*continued, now]
    begun = {key: before[key] for key in ("date", "command") if key in before}
    return {"environment": first, **begun, **({"continued": continued} if continued else {})}


def note_failure(job: Job, text: str) -> None:
    """Writes why a run failed, the reason in its first line; as far as that can be written, and only if it is ours."""
    with suppress(OSError, ValueError):
        claim(job.path)
        write_text(job.error, text)


def _told(error: Exception) -> str:
    """The reason in a line, and the traceback."""
    summary = next(iter(f"{type(error).__name__}: {error}".splitlines()))
    return f"{summary}\n\n{traceback.format_exc()}"


def _plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of plain numbers, from those of numpy and torch too; raises unless it has a finite score.

    None stands for a score that there is not, such as a correlation with what is always the same: a model may say that
    before it has learnt anything, and must not at the end.
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
