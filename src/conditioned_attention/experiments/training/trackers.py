"""TensorBoard, Weights & Biases, MLflow and trackio, through Accelerate's classes, beside the run's own files.

The loss of a tracker never stops a run, nor makes it wait: each tracker lives in a thread of its own, is handed rows,
and is given up with a warning when a call fails or does not return.
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
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from conditioned_attention.storage.files import write_json

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

logger = logging.getLogger(__name__)

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")

_PROJECT = "conditioned-attention"
_START_SECONDS = 30.0  # for all trackers of a run together, before its first step
_CALL_SECONDS = 300.0  # while the run goes on: rows wait in the queue, so that a server may restart meanwhile
_END_SECONDS = 30.0  # without any headway, after the last step
_WAITING_ROWS = 10_000

# Defaults, for what no class takes as an argument; a variable that the user has set stays.
_ENVIRONMENT = {
    "tensorboard": {},
    "wandb": {
        # Without a server the exit of the process waits for these two, 90 s and for ever by default.
        "WANDB_INIT_TIMEOUT": "15",
        "WANDB_FINISH_TIMEOUT": "20",
        "WANDB_CONSOLE": "off",  # it would put itself between the process and its terminal
    },
    "mlflow": {
        # The jitter of retries comes from Python's global generator, which belongs to the run's random transforms.
        "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    },
    "trackio": {},
}


class Trackers:
    """Shows the numbers of one run in each of the trackers named.

    A run that is continued goes on in the same run of the tracker: no point is shown twice, and what the tracker has
    missed is sent (not to TensorBoard's files, which miss nothing unless the disk was full).  What identifies the run
    there is kept in ``trackers.json`` in its folder.  On processes other than the main one this does nothing but check
    the names.

    Args:
        names: of `TRACKERS`.
        folder: the run's; TensorBoard's, wandb's and (without MLFLOW_TRACKING_URI) MLflow's files go into it.
        run_name: ``"<recipe>/<variant>/seed-<n>"``; what stands before the last slash is the run's group.
        config: nested plain data, shown beside the numbers.
        resume_step: optimizer steps done by the checkpoint that the run goes on from; None for a run from its start.
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
        self.folder = folder
        self._step, self._row = 0, dict[str, float]()
        self._workers: list[_Worker] = []
        if names and _is_main_process():
            run = _Run(folder, run_name, config, -1 if resume_step is None else resume_step)
            self._start(run, names, _by_step(earlier or {}))

    def _start(self, run: _Run, names: Collection[str], earlier: list[tuple[int, dict[str, float]]]) -> None:
        known = self._read()
        run.identity.update(known)
        self._workers = [_Worker(name, run, earlier) for name in dict.fromkeys(names)]
        deadline = time.monotonic() + _START_SECONDS
        for worker in list(self._workers):
            if not worker.ready.wait(max(0.0, deadline - time.monotonic())):
                self._lose(worker, f"it has not started within {_START_SECONDS:g} s")
        self._drop_failed()
        if run.identity != known:
            try:
                write_json(self.folder / "trackers.json", run.identity)
            except OSError as error:
                logger.warning(
                    "%s: trackers.json cannot be written (%s); a resumed run starts anew there", run.name, error
                )

    def _read(self) -> dict[str, Any]:
        path = self.folder / "trackers.json"
        try:
            found: dict[str, Any] = {"id": ""} | json.loads(path.read_text())
            return found if found["id"] else {}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError) as error:
            logger.warning("%s cannot be read (%s); the trackers begin a new run", path, error)
            return {}

    def log(self, group: str, row: Mapping[str, Any]) -> None:
        """Shows the numbers of a row as ``"<group>/<name>"`` at its ``"step"``, which never decreases.

        What is not a finite number is left out.  Rows of one step are sent together, when one of the next arrives, so
        that a process that is killed has sent all of a step or nothing.
        """
        if not self._workers:
            return
        if row["step"] != self._step:
            self._send()
        self._step = row["step"]
        self._row |= _numbers(group, row)

    def _send(self) -> None:
        row, self._row = self._row, {}
        for worker in self._workers if row else []:
            worker.offer(self._step, row)
        self._drop_failed()

    def _drop_failed(self) -> None:
        for worker in list(self._workers):
            if reason := worker.trouble(_CALL_SECONDS):
                self._lose(worker, reason)

    def _lose(self, worker: _Worker, reason: str) -> None:
        self._workers.remove(worker)
        worker.abandoned = True
        logger.warning(
            "%s is lost (%s); the run goes on without it, and all its numbers are in %s",
            worker.name, reason, self.folder / "train.jsonl",
        )  # fmt: skip

    def close(self) -> None:
        """Sends what waits; returns when the trackers have it, or have made no headway for a while."""
        self._send()
        for worker in self._workers:
            worker.end()
        for worker in list(self._workers):
            while worker.thread.is_alive() and not worker.trouble(_END_SECONDS):
                worker.thread.join(0.05)
            if reason := worker.trouble(_END_SECONDS):
                self._lose(worker, reason)
        self._workers = []

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def check_installed(names: Collection[str]) -> None:
    """Imports the packages of the trackers named: here, since a thread that imports while a loader forks may hang it.

    Raises:
        ValueError: an unknown name.
        ModuleNotFoundError: a package is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"unknown tracker {name!r}; valid are {', '.join(TRACKERS)}")
        for variable, value in _ENVIRONMENT[name].items():
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


def _numbers(group: str, row: Mapping[str, Any]) -> dict[str, float]:
    """What every tracker can show of a row."""
    return {
        f"{group}/{key}": float(value)
        for key, value in row.items()
        if key != "step" and not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
    }


def _by_step(groups: Mapping[str, Iterable[Mapping[str, Any]]]) -> list[tuple[int, dict[str, float]]]:
    steps: dict[int, dict[str, float]] = {}
    for group, rows in groups.items():
        for row in rows:
            steps.setdefault(row["step"], {}).update(_numbers(group, row))
    return sorted(steps.items())


def _is_main_process() -> bool:
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


class _Worker:
    """A thread that makes all the calls of one tracker; the run looks at it, and never waits in `offer`."""

    def __init__(self, name: str, run: _Run, earlier: list[tuple[int, dict[str, float]]]) -> None:
        self.name = name
        self.ready = threading.Event()  # started, or failed to
        self.abandoned = False
        self._run, self._earlier = run, earlier
        self._rows: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(_WAITING_ROWS)
        self._error = ""
        self._busy_since: float | None = time.monotonic()
        # a daemon, since a process must be able to end although a call does not
        self.thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self.thread.start()

    def offer(self, step: int, row: dict[str, float]) -> None:
        """Leaves the numbers of a step for the thread."""
        self._put((step, row))

    def end(self) -> None:
        """Asks the thread to finish the tracker's run after the rows that wait."""
        self._put(None)

    def _put(self, item: tuple[int, dict[str, float]] | None) -> None:
        try:
            self._rows.put_nowait(item)
        except queue.Full:
            self._error = self._error or f"it is slower than the run: {_WAITING_ROWS} rows wait"

    def trouble(self, seconds: float) -> str:
        """Why the tracker is to be given up, or nothing; a call may take so many seconds."""
        since = self._busy_since
        if not self._error and since is not None and time.monotonic() - since > seconds:
            return f"a call has not returned for {seconds:g} s"
        return self._error

    def _work(self) -> None:
        begun: _Started | None = None
        try:
            begun = _STARTS[self.name](self._run)
            self.ready.set()
            self._log_rows(begun)
        except BaseException as error:  # libraries leave with SystemExit too
            self._error = _reason(error)
        try:
            if begun is not None:
                self._busy_since = time.monotonic()
                begun.tracker.finish()
        except BaseException as error:
            self._error = self._error or _reason(error)
        self._busy_since = None
        self.ready.set()

    def _log_rows(self, begun: _Started) -> None:
        for step, row in self._earlier:
            if step > begun.last_step and not self.abandoned:
                self._busy_since = time.monotonic()
                begun.tracker.log(row, step=step)
        # What it has of steps beyond the checkpoint, the run will only repeat, with the same numbers.
        repeated = begun.last_step if begun.last_step > self._run.resume_step else -1
        while not self.abandoned:
            self._busy_since = None
            item = self._rows.get()
            self._busy_since = time.monotonic()
            if item is None:
                return
            step, row = item
            if step > repeated:
                begun.tracker.log(row, step=step)


