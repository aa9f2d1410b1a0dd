"""Trackers: real ones, killed and resumed, hold every point once; and none that fails or hangs stops a run."""

import json
import logging
import os
import struct
import subprocess
import sys
import threading
import time
import types
from importlib.machinery import ModuleSpec

import pytest

from conditioned_attention.experiments.training import trackers as module
from conditioned_attention.experiments.training.trackers import TRACKERS, Trackers
from tests.experiments import tracked_run
from tests.experiments.tracked_run import CONFIG, RUN
from tests.processes import Forked


class StandIn:
    """A tracker that remembers what it is sent, and fails or hangs at a call if told so."""

    def __init__(self, fails=None, hangs=None, last_step=-1):
        self.fails, self.hangs, self.last_step = fails, hangs, last_step
        self.rows, self.calls, self.released = [], [], threading.Event()

    def _call(self, name):
        self.calls.append(name)
        if name == self.fails:
            raise ConnectionError("the server went away\nand more")
        if name == self.hangs:
            self.released.wait(60)

    def start(self, tracker_class, run):
        self._call("start")
        return self, self.last_step

    def log(self, values, step):
        if len(self.rows) == 2:
            self._call("log")
        self.rows.append((step, values))

    def finish(self):
        self._call("finish")


@pytest.fixture
def stand_in(monkeypatch):
    """Puts a stand-in under the name of a tracker."""
    made = []

    def put(name="wandb", **kwargs):
        tracker = StandIn(**kwargs)
        package = types.ModuleType(name)
        package.__spec__ = ModuleSpec(name, None)  # Accelerate looks
        monkeypatch.setitem(sys.modules, name, package)
        monkeypatch.setitem(module._STARTS, name, tracker.start)
        made.append(tracker)
        return tracker

    yield put
    for tracker in made:
        tracker.released.set()


def log_steps(trackers, steps=range(1, 6)):
    for step in steps:
        trackers.log("train", {"step": step, "loss": 1 / step})


def run(folder, names=("wandb",), **kwargs):
    with Trackers(names, folder=folder, run_name=RUN, config=CONFIG, **kwargs) as trackers:
        log_steps(trackers)


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.name == module.__name__ and r.levelno == logging.WARNING]


# --- what is asked for ---


def test_an_unknown_name_and_a_missing_package_raise_at_once(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="unknown tracker 'comet'; valid are tensorboard, wandb, mlflow, trackio"):
        run(tmp_path, ["comet"])
    for name in TRACKERS:
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ModuleNotFoundError, match=f"pip install {name}"):
            run(tmp_path, [name])


def test_nothing_is_done_without_names_or_on_other_processes(tmp_path, monkeypatch, stand_in):
    run(tmp_path, [])
    tracker = stand_in()
    monkeypatch.setattr(module, "_is_main_process", lambda: False)
    run(tmp_path)
    assert not tracker.calls
    assert not list(tmp_path.iterdir())


# --- rows ---


def test_rows_of_a_step_go_together_and_hold_finite_numbers_only(tmp_path, stand_in):
    tracker = stand_in()
    with Trackers(["wandb"], folder=tmp_path, run_name=RUN, config=CONFIG) as trackers:
        trackers.log("train", {"step": 1, "loss": 2, "a": None, "b": float("nan"), "c": "text", "d": True})
        trackers.log("train", {"step": 2, "loss": 1.5})
        trackers.log("eval", {"step": 2, "score": 90.0, "worst": float("inf")})
    assert tracker.rows == [(1, {"train/loss": 2.0}), (2, {"train/loss": 1.5, "eval/score": 90.0})]
    assert tracker.calls == ["start", "finish"]


def test_a_tracker_that_is_ahead_of_the_checkpoint_gets_no_step_twice(tmp_path, stand_in):
    tracker = stand_in(last_step=3)
    run(tmp_path, resume_step=0)
    assert [step for step, _ in tracker.rows] == [4, 5]


def test_a_tracker_that_is_behind_the_checkpoint_gets_what_it_missed(tmp_path, stand_in):
    tracker = stand_in(last_step=1)
    earlier = {"train": [{"step": i, "loss": 1.0} for i in range(4)], "eval": [{"step": 3, "score": 50.0}]}
    with Trackers(
        ["wandb"], folder=tmp_path, run_name=RUN, config=CONFIG, resume_step=3, earlier=earlier
    ) as trackers:  # fmt: skip
        log_steps(trackers, [4, 5])
    assert [step for step, _ in tracker.rows] == [2, 3, 4, 5]
    assert tracker.rows[1] == (3, {"train/loss": 1.0, "eval/score": 50.0})


