"""The README's tables and the picture, both made from the CSV files."""

import pytest

from conditioned_attention.bench.operator import OperatorRow
from conditioned_attention.bench.plots import write_plot
from conditioned_attention.bench.results import read_rows, write_rows
from conditioned_attention.bench.step import StepRow
from conditioned_attention.bench.tables import BEGIN, END, NOT_MEASURED, markdown_table, put_between_marks, readme_text
from conditioned_attention.storage.files import write_json

SETTINGS = {"rounds": 30, "threads": 2, "device": "cpu", "dtype": "float32"}
ENVIRONMENT = {"machine": "a box, 2 cores", "torch": "2.13.0", "devices": ["cpu"]}


def timed(mode, contestant, ratio, extra):
    times = {"ratio": ratio, "p20": ratio - 0.01, "p80": ratio + 0.02, "milliseconds": 12.34 * ratio}
    memory = {"held_bytes": 100, "held_ratio": 1.0, "extra_floats_a_row": extra, "peak_bytes": 9, "peak_ratio": 1.0}
    return OperatorRow("vit", "8×12×197×64", mode, contestant, "measured", "", **times, **memory)


@pytest.fixture
def folder(tmp_path):
    rows = [
        timed("forward", "plain", 1.0, 0.0),
        timed("both", "plain", 1.0, 0.0),
        timed("both", "three lines", 1.05, 65.0),
        timed("both", "lean", 1.01, 1.0),
        OperatorRow("vit", "8×12×197×64", "both", "ours, compiled", "failed", "NoCxxCompiler: none, sorry | here"),
    ]
    write_rows(tmp_path / "operator.csv", rows)
    steps = [
        StepRow("vit_b", "batch 4", "baseline", "", 1.0, 1.0, 1.0, 2345.6, 100, 1.0, 100, 1.0, [2345.6]),
        StepRow("vit_b", "batch 4", "preconditioned", "", 1.012, 1.0, 1.02, 2380.0, 101, 1.01, 100, 1.0, [2380.0]),
    ]
    write_rows(tmp_path / "step.csv", steps)
    for name in ("operator", "step"):
        write_json(tmp_path / f"{name}.json", {"settings": SETTINGS, "environment": ENVIRONMENT})
    return tmp_path


HOW = "30 interleaved rounds, float32, 2 threads, a box, 2 cores, torch 2.13.0."

OPERATOR = f"""\
Forward and backward, time over plain attention: median (20th–80th percentile) of {HOW} Floats: what is held \
for backward beyond plain attention, for each row of each head.

| attention (B×H×N×D) | plain, ms | three lines | lean | ours, compiled | floats, lean |
| --- | --- | --- | --- | --- | --- |
| vit: 8×12×197×64 | 12.3 | 1.05 (1.04–1.07) | 1.01 (1.00–1.03) | failed | +1 |"""

STEP = f"""\
Whole training steps, over the baseline's: median (20th–80th percentile) of {HOW}

| training step | baseline, ms | variant | time × | peak memory × | held for backward × |
| --- | --- | --- | --- | --- | --- |
| vit_b: batch 4 | 2346 | preconditioned | 1.012 (1.000–1.020) | 1.0000 | 1.0100 |"""


def test_tables_of_the_readme(folder):
    assert markdown_table(folder / "operator.csv") == OPERATOR
    assert markdown_table(folder / "step.csv") == STEP
    assert readme_text(folder) == f"{OPERATOR}\n\n{STEP}"
    assert readme_text(folder / "empty") == NOT_MEASURED


def test_the_first_of_a_model_is_its_baseline_whatever_its_name(folder):
    rows = read_rows(folder / "step.csv", StepRow)
    others = [
        StepRow("deit", "batch 4", "qk_norm", "", 1.0, 1.0, 1.0, 100.0, 100, 1.0, 100, 1.0, [100.0]),
        StepRow("deit", "batch 4", "baseline", "", 0.9, 0.8, 1.0, 90.0, 100, 1.0, 100, 1.0, [90.0]),
    ]
    write_rows(folder / "step.csv", [*rows, *others])
    added = "| deit: batch 4 | 100 | baseline | 0.900 (0.800–1.000) | 1.0000 | 1.0000 |"
    assert markdown_table(folder / "step.csv") == f"{STEP}\n{added}"


def test_tables_go_between_the_marks(tmp_path):
    file = tmp_path / "README.md"
    file.write_text("before\n\n<!-- bench:begin -->\nold\n<!-- bench:end -->\n\nafter\n")
    put_between_marks(file, "new\n\n| table |")
    expected = "before\n\n<!-- bench:begin -->\nnew\n\n| table |\n<!-- bench:end -->\n\nafter\n"
    assert file.read_text() == expected
    put_between_marks(file, "new\n\n| table |")
    assert file.read_text() == expected


@pytest.mark.parametrize("text", ["", BEGIN, END + BEGIN, 2 * (BEGIN + END), BEGIN + BEGIN + END])
def test_marks_that_are_not_there_once(text, tmp_path):
    file = tmp_path / "README.md"
    file.write_text(text)
    with pytest.raises(ValueError, match="once each"):
        put_between_marks(file, "new")
    assert file.read_text() == text


def test_rows_come_back_as_they_were(folder, tmp_path):
    rows = read_rows(folder / "operator.csv", OperatorRow)
    assert (rows[3].ratio, rows[3].held_bytes, rows[3].repetitions) == (1.01, 100, None)
    assert rows[4].note == "NoCxxCompiler: none, sorry | here"
    write_rows(tmp_path / "again.csv", rows)
    assert (tmp_path / "again.csv").read_text() == (folder / "operator.csv").read_text()


def test_files_that_are_not_results(tmp_path):
    with pytest.raises(FileNotFoundError, match="bench operator' writes it"):
        markdown_table(tmp_path / "operator.csv")
    (tmp_path / "operator.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="has columns"):
        markdown_table(tmp_path / "operator.csv")


def test_the_picture_is_drawn_from_the_file(folder):
    picture = write_plot(folder / "operator.csv")
    assert picture == folder / "operator.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    write_rows(folder / "operator.csv", [timed("both", "plain", 1.0, 0.0)])  # nobody but plain could be measured
    assert write_plot(folder / "operator.csv").exists()
