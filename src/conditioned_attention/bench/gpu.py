"""Tests the kernels on a GPU, then measures every case on it and a training step, within minutes: ``make bench-gpu``.

``python -m conditioned_attention.bench.gpu FOLDER`` needs torch and rich, and no network.  The tests also need pytest
and hypothesis, and the training step timm; without these they are reported as missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from conditioned_attention.bench.cases import CASES, GPU_CASES, Case
from conditioned_attention.bench.gpu_tables import ABOUT, GpuAbout, gpu_page, print_gpu_case
from conditioned_attention.bench.judge import answers, first_line
from conditioned_attention.bench.models import MODELS, StepModel
from conditioned_attention.bench.operator import OperatorRow, OperatorSettings, run_operator
from conditioned_attention.bench.results import begin
from conditioned_attention.bench.step import StepRow, StepSettings, run_step
from conditioned_attention.bench.tables import print_steps
from conditioned_attention.bench.targets import MODEL
from conditioned_attention.bench.work import Limits, measure_limits
from conditioned_attention.environment import cores, environment
from conditioned_attention.storage.files import read_json, write_json, write_text
from conditioned_attention.storage.ownership import claim

_ROOT = Path(__file__).parents[3]
_TESTS = (
    "tests/attention/test_fused.py",
    "tests/attention/test_fused_options.py",
    "tests/test_varlen.py",
    "tests/attention/test_cuda_operators.py",
    "tests/attention/test_operator.py::test_on_a_gpu",
)
# After the cases of a GPU, first those that differ: masks that are learned or hide keys, grouped queries, channels.
_OTHERS = ("swin_bias", "bert", "gpt_grouped", "xcit")
_DECODE = Case("decode", (16, 32, 1, 128), "a token a sequence, against a cache", keys=8192, key_heads=8)
_NOT_REACHED = "not reached in time; a second run continues here"
_FAILED = "failed: "


@dataclass(frozen=True)
class GpuSettings:
    """How a GPU is measured.

    Attributes:
        minutes: time for everything.  What does not fit into it is listed, and a second run continues there.
        rounds: rounds of measurement; in each, every contestant has one turn.
        tests: test the kernels first, for at most a third of the time.
        compiled: include contestants that use torch.compile.
        without: models and cases to leave out.
    """

    minutes: float = 8.0
    rounds: int = 12
    tests: bool = True
    compiled: bool = True
    without: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises ValueError for no time."""
        if not self.minutes > 0:
            raise ValueError(f"minutes must be positive, got {self.minutes}")


@dataclass(frozen=True)
class Plan:
    """What is measured, in this order: tests, limits, models, cases."""

    tests: tuple[str, ...]
    limits: Callable[[], Limits]
    step: StepSettings
    models: tuple[StepModel, ...]
    operator: OperatorSettings
    cases: tuple[Case, ...]


class _DeviceLost(RuntimeError):
    """The device no longer responds to this process; the message is the name of the unit that broke it."""


class Unit(NamedTuple):
    """A model or a case to measure: whether an earlier run finished it, and its measurement, which prints a table."""

    name: str
    finished: bool
    measure: Callable[[], None]


def plan_for_cuda(settings: GpuSettings) -> Plan:
    """The whole plan, in bfloat16: ViT-B at batch 64, the cases of `GPU_CASES`, then those of the other benchmarks."""
    on: Any = {"device": "cuda", "dtype": "bfloat16"}
    two: Any = {"variants": ("baseline", "preconditioned"), "implementations": ("composed", "fused")}
    usual: Any = {"contestants": "gpu", "compiled": settings.compiled, "sample_milliseconds": 10.0}
    others = dict.fromkeys([*_OTHERS, *CASES])
    return Plan(
        tests=_TESTS if settings.tests else (),
        limits=lambda: measure_limits(torch.device("cuda"), torch.bfloat16),
        # twice the rounds, since a step must be known to better than one per cent
        step=StepSettings(rounds=2 * settings.rounds, batch_size=64, **two, **on),
        models=(MODELS[MODEL],),
        operator=OperatorSettings(rounds=settings.rounds, **usual, **on),
        cases=(*GPU_CASES.values(), _DECODE, *(CASES[name] for name in others)),
    )


