"""What standard output may not do to a command: end it, or keep its verdict back."""

import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from conditioned_attention.cli import main
from conditioned_attention.experiments import compare
from tests.experiments.loops import scores
from tests.processes import Forked
from tests.test_cli import QUICK

OF_0_1 = Path(__file__).parent / "experiments" / "runs" / "of_0_1"
TRAIN = ["train", "digits", *QUICK, "--folder"]


def with_output(where, encoding, arguments):
    """The command with standard output in ``where``: a path, "closed", or "left" for a pipe that nobody reads."""
    sys.stdout.reconfigure(encoding=encoding, errors="strict")
    if where == "closed":  # as Python finds it when it starts
        os.close(1)
        sys.stdout = None
    else:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer if where == "left" else os.open(where, os.O_WRONLY | os.O_CREAT), 1)
    main(arguments)


def run(tmp_path, arguments, where="/dev/null", encoding="utf-8"):
    """Exit status, and what standard error has."""
    said = tmp_path / "said"
    process = Forked(said, with_output, str(where), encoding, list(map(str, arguments)))
    return process.wait(), said.read_text(errors="surrogateescape")


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_the_verdict_reaches_every_terminal(tmp_path, encoding):
    shutil.copytree(OF_0_1, tmp_path / "runs")
    status, complaints = run(tmp_path, ["report", tmp_path / "runs"], tmp_path / "out", encoding)
    assert (status, complaints) == (0, "")
    out = (tmp_path / "out").read_bytes().decode(encoding)
    assert "10.00 ± 0.39" in out or "10.00 +/- 0.39" in out
    assert ("memory x" if encoding == "ascii" else "memory ×") in out
    assert "contains zero." in out


def test_letters_are_spelt_out_one_by_one(monkeypatch):
    from conditioned_attention import _streams

    stream = io.TextIOWrapper(io.BytesIO(), "cp1252", "strict")
    monkeypatch.setattr(sys, "stdout", stream)
    _streams.survive()
    assert sys.stdout is stream, "somebody else's"
    print("κ ± x², λ 火 caf\udce9", end="", flush=True)
    assert stream.buffer.getvalue() == b"kappa \xb1 x\xb2, lambda ? caf\xe9"
    asked = io.TextIOWrapper(io.BytesIO(), "ascii", "ignore")
    monkeypatch.setattr(sys, "stdout", asked)
    _streams.survive()
    assert asked.errors == "ignore"


@pytest.mark.parametrize(
    ("where", "words"),
    [
        pytest.param("/dev/full", "No space left", marks=pytest.mark.slow),
        ("left", "reader has left"),
        pytest.param("closed", "", marks=pytest.mark.slow),
    ],
)
def test_training_goes_on_without_an_output(tmp_path, where, words):
    status, complaints = run(tmp_path, [*TRAIN, tmp_path / "run"], where)
    assert status == 0, complaints
    assert words in complaints
    assert complaints.count("cannot write to standard output") == bool(words)
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize(("where", "expected"), [("/dev/full", 2), ("left", 0), ("closed", 0)])
def test_a_command_whose_output_is_all_there_is(tmp_path, where, expected):
    status, complaints = run(tmp_path, ["env"], where)
    assert status == expected
    assert "Traceback" not in complaints
    assert ("standard output could not be written (No space left on device)" in complaints) == (expected == 2)


def own_program(where, folder):
    """Somebody's own loop, compared in a program that does nothing about its streams."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer if where == "left" else os.open(where, os.O_WRONLY), 1)
    compare(scores, seeds=2, folder=folder)


@pytest.mark.parametrize("where", ["/dev/full", "left"])
def test_what_nobody_can_be_told_ends_no_comparison(tmp_path, where):
    process = Forked(tmp_path / "said", own_program, where, tmp_path / "runs")
    process.wait()
    assert len(list(tmp_path.glob("runs/runs/*/*/result.json"))) == 4, process.said.read_text()
    assert "Traceback" not in process.said.read_text()


def slowly(arguments):
    """The command with a pipe for its output that does not wait until its reader has caught up."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.dup2(writer, 1)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    threading.Thread(target=lambda: [time.sleep(0.2), *iter(lambda: os.read(reader, 4096), b"")], daemon=True).start()
    main(arguments)


@pytest.mark.slow
def test_a_reader_that_is_slow(tmp_path):
    process = Forked(tmp_path / "said", slowly, ["env"])
    assert process.wait() == 0, process.said.read_text()


def test_a_folder_whose_name_is_not_utf_8(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(OF_0_1, folder)
    status, complaints = run(tmp_path, ["report", folder], tmp_path / "out")
    assert (status, complaints) == (0, "")
    assert (tmp_path / "out").read_bytes().rstrip().endswith(b"/caf\xe9/report.html"), "a path that can be opened"
    assert "<title>caf\N{REPLACEMENT CHARACTER}" in (folder / "report.html").read_text(encoding="utf-8")
    nowhere = tmp_path / os.fsdecode(b"\xff")
    status, complaints = run(tmp_path, [*TRAIN, folder / "run", "--start-from", nowhere], tmp_path / "out")
    assert status == 2
    assert "there is no checkpoint in" in (folder / "run" / "error.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "conditioned_attention", "env"], ["-c", "import conditioned_attention"],
        ["-m", "mine", "--attention", "conditioned_attention"], ["conditioned-attention-sweep.py"],
    ],
)  # fmt: skip
def test_ctrl_c_while_torch_is_imported(tmp_path, command):
    """Of the command a word; a program of somebody else's, which imports the library, keeps its KeyboardInterrupt."""
    (tmp_path / "torch.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n")
    (tmp_path / "mine").mkdir()
    for file in ("mine/__init__.py", "mine/__main__.py", "conditioned-attention-sweep.py"):
        (tmp_path / file).write_text("import conditioned_attention")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")]), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, *command], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )  # fmt: skip
    if command[:2] == ["-m", "conditioned_attention"]:
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "\nstopped\n")
    else:
        assert done.returncode == -signal.SIGINT
        assert "KeyboardInterrupt" in done.stderr


def test_a_user_without_a_home(tmp_path, monkeypatch):
    import pwd

    from conditioned_attention.experiments.data.scan import default_cache_dir

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert default_cache_dir() == tmp_path / f"conditioned-attention-{os.getuid()}"
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_cache_dir() == Path("/home/somebody/.cache/conditioned-attention")
