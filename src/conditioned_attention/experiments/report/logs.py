"""Makes a page from the logs of a `ConditionMonitor`, for training loops that are not this library's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from conditioned_attention.experiments.evidence.comparison import Comparison
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.report.charts import palette_of
from conditioned_attention.experiments.report.columns import Heads, read_heads
from conditioned_attention.experiments.report.figures import charts_of
from conditioned_attention.experiments.report.page import Section, page
from conditioned_attention.experiments.report.subjects import Subject
from conditioned_attention.experiments.report.words import conditioning
from conditioned_attention.experiments.report.write import check_page
from conditioned_attention.measure import read_records
from conditioned_attention.storage.files import readable, write_text


def is_log(path: Path) -> bool:
    """Whether ``ConditionMonitor(…, path=…)`` may have written this: a ``.jsonl``, or a folder named ``….parquet``."""
    return (path.suffix == ".jsonl" and path.is_file()) or (path.suffix == ".parquet" and path.is_dir())


def write_log_report(logs: Sequence[Path], output: Path | None = None) -> tuple[Path, list[str]]:
    """Writes one page of all logs, side by side.

    Args:
        logs: at least one, all different.
        output: the page; default: beside the first log, with the same name but ending in ``.html``.

    Returns:
        The page, and a sentence on each log.

    Raises:
        ValueError: a log holds no records or is given twice, or a file that is no page of this library is in the way.
    """
    if len({log.resolve() for log in logs}) < len(logs):
        raise ValueError(f"the logs must all be different, got {', '.join(map(str, logs))}")
    target = output or logs[0].with_suffix(".html")
    check_page(target)
    names = [readable(str(log) if len({log.stem for log in logs}) < len(logs) else log.stem) for log in logs]
    palette, sections, said = palette_of(names), [], list[str]()
    for name, log in zip(names, logs):
        heads = {name: [_heads(log)]}
        subject = Subject(name, Comparison({name: {}}, Metric("score")), single=True)
        lead = conditioning([], heads[name])
        said += [f"{name}: {sentence}" for sentence in lead]
        sections.append(Section(subject, charts_of(subject, heads, palette), heads, lead))
    write_text(target, page(sections))
    return target, said


def _heads(log: Path) -> Heads:
    if log.suffix == ".jsonl":
        found = read_heads(log)
    else:
        with TemporaryDirectory() as folder:
            lines = Path(folder) / "conditions.jsonl"
            lines.write_text("".join(json.dumps(record.to_json()) + "\n" for record in read_records(log)))
            found = read_heads(lines)
    if found is None:
        raise ValueError(f"{log} holds no record of a ConditionMonitor")
    return found
