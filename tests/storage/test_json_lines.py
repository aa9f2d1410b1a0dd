"""Logs of JSON lines: what a crash leaves costs one line, wherever it stands and whoever reads."""

import math
from typing import Any

import pytest

from conditioned_attention.experiments.report.columns import read_columns
from conditioned_attention.storage.json_lines import JsonLines


@pytest.fixture
def log(tmp_path):
    log = JsonLines(tmp_path / "folder" / "log.jsonl")
    log.append({"step": 1, "loss": 3.0}, {"step": 2, "loss": math.inf})
    return log


def test_rows_come_back_and_what_is_not_finite_is_null(log):
    assert log.read() == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": None}]
    assert log.last() == {"step": 2, "loss": None}
    nothing = JsonLines(log.path.with_name("other.jsonl"))
    assert (nothing.read(), nothing.last()) == ([], {})


@pytest.mark.parametrize(
    "half", [b'{"step": 3, "lo', b'{"step": 3, "inner": {"a": 1}', b'{"step": 3, "\xce', b"\0\0\0\0"]
)
def test_half_a_line_costs_that_line_alone(log, half):
    """Also where a later process went on behind it; version 0.1 lost every row from there on."""
    with log.path.open("ab") as file:
        file.write(half)
    assert [row["step"] for row in log] == [1, 2]
    assert log.last()["step"] == 2
    log.append({"step": 4, "loss": 1.0})
    assert [row["step"] for row in log] == [1, 2, 4]
    assert read_columns(log.path, ["step"], dict[str, Any])["step"].tolist() == [1, 2, 4]
    log.cut_after(3)
    assert log.path.read_text() == '{"step": 1, "loss": 3.0}\n{"step": 2, "loss": null}\n'


def test_what_is_no_log_is_said(log):
    log.path.write_text('{"step": 1}\nstep,loss\n')
    with pytest.raises(ValueError, match=r"log.jsonl, line 2 is no JSON object: b'step,loss"):
        log.read()


def test_appending_nothing_changes_nothing(log):
    before = log.path.read_bytes()
    log.append()
    assert log.path.read_bytes() == before
