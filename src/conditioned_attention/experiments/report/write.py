"""Writes what `report` makes (results, pictures, pages of one subject or several), and reads results back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conditioned_attention.experiments.evidence.comparison import Comparison
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.evidence.stored import Results
from conditioned_attention.experiments.evidence.tables import conditioning_table, difference_table, table
from conditioned_attention.experiments.evidence.tuning import Tuning
from conditioned_attention.experiments.report.charts import palette_of
from conditioned_attention.experiments.report.columns import Heads
from conditioned_attention.experiments.report.figures import charts_of, heads_of
from conditioned_attention.experiments.report.page import Section, page
from conditioned_attention.experiments.report.pictures import picture, plot_kappa
from conditioned_attention.experiments.report.plots import plot_scores
from conditioned_attention.experiments.report.subjects import (
    Subject,
    comparison_subject,
    is_single_run,
    read_single_run,
    with_distinct_names,
)
from conditioned_attention.experiments.runs.gather import gather
from conditioned_attention.storage.files import read_json, write_bytes, write_json, write_text
from conditioned_attention.storage.ownership import claim

_TITLE = b": conditioned-attention</title>"  # near the beginning of every page of ours


def write_report(comparison: Comparison, folder: Path) -> None:
    """Writes ``results.json``, ``score.png``, ``kappa.png`` (if κ was measured) and ``report.html`` into the folder."""
    claim(folder)
    subject = comparison_subject(comparison, folder)
    _write_own(subject, folder, heads_of(subject.folders))


def write_reports(subjects: Sequence[Subject], folders: Sequence[Path], output: Path | None = None) -> Path:
    """Writes the report of each subject into its folder, and for several subjects also a page with all side by side.

    Args:
        subjects, folders: what `read_subjects` returned, and the folders that it was given.
        output: only write one page of all subjects, to this file, and leave the folders unchanged.

    Returns:
        The page that shows everything: ``output``, the ``report.html`` of the only folder, or, for several folders, a
        ``report.html`` in the working directory.

    Raises:
        ValueError: a file that is not a page of this library is where the page of all subjects would be written.
    """
    measured = [heads_of(subject.folders) for subject in subjects]
    page_of_all = output or Path("report.html")
    if output is not None or len(subjects) > 1:
        check_page(page_of_all)
    if output is None:
        for subject, folder, heads in zip(subjects, folders, measured):
            _write_own(subject, folder, heads)
        if len(subjects) == 1:
            return folders[0] / "report.html"
    palette = palette_of(list(dict.fromkeys(name for subject in subjects for name in subject.variants)))
    sections = [Section(s, charts_of(s, heads, palette), heads) for s, heads in zip(subjects, measured)]
    write_text(page_of_all, page(sections))
    return page_of_all


def check_page(file: Path) -> None:
    """Raises ValueError if the file exists and is not a page of this library."""
    if file.exists() and _TITLE not in file.read_bytes()[: 1 << 16]:
        raise ValueError(f"{file} exists and is not a page of conditioned-attention; choose another file with output")


def _write_own(subject: Subject, folder: Path, heads: Mapping[str, list[Heads]]) -> None:
    """Writes a subject's files into its folder; for a single run only the page, since its other files are the run's."""
    if not subject.single:
        write_json(folder / "results.json", to_json(subject.comparison))
        write_bytes(folder / "score.png", picture(lambda ax: plot_scores(subject.comparison, ax)))
        if heads:
            write_bytes(folder / "kappa.png", picture(lambda ax: plot_kappa(heads, ax)))
    charts = charts_of(subject, heads, palette_of(subject.variants))
    write_text(folder / "report.html", page([Section(subject, charts, heads)]))


def read_subjects(folders: Sequence[Path]) -> list[Subject]:
    """Reads the subjects in folders that ``compare`` or ``train`` has written, or is writing.

    Raises:
        FileNotFoundError: a folder holds neither; the message says what is valid.
        ValueError: no folder is given, or one twice, or a file is not what these commands write.
    """
    if not folders:
        raise ValueError("name at least one folder that 'conditioned-attention compare' or 'train' has written")
    places = [folder.resolve() for folder in folders]
    if len(set(places)) < len(places):
        raise ValueError(f"the folders must all be different, got {', '.join(map(str, folders))}")
    return with_distinct_names([_read_subject(folder) for folder in folders], list(folders))


def _read_subject(folder: Path) -> Subject:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder")
    if is_single_run(folder):
        return read_single_run(folder)
    return comparison_subject(gather(folder) or read_report(folder), folder)


def to_json(comparison: Comparison) -> dict[str, Any]:
    """The whole comparison as plain data: settings, environment, every score, the table and its sentences."""
    return {
        "settings": comparison.settings,
        "environment": comparison.environment,
        **_of_score(comparison),
        "outcomes": [_of_score(found) for found in comparison.outcomes()],
        "warnings": [] if comparison.tuning is None else comparison.tuning.warnings(),
        "failures": comparison.failures,
        "cost": comparison.cost,
        "machines": comparison.machines,
        "data": comparison.data,
        "calls": comparison.calls,
        "tuning": None if comparison.tuning is None else comparison.tuning.to_json(),
        "runs": [
            {"variant": variant, "seed": seed, "history": history}
            for variant, by_seed in comparison.runs.items()
            for seed, history in by_seed.items()
        ],
    }


def _of_score(comparison: Comparison) -> dict[str, Any]:
    """A comparison by its score, as plain data: the metric, every table with a dict per row, and the sentences."""
    rows, blocked = comparison.summary(), comparison.blocked()
    found = {
        "table": table(rows, comparison.cost),
        "tests": difference_table(rows, blocked),
        "conditioning": conditioning_table(rows),
    }
    told: dict[str, Any] = {name: [dict(zip(header, row)) for row in cells] for name, (header, cells) in found.items()}
    told |= {"blocked": None if blocked is None else blocked.to_json(), "verdicts": comparison.verdicts()}
    return {"metric": dataclasses.asdict(comparison.metric), **told}


def read_report(folder: Path) -> Comparison:
    """Reads the comparison that `write_report` wrote into a folder.

    Raises:
        FileNotFoundError: the folder holds no ``results.json``.
        ValueError: that file is not what `write_report` writes.
    """
    file = folder / "results.json"
    if not file.is_file():
        begun = any(folder.glob("runs/*/seed-*"))
        first = "run 'conditioned-attention compare' into it first, or name the folder of a 'train'"
        why = "none of its runs has finished" if begun else first
        raise FileNotFoundError(f"{folder} holds no results.json; {why}")
    data = read_json(file, Results)
    runs: dict[str, dict[int, list[dict[str, Any]]]] = {row["variant"]: {} for row in data["table"]}
    for run in data["runs"]:
        runs.setdefault(run["variant"], {})[run["seed"]] = run["history"]
    tuning = Tuning.from_json(data["tuning"]) if data.get("tuning") else None
    if tuning and (without := [name for name in runs if name not in tuning.rates()]):
        raise ValueError(f"{file}: tuning.trials chooses no learning rate for {', '.join(without)}")
    return Comparison(
        runs, Metric(**data["metric"]), data["failures"], data["settings"], data["environment"], data["cost"],
        machines=data.get("machines", []), tuning=tuning, data=data.get("data", []), calls=data.get("calls", []),
    )  # fmt: skip