def test_the_identity_of_a_run_is_kept(tmp_path, stand_in, caplog):
    stand_in()
    run(tmp_path)
    first = (tmp_path / "trackers.json").read_text()
    run(tmp_path)
    assert (tmp_path / "trackers.json").read_text() == first
    (tmp_path / "trackers.json").write_text("{")
    run(tmp_path)
    assert json.loads((tmp_path / "trackers.json").read_text())["id"] != json.loads(first)["id"]
    assert "trackers.json cannot be read" in warnings_of(caplog)[0]


# --- the loss of a tracker never stops a run ---


@pytest.mark.parametrize("call", ["start", "log", "finish"])
def test_a_failing_call_loses_this_tracker_alone(tmp_path, stand_in, caplog, call):
    bad, good = stand_in("wandb", fails=call), stand_in("mlflow")
    run(tmp_path, ["wandb", "mlflow"])
    assert len(good.rows) == 5
    assert len(bad.rows) == {"start": 0, "log": 2, "finish": 5}[call]
    assert warnings_of(caplog) == [
        "wandb has stopped working (ConnectionError: the server went away); the run continues without it, and all its "
        f"numbers are in {tmp_path / 'train.jsonl'}"
    ]
    assert call == "start" or bad.calls[-1] == "finish", "its run there is not left open"


@pytest.mark.one_in(3)
@pytest.mark.parametrize("call", ["start", "log", "finish"])
def test_a_hanging_call_loses_this_tracker_alone(tmp_path, stand_in, caplog, monkeypatch, call):
    for seconds in ("_START_SECONDS", "_CALL_SECONDS", "_END_SECONDS"):
        monkeypatch.setattr(module, seconds, 0.5)
    hanging, good = stand_in("wandb", hangs=call), stand_in("mlflow")
    began = time.monotonic()
    run(tmp_path, ["wandb", "mlflow"])
    assert time.monotonic() - began < 10, "it hangs for a minute"
    assert len(good.rows) == 5
    (warning,) = warnings_of(caplog)
    assert warning.startswith("wandb has stopped working (a call has not returned for 0.5 s)")
    hanging.released.set()


def test_a_tracker_that_starts_too_late_is_closed_again(tmp_path, stand_in, monkeypatch):
    monkeypatch.setattr(module, "_START_SECONDS", 0.1)
    late = stand_in(hangs="start")
    run(tmp_path)
    late.released.set()
    deadline = time.monotonic() + 10
    while late.calls != ["start", "finish"]:
        assert time.monotonic() < deadline, late.calls
        time.sleep(0.01)
    assert not late.rows


def test_a_tracker_that_hangs_in_the_middle_is_lost_while_the_run_goes_on(tmp_path, stand_in, caplog, monkeypatch):
    monkeypatch.setattr(module, "_CALL_SECONDS", 0.2)
    stand_in(hangs="log")
    with Trackers(["wandb"], folder=tmp_path, run_name=RUN, config=CONFIG) as trackers:
        log_steps(trackers)
        time.sleep(0.5)
        assert not warnings_of(caplog)
        log_steps(trackers, [6, 7])
        assert "a call has not returned for 0.2 s" in warnings_of(caplog)[0]


def test_a_tracker_slower_than_the_run_is_lost(tmp_path, stand_in, caplog, monkeypatch):
    monkeypatch.setattr(module, "_WAITING_ROWS", 10)
    tracker = stand_in(hangs="log")
    with Trackers(["wandb"], folder=tmp_path, run_name=RUN, config=CONFIG) as trackers:
        began = time.monotonic()
        log_steps(trackers, range(1, 30))
        assert time.monotonic() - began < 5, "the run waited for it"
        assert "it is slower than the run: 10 rows wait" in warnings_of(caplog)[0]
    tracker.released.set()


def test_a_folder_that_cannot_be_written_does_not_stop_the_run(tmp_path, stand_in, caplog):
    tracker = stand_in()
    (tmp_path / "file").write_text("")
    run(tmp_path / "file")
    assert len(tracker.rows) == 5
    assert all("trackers.json cannot be" in warning for warning in warnings_of(caplog))
    assert warnings_of(caplog)


def test_real_tensorboard_that_cannot_write_does_not_stop_the_run(tmp_path, caplog):
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    run(tmp_path, ["tensorboard"])
    (warning,) = warnings_of(caplog)
    assert "tensorboard has stopped working (FileExistsError" in warning