def _reason(error: BaseException) -> str:
    first_line, *_ = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {first_line}"


@dataclass(frozen=True)
class _Started:
    """A tracker that is ready; ``last_step`` is the last one it has numbers of, -1 for none."""

    tracker: GeneralTracker
    last_step: int


class _Run:
    """What the trackers are told about a run; ``identity`` is what ``trackers.json`` holds."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any], resume_step: int) -> None:
        self.folder, self.name, self.config, self.resume_step = folder.absolute(), name, config, resume_step
        self.identity: dict[str, Any] = {"id": secrets.token_hex(4)}

    @property
    def group(self) -> str:
        return self.name.rpartition("/")[0] or self.name


def _tensorboard(run: _Run) -> _Started:
    from accelerate.tracking import TensorBoardTracker

    place = run.folder / "tensorboard"
    new = run.resume_step < 0 or not place.is_dir()
    tracker = TensorBoardTracker("tensorboard", run.folder, purge_step=run.resume_step + 1)
    tracker.start()
    if new:  # as text: add_hparams would make a second run, and another one whenever the run is continued
        text = json.dumps(run.config, indent=2, default=str)
        tracker.log({"config": "    " + text.replace("\n", "\n    ")}, step=0)
    return _Started(tracker, -1 if new else run.resume_step)


def _wandb(run: _Run) -> _Started:
    import wandb
    from accelerate.tracking import WandBTracker

    settings = wandb.setup().settings
    if settings.mode in ("online", "run") and not wandb.login(prompt=False, verify=False):
        raise RuntimeError("no API key; 'wandb login' or WANDB_API_KEY give it one, and WANDB_MODE=offline needs none")
    tracker = WandBTracker(
        _PROJECT,
        name=run.name,
        group=run.group,
        id=run.identity["id"],
        resume="allow",
        dir=str(run.folder),
        config=dict(run.config),
        reinit="create_new",  # by default a run that is still open is given back instead
    )
    tracker.start()
    return _Started(tracker, tracker.tracker.step - 1)


def _mlflow(run: _Run) -> _Started:
    import mlflow
    from accelerate.tracking import MLflowTracker

    server = os.environ.get("MLFLOW_TRACKING_URI")
    # MLflow 3 no longer writes its old folder of files
    mlflow.set_tracking_uri(server or f"sqlite:///{run.folder / 'mlflow.db'}")
    if server is None:  # set_tracking_uri has put it there, where the next run would take it for the user's
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    known = run.identity.get("mlflow", {})
    run_id = known.get("run_id") if known.get("server") == server else None
    tracker = MLflowTracker(
        _PROJECT,
        logging_dir=None if server else (run.folder / "mlruns").as_uri(),
        run_id=run_id,
        run_name=run.name,
    )
    tracker.start()
    active = tracker.tracker.info.run_id
    if run_id is None:
        tracker.store_init_configuration(flat(run.config))
        mlflow.set_tag("group", run.group)  # given to the class, the tag would be the whole experiment's too
        run.identity["mlflow"] = {"server": server, "run_id": active}
        return _Started(tracker, -1)
    client = mlflow.MlflowClient()
    keys = client.get_run(active).data.metrics
    steps = [point.step for key in keys for point in client.get_metric_history(active, key)]
    return _Started(tracker, max(steps, default=-1))


def _trackio(run: _Run) -> _Started:
    from accelerate.tracking import TrackioTracker

    # trackio resumes the newest run of a name, which must not be that of another folder
    name = f"{run.name}-{run.identity['id']}"
    tracker = TrackioTracker(_PROJECT, name=name, group=run.group, config=flat(run.config), resume="allow", embed=False)
    tracker.start()
    return _Started(tracker, tracker.tracker._next_step - 1)


_STARTS: dict[str, Callable[[_Run], _Started]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return values
