"""Whatever somebody does by hand to a stored file: the report is made of it, or an error names the file."""

import json
import re
import warnings
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.experiments import edits


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return edits.make(tmp_path_factory.mktemp("edited"))


@contextmanager
def edited(file, text):
    """The file has that text for a while."""
    before = file.read_bytes()
    file.write_text(text)
    try:
        yield
    finally:
        file.write_bytes(before)


def refusal(folder, file, text):
    """The words of the ValueError, empty for none; anything else is raised."""
    with edited(file, text):
        try:
            edits.use(folder)
        except ValueError as error:
            return str(error)
    return ""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_an_edit_is_read_or_refused_by_name(folder, data):
    """A part of a file is taken away, or something else stands there; any traceback fails this."""
    file = data.draw(st.sampled_from(edits.stored(folder)))
    text = file.read_text()
    row = json.loads(text.splitlines()[-1] if file.suffix == ".jsonl" else text)
    path = data.draw(st.sampled_from(list(edits.places(row))))
    value = data.draw(st.sampled_from([*edits.VALUES, *edits.WORDS, KeyError]))
    error = refusal(folder, file, edits.text_of(file, path, value))
    assert not error or str(file) in error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "path", "value", "words"),
    [
        ("runs/preconditioned/seed-0/result.json", ("history", 0, "score"), "high", r"history\[0\]\.score is 'high'"),
        ("runs/preconditioned/seed-0/result.json", ("history",), [], r"valid is a list with at least one row"),
        ("runs/preconditioned/seed-0/result.json", ("seed",), None, "seed is null; valid is a whole number from 0 on"),
        ("runs/preconditioned/seed-0/result.json", ("metric", "name"), KeyError, r"metric\.name is missing"),
        ("runs/preconditioned/seed-1/metrics.jsonl", ("score",), KeyError, r", line \d+: score is missing"),
        ("runs/preconditioned/seed-0/conditions.jsonl", ("head",), 10**9, "valid is a whole number from 0 to 4095"),
        ("results.json", ("cost",), {}, r"cost\.variants is missing"),
        ("tuning/tuning.json", ("trials", 0, "lr"), -1, r"trials\[0\]\.lr is -1; valid is a positive number"),
    ],
)
def test_the_words(folder, place, path, value, words):
    file = folder / place
    error = refusal(folder, file, edits.text_of(file, path, value))
    assert error.startswith(str(file)), error
    assert re.search(words, error), error


@pytest.mark.slow
@pytest.mark.parametrize("word", ["null", "NaN", "Infinity", "-Infinity"])
@pytest.mark.filterwarnings("error")
def test_scores_that_are_not_finite_are_counted_as_such(folder, word):
    """In the statistics, the tables and the charts; before they crashed there."""
    file = folder / "runs/preconditioned/seed-0/result.json"
    data = edits.changed(json.loads(file.read_text()), ("history", -1, "score"), "?")
    with edited(file, json.dumps(data).replace('"?"', word)):
        comparison = edits.use(folder)
    assert comparison.verdicts()[0].startswith("preconditioned: a final score of it or of baseline is not finite")
    log = folder / "runs/preconditioned/seed-1/metrics.jsonl"
    with edited(log, log.read_text() + f'{{"epoch": 3, "score": {word}}}\n'):
        edits.use(folder)


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("epoch", [KeyError, None])
def test_rows_without_an_epoch_are_counted(folder, epoch):
    file = folder / "runs/preconditioned/seed-0/result.json"
    data = json.loads(file.read_text())
    some = [*data["history"][:1], *(edits.changed(row, ("epoch",), epoch) for row in data["history"][1:])]
    for history in (some, some[1:], [{"score": 1.0}]):
        with edited(file, json.dumps({**data, "history": history})):
            assert edits.use(folder).runs["preconditioned"][0] == history
