"""The benchmark for a GPU, run on a CPU with sizes that take no time."""

import dataclasses
import fcntl
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conditioned_attention.bench import gpu as gpu_module
from conditioned_attention.bench import operator as operator_module
from conditioned_attention.bench.cases import CASES, GPU_CASES, Case
from conditioned_attention.bench.gpu import GpuSettings, Plan, Unit, plan_for_cuda, run_gpu, run_tests
from conditioned_attention.bench.operator import OperatorRow
from conditioned_attention.bench.results import read_rows
from conditioned_attention.bench.step import StepSettings
from conditioned_attention.bench.work import measure_limits
from conditioned_attention.environment import cores
from tests.bench.tiny import CASE, MODEL, QUICK

ROOT = Path(__file__).parents[2]
SETTINGS = GpuSettings(tests=False)
OTHER = Case("other", (1, 2, 4, 4), "nowhere", causal=True)
PLAN = Plan(
    tests=(),
    limits=lambda: measure_limits(torch.device("cpu"), torch.float32, 16, 1),
    step=StepSettings(rounds=1, variants=("baseline", "preconditioned"), implementations=("composed", "fused")),
    models=(),
    operator=dataclasses.replace(QUICK, contestants="gpu"),
    cases=(CASE, OTHER),
)


def about(folder):
    return json.loads((folder / "gpu.json").read_text())


def test_everything_is_measured_printed_and_kept(tmp_path, capsys, monkeypatch):
    plan = dataclasses.replace(PLAN, models=(MODEL,))
    assert run_gpu(SETTINGS, tmp_path, plan) == 0
    assert {row.case for row in read_rows(tmp_path / "operator.csv", OperatorRow)} == {"tiny", "other"}
    assert set(about(tmp_path)["not_measured"]) == {"tiny, fused"}, "named, with the reason"
    assert "on a CPU" in about(tmp_path)["not_measured"]["tiny, fused"]
    assert min(about(tmp_path)["limits"].values()) > 0
    printed = capsys.readouterr().out
    page = (tmp_path / "summary.md").read_text()
    assert printed.endswith(page)
    for words in ("other: 1×2×4×4, causal | flash", "- tests: not run", "preconditioned, composed", "- other: "):
        assert words in page
    monkeypatch.setattr(operator_module, "measure_case", pytest.fail)
    monkeypatch.setattr("conditioned_attention.bench.step.measure_model", pytest.fail)
    torch.set_num_threads(2)  # as in a new process, which has not been told yet
    assert run_gpu(dataclasses.replace(SETTINGS, minutes=1e-9), tmp_path, plan) == 0
    assert (tmp_path / "summary.md").read_text().endswith(page[page.index("Forward and backward, over") :])
    with pytest.raises(ValueError, match=r"settings\.rounds: 2 there, 3 now"):
        run_gpu(SETTINGS, tmp_path, dataclasses.replace(plan, operator=dataclasses.replace(plan.operator, rounds=3)))


def test_what_there_is_no_time_for_is_named(tmp_path, capsys):
    assert run_gpu(GpuSettings(minutes=1e-9), tmp_path, PLAN) == 0
    assert set(about(tmp_path)["not_measured"]) == {"tiny", "other"}
    assert "- not measured: other: not reached in time; a second run continues here" in capsys.readouterr().out
    with pytest.raises(ValueError, match="minutes must be positive, got 0"):
        run_gpu(GpuSettings(minutes=0), tmp_path, PLAN)


def test_nothing_is_begun_that_would_end_too_late(monkeypatch):
    """Units of 10 seconds, 10 seconds apart, until 65: the fourth would end at 70; the fifth was finished earlier."""
    clock = itertools.count(0, 10)
    monkeypatch.setattr(gpu_module.time, "monotonic", lambda: float(next(clock)))
    done, saved, missing = [], [], dict.fromkeys("abcde", "not reached")
    units = [Unit(name, name == "e", lambda name=name: done.append(name)) for name in "abcde"]
    gpu_module._measure(units, 65.0, missing, lambda: saved.append(list(missing)), torch.device("cpu"))
    assert done == ["a", "b", "c", "e"]
    assert missing == {"d": "not reached"}
    assert saved[:2] == [["a", "b", "c", "d", "e"], ["b", "c", "d", "e"]]


def test_a_failure_is_named_and_the_others_are_measured(tmp_path, monkeypatch, capsys):
    measure_case = operator_module.measure_case

    def measure(case, settings):
        if case.name == "tiny":
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        return measure_case(case, settings)

    monkeypatch.setattr(operator_module, "measure_case", measure)
    assert run_gpu(SETTINGS, tmp_path, PLAN) == 1
    assert about(tmp_path)["not_measured"] == {"tiny": "failed: OutOfMemoryError: CUDA out of memory."}
    assert {row.case for row in read_rows(tmp_path / "operator.csv", OperatorRow)} == {"other"}
    assert "tiny: failed: OutOfMemoryError" in capsys.readouterr().out