def run_gpu(settings: GpuSettings, folder: Path, plan: Plan | None = None) -> int:
    """Tests and measures, prints as it goes, and writes operator.csv, step.csv, gpu.json, tests.txt and summary.md.

    Returns 0, or 1 if the tests did not pass or a measurement failed; running out of time is not a failure.  Raises
    ValueError if there is no CUDA device, or if the folder holds measurements with other settings or from another
    environment.  If a kernel breaks the device for this process, a new process continues and leaves out what broke it.
    """
    settings.check()
    plan = _without_chosen(plan_for_cuda(settings) if plan is None else plan, settings.without)
    plan.operator.check()
    plan.step.check()
    end = time.monotonic() + 60 * settings.minutes
    torch.set_num_threads(plan.operator.threads)  # here, since the environment to compare contains it
    claim(folder)
    where, file = environment(), folder / ABOUT
    earlier = read_json(file, GpuAbout) if file.exists() else GpuAbout(tests="not run", limits={}, not_measured={})
    about: dict[str, Any] = {"settings": asdict(settings), "environment": where, "limits": {}}
    about["tests"] = earlier["tests"]
    missing, plan = _without_unavailable(plan, where["implementations"])
    units = _units(plan, folder, about)
    missing |= {unit.name: _NOT_REACHED for unit in units if not unit.finished}
    missing |= {name: earlier["not_measured"].get(name, "left out") for name in settings.without}
    about["not_measured"] = missing
    write_json(folder / ABOUT, about)
    if plan.tests:
        about["tests"] = run_tests(plan.tests, folder / "tests.txt", (end - time.monotonic()) / 3)
        print(f"tests: {about['tests']}", flush=True)
    about["limits"] = asdict(plan.limits())

    def save() -> None:
        write_json(folder / ABOUT, about)
        write_text(folder / "summary.md", f"{gpu_page(folder)}\n")

    try:
        _measure(units, end, missing, save, torch.device(plan.operator.device))
    except _DeviceLost as lost:
        print(
            f"the device stopped responding after {lost}; a new process leaves it out",
            file=sys.stderr,
            flush=True,
        )
        os.execv(sys.executable, _going_on(settings, folder, (end - time.monotonic()) / 60, str(lost)))
    print(gpu_page(folder))
    failed = any(why.startswith(_FAILED) for why in missing.values())
    return int(failed or bool(plan.tests and not about["tests"].startswith("passed")))


def _going_on(settings: GpuSettings, folder: Path, minutes: float, lost: str) -> list[str]:
    """The command that measures what is left, without the unit that broke the device."""
    options = ["--minutes", str(max(minutes, 0.01)), "--rounds", str(settings.rounds), "--no-tests"]
    options += [] if settings.compiled else ["--no-compiled"]
    options += ["--without", *settings.without, lost]
    return [sys.executable, "-m", "conditioned_attention.bench.gpu", str(folder), *options]


def _without_chosen(plan: Plan, names: Sequence[str]) -> Plan:
    """The plan without these models and cases; raises ValueError for a name that is not in the plan."""
    valid = [*(model.name for model in plan.models), *(case.name for case in plan.cases)]
    unknown = [name for name in names if name not in valid]
    if unknown:
        raise ValueError(f"without names {unknown[0]!r}; valid are {', '.join(valid)}")
    models = tuple(model for model in plan.models if model.name not in names)
    return replace(plan, models=models, cases=tuple(case for case in plan.cases if case.name not in names))


def _without_unavailable(plan: Plan, availability: dict[str, str]) -> tuple[dict[str, str], Plan]:
    """What cannot run at all, with the reasons, and the plan without those implementations."""
    out = {name: availability[name] for name in plan.step.implementations if availability[name] != "available"}
    kept = tuple(name for name in plan.step.implementations if name not in out)
    missing = {f"{model.name}, {name}": why for model in plan.models for name, why in out.items()}
    return missing, replace(plan, step=replace(plan.step, implementations=kept))


