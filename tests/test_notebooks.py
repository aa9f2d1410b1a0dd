"""The notebooks run, and what is stored in them is what they made."""

import io
import re

import nbformat
import numpy as np
import pytest
from PIL import Image

from tests.notebooks import NOTEBOOKS, ROOT, execute, pictures, sources, text
from tests.pages import run_alone

STORED = {path: nbformat.read(path, as_version=4) for path in NOTEBOOKS}
EXACT = {"what_the_theorem_says"}  # float64 and no training: the same digits on every machine

notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(notebook):
    """Of every cell, whether it printed and how many pictures it drew."""
    return {cell.id: (bool(text(cell)), len(pictures(cell))) for cell in code(notebook)}


def warned(notebook):
    return [o.text for cell in code(notebook) for o in cell.outputs if o.output_type == "stream" and o.name != "stdout"]


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["convert_and_watch_a_vit", "what_the_theorem_says"]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_a_notebook_prints_what_is_stored(name, tmp_path):
    """As a program, which starts sooner than a kernel."""
    stored = STORED[ROOT / "notebooks" / f"{name}.ipynb"]
    lines = "\n".join(cell.source for cell in code(stored)).splitlines()
    (said,) = run_alone(["\n".join(line for line in lines if not line.startswith("%"))], tmp_path)
    assert said == "".join(map(text, code(stored)))


@pytest.mark.slow
@notebooks
def test_a_notebook_runs(path, tmp_path):
    """From a fresh kernel, so that its asserts hold; it warns of nothing and writes nothing to where it runs."""
    fresh = execute(path, tmp_path / "run")
    assert kinds(fresh) == kinds(STORED[path])
    assert warned(fresh) == []
    assert list((tmp_path / "run" / "work").iterdir()) == []
    if path.stem in EXACT:
        assert list(map(text, code(fresh))) == list(map(text, code(STORED[path])))


@notebooks
def test_stored_outputs_are_of_the_stored_sources(path):
    """If this fails: ``make notebooks``."""
    stored = STORED[path]
    assert stored.metadata.executed == sources(stored)
    assert [cell.execution_count for cell in code(stored)] == list(range(1, len(code(stored)) + 1))
    assert warned(stored) == []


@notebooks
def test_stored_pictures_are_small_and_not_blank(path):
    drawn = [picture for cell in code(STORED[path]) for picture in pictures(cell)]
    assert len(drawn) == 3
    for picture in drawn:
        pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("L"))
        assert 0.02 < (pixels < 200).mean() < 0.9
    assert path.stat().st_size < 400_000


@notebooks
def test_nothing_of_the_machine_is_stored(path):
    stored = path.read_text()
    assert set(STORED[path].metadata) == {"kernelspec", "language_info", "executed"}
    assert all(not cell.metadata for cell in STORED[path].cells)
    for found in (str(ROOT), "/home/", "/root/", "/Users/", "/tmp/", "site-packages"):
        assert found not in stored
    assert not re.search(r"\bat 0x[0-9a-f]+", stored)


@notebooks
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\((?!http)(.*?)\)", "\n".join(cell.source for cell in STORED[path].cells))
    assert links
    assert all((path.parent / link).exists() for link in links)


def test_what_the_first_notebook_says_is_what_it_measured():
    """In the run that is stored: what its last cell says of κ, the floor, and weights without their C."""
    printed = {cell.id: text(cell) for cell in code(STORED[ROOT / "notebooks" / "convert_and_watch_a_vit.ipynb"])}
    start = dict(re.findall(r"(\w+), step 0 \(first\): median κ ([\d.e+]+)", printed["curve-numbers"]))
    assert float(start["preconditioned"]) > 4 * float(start["baseline"])
    assert set(re.findall(r"at the floor (\d+) of 24 heads", printed["curve-numbers"])) == {"0"}
    accuracies = re.findall(r"^\w+: ([\d.]+) % correct", printed["train"], re.MULTILINE)
    assert all(float(accuracy) > 85 for accuracy in accuracies), "its models have not learned"
    end = dict(re.findall(r"(\w+), step \d+ \(last\): median κ ([\d.e+]+)", printed["curve-numbers"]))
    assert float(end["preconditioned"]) > float(end["baseline"])
    lowered = re.findall(r"C lowers κ of (\d+) heads of 24", printed["heads-numbers"])
    assert all(int(number) > 12 for number in lowered)
    kept, restored = re.search(r"with λ I: ([\d.]+) %.*again ([\d.]+) %", printed["spectral"]).groups()
    assert float(kept) < 0.5 * float(restored)
    with_c, without = re.search(r"with C ([\d.]+) % correct, without it ([\d.]+) %", printed["weights"]).groups()
    assert with_c != without
    assert all(
        float(lower) < 1 < float(upper) for lower, upper in re.findall(r"is (\S+) to (\S+),", printed["heads-numbers"])
    )
    assert "no difference to baseline was seen" in printed["compare"]