def test_where_a_kernel_breaks_the_device_a_new_process_goes_on_without_it(tmp_path, monkeypatch, capsys):
    """CUDA refuses all that a process asks after a fault; the status still says that something failed."""
    measure_case = operator_module.measure_case

    def measure(case, settings):
        if case.name == "tiny":
            monkeypatch.setattr(gpu_module, "answers", lambda device: False)
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nand so on")
        return measure_case(case, settings)

    class Replaced(BaseException):
        pass

    def replace_process(program, command):
        raise Replaced(program, command)

    monkeypatch.setattr(operator_module, "measure_case", measure)
    monkeypatch.setattr(gpu_module.os, "execv", replace_process)
    monkeypatch.setattr(gpu_module, "plan_for_cuda", lambda settings: PLAN)
    with pytest.raises(Replaced) as replaced:
        gpu_module.main([str(tmp_path), "--minutes", "5", "--rounds", "3", "--no-tests", "--no-compiled"])
    program, command = replaced.value.args
    assert command[:4] == [program, "-m", "conditioned_attention.bench.gpu", str(tmp_path)]
    assert set(about(tmp_path)["not_measured"]) == {"tiny", "other"}, "saved first"
    monkeypatch.setattr(gpu_module, "answers", lambda device: True)
    assert gpu_module.main(command[3:]) == 1
    now = about(tmp_path)
    assert now["not_measured"] == {
        "tiny": "failed: AcceleratorError: CUDA error: an illegal memory access was encountered"
    }
    assert 4.5 < now["settings"].pop("minutes") < 5
    assert now["settings"] == {"rounds": 3, "tests": False, "compiled": False, "without": ["tiny"]}
    assert {row.case for row in read_rows(tmp_path / "operator.csv", OperatorRow)} == {"other"}
    assert "the device stopped responding after tiny" in capsys.readouterr().err
    assert gpu_module.main([str(tmp_path), "--without", "tinny"]) == 2
    assert "without names 'tinny'; valid are tiny, other" in capsys.readouterr().err


def without(package):
    """`find_spec` where one package is not installed."""
    original = gpu_module.importlib.util.find_spec
    return lambda name, *more: None if name == package else original(name, *more)


@pytest.mark.slow
def test_kernels_are_tested_first(tmp_path, monkeypatch):
    """And a failure is no reason not to measure, but the status says so."""
    monkeypatch.setattr(gpu_module.importlib.util, "find_spec", without("xdist"))  # its workers take seconds to start
    test = tmp_path / "test_some.py"
    test.write_text("def test_right(): pass\ndef test_wrong(): assert 1 == 2")
    plan = dataclasses.replace(PLAN, tests=(str(test),), cases=(CASE,))
    assert run_gpu(GpuSettings(), tmp_path / "bench", plan) == 1
    assert about(tmp_path / "bench")["tests"].startswith("FAILED: 1 failed, 1 passed in ")
    assert about(tmp_path / "bench")["not_measured"] == {}
    assert "assert 1 == 2" in (tmp_path / "bench" / "tests.txt").read_text()


@pytest.mark.slow
def test_tests_that_pass_or_take_too_long_or_are_not_there(tmp_path, monkeypatch):
    commands, real = [], subprocess.Popen

    def begun(command, **how):
        commands.append(command)
        return real([sys.executable, "-c", "print('....\\n==== 4 passed in 0.10s ====')"], **how)

    monkeypatch.setattr(subprocess, "Popen", begun)
    log = tmp_path / "tests.txt"
    assert run_tests(["some"], log, 60) == "passed: 4 passed in 0.10s; see tests.txt"
    assert commands[0][-2:] == ["-n", str(min(8, cores()))], "of several processes where there is xdist"
    monkeypatch.setattr(subprocess, "Popen", real)
    test = tmp_path / "test_some.py"
    held = tmp_path / "held"
    test.write_text(f"""
import fcntl, subprocess, time

def test_wrong():
    assert 1 == 2

def test_long():
    with open({str(held)!r}, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        subprocess.Popen(["sleep", "60"], pass_fds=[file.fileno()])
        time.sleep(60)
""")
    monkeypatch.setattr(gpu_module.importlib.util, "find_spec", without("xdist"))
    assert run_tests([str(test)], log, 6) == "not finished within 6 seconds; see tests.txt"
    assert "assert 1 == 2" in log.read_text(), "what had failed until then"
    with held.open() as file:  # its process has ended too, like pytest's workers
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    monkeypatch.setattr(gpu_module.importlib.util, "find_spec", without("hypothesis"))
    assert run_tests(["some"], log, 60) == "not run: hypothesis not installed"
    monkeypatch.setattr(gpu_module, "_ROOT", tmp_path)
    assert "no tests beside this package" in run_tests(["some"], log, 60)


def test_the_plan_for_a_gpu():
    plan = plan_for_cuda(GpuSettings())
    names = [case.name for case in plan.cases]
    assert names == [*GPU_CASES, "decode", "swin_bias", "bert", "gpt_grouped", "xcit", *names[len(GPU_CASES) + 5 :]]
    assert sorted(names) == sorted([*GPU_CASES, "decode", *CASES])
    assert {(plan.operator.device, plan.operator.dtype), (plan.step.device, plan.step.dtype)} == {("cuda", "bfloat16")}
    shapes = {(case.query[2], case.query[3], case.causal) for case in GPU_CASES.values()}
    assert shapes == set(itertools.product((197, 1024, 4096, 16384), (64, 128), (False, True)))
    for file in (test.partition("::")[0] for test in plan.tests):
        assert (ROOT / file).is_file()
    assert "def test_on_a_gpu(" in (ROOT / plan.tests[-1].partition("::")[0]).read_text()


@pytest.mark.slow
def test_no_cuda_device_is_said_in_a_line_and_little_is_needed_to_say_so(tmp_path):
    """With what a machine with a GPU may lack made unimportable."""
    code = """
import runpy, sys
for name in ("tyro", "transformers", "accelerate", "sklearn", "scipy", "plotly", "torchmetrics", "hypothesis", "timm"):
    sys.modules[name] = None
sys.argv = ["gpu", sys.argv[1]]
runpy.run_module("conditioned_attention.bench.gpu", run_name="__main__")
"""
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=hidden)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: device='cuda', but this torch sees no CUDA device\n"
    assert not (tmp_path / "out").exists()