def _units(plan: Plan, folder: Path, about: dict[str, Any]) -> list[Unit]:
    """The units: models, then cases; raises ValueError if the folder holds measurements of something else."""
    models = {row.model for row in begin(folder / "step.csv", StepRow, plan.step)}
    cases = {row.case for row in begin(folder / "operator.csv", OperatorRow, plan.operator)}

    def step(model: StepModel) -> None:
        for rows in run_step([model], plan.step, folder):
            print_steps(rows)

    def operator(case: Case) -> None:
        for rows in run_operator([case], plan.operator, folder):
            print_gpu_case(rows, Limits(**about["limits"]))

    units = [Unit(model.name, model.name in models, partial(step, model)) for model in plan.models]
    return units + [Unit(case.name, case.name in cases, partial(operator, case)) for case in plan.cases]


def _measure(
    units: Sequence[Unit], end: float, missing: dict[str, str], save: Callable[[], None], device: torch.device
) -> None:
    """Measures units as long as there is time for one like the last; removes what was measured from ``missing``."""
    last = 0.0
    save()
    for unit in units:
        began = time.monotonic()
        if not unit.finished and end - began <= last:
            continue
        try:
            unit.measure()
            missing.pop(unit.name, None)
        except Exception as error:  # the others are measured all the same: who knows when there is a GPU again
            missing[unit.name] = f"{_FAILED}{type(error).__name__}: {first_line(error)}"
            print(f"{unit.name}: {missing[unit.name]}", flush=True)
            if not answers(device):
                save()
                raise _DeviceLost(unit.name) from error
        if not unit.finished:
            last = time.monotonic() - began
        save()


def run_tests(tests: Sequence[str], log: Path, seconds: float) -> str:
    """Runs pytest in its own process; returns "passed", "FAILED" or why not, in a line.  Its output goes to ``log``."""
    if not (_ROOT / "tests").is_dir():
        return "not run: there are no tests beside this package; it is no checkout"
    lacking = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if lacking:
        return f"not run: {' and '.join(lacking)} not installed"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    if importlib.util.find_spec("xdist") is not None:  # most of the time goes into compiling kernels, on the host
        command += ["-n", str(min(8, cores()))]
    path = os.pathsep.join(filter(None, [str(_ROOT / "src"), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path}
    with log.open("w") as output:
        done = subprocess.Popen(command, cwd=_ROOT, env=env, stdout=output, stderr=output, start_new_session=True)
        try:
            done.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"not finished within {seconds:.0f} seconds; see {log.name}"
        finally:
            _end(done)
    last = (log.read_text().strip().splitlines() or [""])[-1].strip("= ")
    return f"{'FAILED' if done.returncode else 'passed'}: {last}; see {log.name}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends pytest and its workers, which would disturb the timing; interrupted first, it prints what has failed."""
    for word, patience in ((signal.SIGINT, 10.0), (signal.SIGKILL, None)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, word)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns as `run_gpu` does, 2 for wrong input or without a CUDA device, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m conditioned_attention.bench.gpu", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the results go; a second run goes on there")
    parser.add_argument("--minutes", type=float, default=GpuSettings.minutes, help="for everything")
    parser.add_argument("--rounds", type=int, default=GpuSettings.rounds, help="turns that the contestants take")
    parser.add_argument("--no-tests", dest="tests", action="store_false", help="do not test the kernels first")
    parser.add_argument("--no-compiled", dest="compiled", action="store_false", help="without torch.compile")
    parser.add_argument("--without", nargs="*", default=[], metavar="NAME", help="models and cases to leave out")
    options = vars(parser.parse_args(arguments))
    folder = options.pop("folder")
    options["without"] = tuple(options["without"])
    try:
        return run_gpu(GpuSettings(**options), folder)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on where this one was", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
