"""Shows a run in TensorBoard, Weights & Biases, MLflow and trackio, through Accelerate's classes.

A failing tracker never stops a run or makes it wait: each has a thread that takes rows from a queue, and is given up
with a warning when a call fails or does not return.  (`Accelerator.log` itself calls one tracker after another, so that
the first one that fails or hangs would keep the rows from the others.)
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import queue
import random
import secrets
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from numbers import Real
from pathlib import Path
from typing import Any, TypedDict

from conditioned_attention.storage.files import read_json, write_json

logger = logging.getLogger(__name__)

_PROJECT = "conditioned-attention"
_START_SECONDS = 30.0  # for all trackers of a run together, before its first step
_CALL_SECONDS = 300.0  # while the run goes on: rows wait in the queue, so that a server may restart meanwhile
_END_SECONDS = 30.0  # without any progress, after the last step
_WAITING_ROWS = 10_000

# Defaults, for what no class takes as an argument; a variable that the user has set stays.
_ENVIRONMENT = {
    "WANDB_INIT_TIMEOUT": "15",  # without a server, the process waits for these two at its exit: by default 90 s here
    "WANDB_FINISH_TIMEOUT": "20",  # and for ever here
    "WANDB_CONSOLE": "off",  # it would put itself between the process and its terminal
    # The jitter of retries comes from Python's global generator, which belongs to the run's random transforms.
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
}


class _Identity(TypedDict, total=False):
    """``trackers.json``: what identifies the run in the trackers."""

    id: str
    mlflow: dict[str, str | None]


class Trackers(AbstractContextManager["Trackers", None]):
    """Shows the numbers of one run in each of the named trackers.

    A run that is resumed continues the same run of the tracker: no point is shown twice, and what the tracker has
    missed is sent (not to TensorBoard's files, which miss nothing unless the disk was full).  What identifies the run
    there is stored in ``trackers.json`` in its folder.  Processes other than the main one only check the names.

    Args:
        names: names from `TRACKERS`.
        folder: the run's; TensorBoard's, wandb's and (without MLFLOW_TRACKING_URI) MLflow's files go into it.
        run_name: ``"<recipe>/<variant>/seed-<n>"``; the part before the last slash is the run's group.
        config: nested plain data, shown beside the numbers.
        resume_step: optimizer steps in the checkpoint that the run resumes from; None for a run from its start.
        earlier: the rows up to that checkpoint, by group: what `log` was given before.

    Raises:
        ValueError: an unknown name.
        ModuleNotFoundError: the package of a tracker is not installed.
    """

    def __init__(
        self,
        names: Collection[str],
        *,
        folder: Path,
        run_name: str,
        config: Mapping[str, Any],
        resume_step: int | None = None,
        earlier: Mapping[str, Iterable[Mapping[str, Any]]] | None = None,
    ) -> None:
        check_installed(names)
        self.folder, self.name, self.config = folder.absolute(), run_name, config
        self.group = run_name.rpartition("/")[0] or run_name
        self.resume_step = -1 if resume_step is None else resume_step
        self._step, self._row, self._threads = 0, dict[str, float](), list[_Thread]()
        if names and _is_main_process():
            self.identity = self._read_identity()
            self._start(names, earlier or {})

    def _start(self, names: Collection[str], groups: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
        earlier: dict[int, dict[str, float]] = {}
        for group, rows in groups.items():
            for row in rows:
                earlier.setdefault(row["step"], {}).update(_numbers(group, row))
        self._threads = [_Thread(name, self, sorted(earlier.items())) for name in dict.fromkeys(names)]
        for thread in self._threads:
            while not (thread.started.is_set() or thread.trouble(_START_SECONDS)):
                thread.started.wait(0.05)
        self._drop_lost(_START_SECONDS)
        try:
            write_json(self.folder / "trackers.json", self.identity)
        except OSError as error:
            logger.warning("trackers.json cannot be written (%s); if resumed, the run is a new one for trackers", error)

    def _read_identity(self) -> dict[str, Any]:
        new, path = {"id": secrets.token_hex(4)}, self.folder / "trackers.json"
        try:
            return new | read_json(path, _Identity) if path.exists() else new
        except (OSError, ValueError, TypeError) as error:
            logger.warning("%s cannot be read (%s); the trackers begin a new run", path, error)
            return new

    def log(self, group: str, row: Mapping[str, Any]) -> None:
        """Shows the numbers of a row as ``"<group>/<name>"`` at its ``"step"``, which never decreases.

        What is not a finite number is left out.  Rows of one step are sent together, when a row of the next arrives, so
        that a process that is killed has sent all of a step or nothing.
        """
        if row["step"] != self._step:
            self._send()
        self._step = row["step"]
        self._row |= _numbers(group, row)

    def _send(self) -> None:
        row, self._row = self._row, {}
        for thread in self._threads if row else []:
            thread.rows.put((self._step, row))
        self._drop_lost(_CALL_SECONDS)

    def _drop_lost(self, seconds: float) -> None:
        for thread in [thread for thread in self._threads if thread.trouble(seconds)]:
            self._threads.remove(thread)
            logger.warning(
                "%s has stopped working (%s); the run continues without it, and all its numbers are in %s",
                thread.name, thread.lost, self.folder / "train.jsonl",
            )  # fmt: skip

    def __exit__(self, *error: object) -> None:
        """Sends what is left; returns when the trackers have it, or have made no progress for a while."""
        self._send()
        for thread in self._threads:
            thread.rows.put(None)
        for thread in self._threads:
            while thread.is_alive() and not thread.trouble(_END_SECONDS):
                thread.join(0.05)
        self._drop_lost(_END_SECONDS)


class _Thread(threading.Thread):
    """A thread that makes all calls to one tracker; the run checks on it from time to time."""

    def __init__(self, name: str, of: Trackers, earlier: list[tuple[int, dict[str, float]]]) -> None:
        # a daemon, since a process must be able to end although a call does not
        super().__init__(name=name, daemon=True)
        self.of, self.earlier = of, earlier
        self.rows: queue.SimpleQueue[tuple[int, dict[str, float]] | None] = queue.SimpleQueue()
        self.started = threading.Event()  # or failed to
        self.lost = ""  # why, once it is
        self.busy_since = time.monotonic()  # inf while there is nothing to do
        self.start()

    def trouble(self, seconds: float) -> str:
        """Returns why the tracker is to be given up, or an empty text; a call may take ``seconds`` seconds."""
        if not self.lost and time.monotonic() - self.busy_since > seconds:
            self.lost = f"a call has not returned for {seconds:g} s"
        if not self.lost and self.rows.qsize() > _WAITING_ROWS:
            self.lost = f"it is slower than the run: {_WAITING_ROWS} rows wait"
        return self.lost

    def run(self) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        try:
            tracker, last_step = _STARTS[self.name](LOGGER_TYPE_TO_CLASS[self.name], self.of)
            self.started.set()
            try:
                self.send(tracker, last_step)
            except BaseException as error:
                self.fail(error)
            tracker.finish()
        except BaseException as error:  # libraries leave with SystemExit too
            self.fail(error)
        self.busy_since = math.inf
        self.started.set()

    def send(self, tracker: Any, last_step: int) -> None:
        """Sends what the tracker lacks and then new rows, until the end or until it is given up."""
        for step, row in self.earlier:
            if step > last_step and not self.lost:
                self.busy_since = time.monotonic()
                tracker.log(row, step=step)
        # If it has steps beyond the checkpoint, the run will only repeat them, with the same numbers.
        repeated = last_step if last_step > self.of.resume_step else -1
        while not self.lost:
            self.busy_since = math.inf
            item = self.rows.get()
            self.busy_since = time.monotonic()
            if item is None:
                return
            if item[0] > repeated:
                tracker.log(item[1], step=item[0])

    def fail(self, error: BaseException) -> None:
        """Notes what went wrong first."""
        self.lost = self.lost or f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


# Each function starts a tracker, and returns it with the last step that it has numbers of, -1 for none.


def _tensorboard(tracker_class: Any, run: Trackers) -> tuple[Any, int]:
    new = run.resume_step < 0 or not (run.folder / "tensorboard").is_dir()
    tracker = tracker_class("tensorboard", run.folder, purge_step=run.resume_step + 1)
    tracker.start()
    if new:  # as text: add_hparams would make a second run, and another one whenever the run is continued
        text = json.dumps(run.config, indent=2, default=str)
        tracker.log({"config": "    " + text.replace("\n", "\n    ")}, step=0)
    return tracker, -1 if new else run.resume_step


def _wandb(tracker_class: Any, run: Trackers) -> tuple[Any, int]:
    import wandb

    if wandb.setup().settings.mode in ("online", "run") and not wandb.login(prompt=False, verify=False):
        raise RuntimeError("no API key; 'wandb login' or WANDB_API_KEY give it one, and WANDB_MODE=offline needs none")
    place = {"name": run.name, "group": run.group, "id": run.identity["id"], "dir": str(run.folder)}
    # create_new: by default a run that is still open is given back instead
    tracker = tracker_class(_PROJECT, **place, config=dict(run.config), resume="allow", reinit="create_new")
    tracker.start()
    return tracker, tracker.tracker.step - 1


def _mlflow(tracker_class: Any, run: Trackers) -> tuple[Any, int]:
    import mlflow

    server = os.environ.get("MLFLOW_TRACKING_URI")
    # MLflow 3 no longer writes its old folder of files
    mlflow.set_tracking_uri(server or _sqlite(run.folder / "mlflow.db"))
    if server is None:  # set_tracking_uri has put it there, where the next run would take it for the user's
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    known = run.identity.get("mlflow", {})
    run_id = known.get("run_id") if known.get("server") == server else None
    files = None if server else (run.folder / "mlruns").as_uri()
    tracker = tracker_class(_PROJECT, logging_dir=files, run_id=run_id, run_name=run.name)
    tracker.start()
    if run_id is None:
        tracker.store_init_configuration(_flat(run.config))
        mlflow.set_tag("group", run.group)  # given to the class, the tag would be the whole experiment's too
        run.identity["mlflow"] = {"server": server, "run_id": tracker.tracker.info.run_id}
        return tracker, -1
    client = mlflow.MlflowClient()
    histories = [client.get_metric_history(run_id, key) for key in client.get_run(run_id).data.metrics]
    return tracker, max((point.step for history in histories for point in history), default=-1)


def _sqlite(file: Path) -> str:
    """Returns the address of a database file for SQLAlchemy, whose versions differ in what they quote.

    The path stays unquoted if SQLAlchemy understands it so, since MLflow makes a folder of the name that it reads.
    """
    from sqlalchemy.engine import URL, make_url

    for address in (f"sqlite:///{file}", URL.create("sqlite", database=str(file)).render_as_string()):
        if make_url(address).database == str(file):
            return address
    raise ValueError(f"this SQLAlchemy opens no file of the name {file}; rename the folder, or set MLFLOW_TRACKING_URI")


def _trackio(tracker_class: Any, run: Trackers) -> tuple[Any, int]:
    # trackio resumes the newest run of a name, which must not be that of another folder
    place = {"name": f"{run.name}-{run.identity['id']}", "group": run.group}
    tracker = tracker_class(_PROJECT, **place, config=_flat(run.config), resume="allow", embed=False)
    tracker.start()
    return tracker, tracker.tracker._next_step - 1


_STARTS = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}
TRACKERS = tuple(_STARTS)


def check_installed(names: Collection[str]) -> None:
    """Imports the packages of the named trackers, since an import in a thread while a loader forks may hang the loader.

    Raises:
        ValueError: an unknown name.
        ModuleNotFoundError: a package is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"unknown tracker {name!r}; valid are {', '.join(TRACKERS)}")
        for variable, value in _ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        drawn = random.getstate()
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"the tracker {name!r} was asked for, but {error.name!r} is not installed: pip install {name}"
            ) from error
        finally:  # trackio draws from Python's global generator while it is imported
            random.setstate(drawn)


def _is_main_process() -> bool:
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def _numbers(group: str, row: Mapping[str, Any]) -> dict[str, float]:
    """Returns the finite numbers of a row, which every tracker can show."""
    return {
        f"{group}/{key}": float(value)
        for key, value in row.items()
        if key != "step" and not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
    }


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested settings, under dotted names."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        values |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return values