def test_real_mlflow_without_its_server_does_not_stop_the_run(tmp_path, caplog, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(module, "_START_SECONDS", 1)
    run(tmp_path, ["mlflow"])
    (warning,) = warnings_of(caplog)
    assert "mlflow has stopped working (a call has not returned for 1 s)" in warning


def test_real_wandb_without_a_login_does_not_stop_the_run(tmp_path):
    pytest.importorskip("wandb")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    code = f"""
from pathlib import Path
from tests.experiments.training.test_trackers import run
run(Path({str(tmp_path)!r}), ["wandb"])
print("the end")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"HOME": str(tmp_path), "WANDB_MODE": "online"},
        capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert "the end" in done.stdout, done.stderr
    assert "wandb has stopped working (RuntimeError: no API key; 'wandb login'" in done.stderr


# --- real trackers, killed and resumed ---


def read_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    (config,) = events.Tensors("config/text_summary")
    assert json.loads(config.tensor_proto.string_val[0]) == CONFIG
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("name", ["plain", "a b", "ä", "a?b", "a%20b", "a#b", "a&b=c"])
def test_mlflows_file_lies_in_the_folder_whatever_its_name(tmp_path, name):
    sqlalchemy = pytest.importorskip("sqlalchemy")
    file = tmp_path / name / "mlflow.db"
    file.parent.mkdir()
    if "?" in name and sqlalchemy.__version__ < "2.1":
        with pytest.raises(ValueError, match=r"opens no file of the name .*; rename the folder"):
            module._sqlite(file)
        return
    address = module._sqlite(file)
    with sqlalchemy.create_engine(address).begin() as connection:
        connection.execute(sqlalchemy.text("create table made (x int)"))
    assert file.exists()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert name != "plain" or address == f"sqlite:///{file}"


def read_mlflow(folder):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'conditioned-attention'")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == (RUN, "FINISHED")
    assert found.data.params == {"training.lr": "0.001", "training.clip": "None", "variant": "baseline"}
    assert found.data.tags["group"] == "digits/baseline"
    histories = {key: client.get_metric_history(found.info.run_id, key) for key in found.data.metrics}
    return {key: [(m.step, m.value) for m in history] for key, history in histories.items()}


def read_trackio(folder):
    code = """
import json, trackio
from trackio.sqlite_storage import SQLiteStorage
(run,) = trackio.Api().runs("conditioned-attention")
assert run.config["training.lr"] == 0.001 and run.config["_Group"] == "digits/baseline", run.config
print(json.dumps(SQLiteStorage.get_logs(run.project, run.name, run_id=run.id)))
"""
    environment = os.environ | {"TRACKIO_DIR": str(folder / "trackio")}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    points = {}
    for row in json.loads(out.stdout):
        for key in row.keys() - {"step", "timestamp"}:
            points.setdefault(key, []).append((row["step"], row[key]))
    return points


def read_wandb(folder):
    """The newest offline run: a LevelDB log of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    folders = sorted((folder / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert len({path.name.rpartition("-")[2] for path in folders}) == 1, "two ids"
    (file,) = folders[-1].glob("*.wandb")
    data, position, body, points = file.read_bytes(), 7, b"", {}
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # no header fits at the end of a block
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        body += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            record, body = Record.FromString(body), b""
            row = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            for key in row.keys() - {"_step", "_runtime", "_timestamp"}:
                points.setdefault(key, []).append((row["_step"], row[key]))
    return points


READERS = {"tensorboard": read_tensorboard, "wandb": read_wandb, "mlflow": read_mlflow, "trackio": read_trackio}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACKERS)
def test_a_run_that_was_killed_goes_on_in_the_same_place_and_has_each_point_once(tmp_path, monkeypatch, name):
    pytest.importorskip(name)
    for key in [key for key in os.environ if key.startswith(("MLFLOW_", "WANDB_"))]:
        monkeypatch.delenv(key)
    environment = {"TRACKIO_DIR": str(tmp_path / "trackio"), "WANDB_MODE": "offline", "HOME": str(tmp_path)}
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    process = Forked(tmp_path.with_suffix(".said"), tracked_run.killed_and_resumed, name, tmp_path)
    assert process.wait(100) == 0, process.said.read_text()
    assert "is lost" not in process.said.read_text()
    points = READERS[name](tmp_path)
    assert [step for step, _ in points["train/loss"]] == list(range(1, 21))
    assert [step for step, _ in points["train/grad_norm"]] == [i for i in range(1, 21) if i != 7]
    assert points["eval/score"] == [(5, 15.0), (10, 20.0), (15, 25.0), (20, 30.0)]
    assert points["train/loss"][15][1] == pytest.approx(1 / 16)
