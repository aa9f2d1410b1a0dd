"""The same run on two processes: same numbers, one folder, and an end that all of them agree on."""

import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from timm import create_model

from conditioned_attention.experiments.trained import load_run
from conditioned_attention.experiments.training.evaluation import evaluate
from conditioned_attention.experiments.training.launch import Launch
from conditioned_attention.experiments.training.sharded import shard_by_blocks
from conditioned_attention.storage.json_lines import JsonLines
from tests.experiments import ranks
from tests.experiments.objects import scenes
from tests.processes import Forked, torchruns_variables


def torchrun(*arguments, processes=2, **environment):
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), *arguments]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE", "PYTEST"))}
    return subprocess.run(
        command, env={**inherited, "OMP_NUM_THREADS": "1", **environment}, capture_output=True, text=True, timeout=300
    )


def launched(folder, what, *more, **kwargs):
    return torchrun("-m", "tests.experiments.ranks", str(folder), what, *more, **kwargs)


def history(folder):
    newest = sorted(folder.glob("checkpoint-*"))[-1]
    return json.loads((newest / "position.json").read_text())["history"]


def assert_close(rows, expected):
    """Sums over two ranks round otherwise than sums over one, and training multiplies that."""
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected):
        for key in other.keys() - {"seconds", "log10_kappa", "largest_scale"}:
            assert row[key] == pytest.approx(other[key], rel=1e-4), key


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return folder, ranks.run(folder, "quiet")


def two_ranks(monkeypatch, folder, what, parallel):
    """Told what torchrun tells, which takes seconds."""
    processes = []
    with monkeypatch.context() as told:
        for rank, variables in enumerate(torchruns_variables(2)):
            for name, value in variables.items():
                told.setenv(name, value)
            processes.append(Forked(folder.with_suffix(f".{rank}"), ranks.main, folder, what, parallel))
        assert [process.wait() for process in processes] == [0, 0], processes[0].said.read_text()


def assert_trained_alike(folder, other):
    ours, theirs = (JsonLines(path / "train.jsonl").read() for path in (folder, other))
    assert [row["step"] for row in ours] == [row["step"] for row in theirs], "written once, not by every rank"
    for row, expected in zip(ours, theirs):
        for key in expected.keys() - {"seconds"}:
            assert row[key] == pytest.approx(expected[key], rel=1e-4), key


@pytest.mark.slow
def test_two_ranks_train_what_one_process_trains(alone, tmp_path, monkeypatch):
    two_ranks(monkeypatch, tmp_path, "quiet", "ddp")
    assert_close(history(tmp_path), alone[1])
    assert_trained_alike(tmp_path, alone[0])
    ours, theirs = (JsonLines(folder / "conditions.jsonl").read() for folder in (tmp_path, alone[0]))
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    newest = sorted(tmp_path.glob("checkpoint-*"))[-1]
    assert {path.name for path in newest.glob("random_states_*")} == {"random_states_0.pkl", "random_states_1.pkl"}


@pytest.mark.slow
def test_two_ranks_train_on_padded_sequences_what_one_process_trains(tmp_path, monkeypatch):
    """In micro-batches, by the weights of the best evaluation, which both have."""
    rows = ranks.run(tmp_path / "one", "lists")
    two_ranks(monkeypatch, tmp_path / "two", "lists", "ddp")
    assert_close(history(tmp_path / "two"), rows)
    assert_trained_alike(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_two_ranks_share_the_weights_and_one_process_goes_on(tmp_path, monkeypatch):
    """FSDP2 through Accelerate, with C and λ I; its checkpoints are those of one process, and the other way round."""
    one, two = tmp_path / "one", tmp_path / "two"
    rows = ranks.run(one, "sharded")
    two_ranks(monkeypatch, two, "sharded", "fsdp2")
    assert_close(history(two), rows)
    assert_trained_alike(two, one)
    files = [{path.name for path in sorted(folder.glob("checkpoint-*"))[-1].iterdir()} for folder in (one, two)]
    assert files[1] == files[0] | {"random_states_1.pkl"}
    optimizers = [
        torch.load(sorted(folder.glob("checkpoint-*"))[-1] / "optimizer.bin", weights_only=True)
        for folder in (one, two)
    ]
    assert optimizers[1]["state"].keys() == optimizers[0]["state"].keys(), "numbers, as of one process"
    for folder in (one, two):  # back to the step before the last
        shutil.rmtree(sorted(folder.glob("checkpoint-*"))[-1])
    assert_close(ranks.run(two, "sharded"), rows)
    two_ranks(monkeypatch, one, "sharded", "fsdp2")
    assert_close(history(one), rows)


@pytest.mark.slow
def test_two_ranks_detect_and_count_every_picture_once(tmp_path, monkeypatch):
    """Five pictures to evaluate on, in batches of four; each rank draws regions of its own, so they train otherwise."""
    monkeypatch.setenv("SCENES", str(tmp_path / "data"))
    recipe = scenes(tmp_path / "data")
    task = recipe.task()
    two_ranks(monkeypatch, tmp_path / "run", "scenes", "ddp")
    model = load_run(tmp_path / "run")
    batches = [task.collate([task.eval_data()[i] for i in some]) for some in ((0, 1, 2), (3, 4))]
    alone = evaluate(task, model, batches, list)
    last = history(tmp_path / "run")[-1]
    assert last["step"] == 4
    assert alone["score"] > 0
    assert alone["score"] == pytest.approx(last["score"], abs=1e-3)
    assert list((tmp_path / "run").glob("*.png")) == [tmp_path / "run" / "truth_and_detections.png"]


def test_blocks_are_what_is_shared_at_a_time():
    plugin = SimpleNamespace(transformer_cls_names_to_wrap=None)
    accelerator = SimpleNamespace(
        distributed_type=DistributedType.FSDP,
        is_fsdp2=True,
        mixed_precision="no",
        state=SimpleNamespace(fsdp_plugin=plugin),
    )
    for name in ("xcit_nano_12_p16_224", "davit_tiny"):
        with torch.device("meta"):
            shard_by_blocks(accelerator, create_model(name))
    assert plugin.transformer_cls_names_to_wrap == ["ClassAttentionBlock", "XCABlock"], "those of the launcher stay"


@pytest.mark.slow
def test_a_rank_is_killed_and_the_run_goes_on_later(tmp_path):
    """Chance everywhere, so that resuming on as many ranks has something to get wrong; bit for bit."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert launched(whole, "shaken").returncode == 0
    died = launched(broken, "dying")
    assert died.returncode != 0
    assert "-9" in died.stderr
    assert [path.name for path in broken.glob("checkpoint-*")], "steps before it are kept"
    assert launched(broken, "shaken").returncode == 0
    strip = [{k: v for k, v in row.items() if k != "seconds"} for row in history(broken)]
    assert strip == [{k: v for k, v in row.items() if k != "seconds"} for row in history(whole)]


@pytest.mark.slow
def test_it_goes_on_with_another_number_of_processes(alone, tmp_path):
    stopped = launched(tmp_path, "stopped")
    step = int(re.search(r"stopped at step (\d+) of 14", stopped.stderr)[1])
    assert 4 < step < 14, "one rank was asked, all of them stopped there"
    assert len(re.findall("stopped at step", stopped.stderr)) == 1
    rows = ranks.run(tmp_path, "shaken")
    assert [row["step"] for row in rows] == [4, 8, 12, 14]


def test_another_kind_than_asked_is_an_error(tmp_path, monkeypatch):
    for wish, words in (
        ("ddp", "parallel='ddp' was asked for, but this is 'none', 1 process.* on cpu; start it with 'torchrun"),
        ("fsdp2", "parallel='fsdp2' was asked for, but this is 'none'.*FSDP2 needs several processes"),
    ):
        with pytest.raises(RuntimeError, match=words):
            ranks.run(tmp_path, "quiet", parallel=wish)
    Launch().accelerator("no", 1)  # the refused request is not taken for the launcher's
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RuntimeError, match="parallel='fsdp2' was asked for, but this is 'none'"):
        ranks.run(tmp_path, "quiet")
    with pytest.raises(ValueError, match="parallel='dpp' is unknown; valid are 'auto', 'none', 'ddp', 'fsdp2'"):
        Launch(parallel="dpp")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="FSDP2 is not refused where there are GPUs")
def test_launched_as_another_kind_than_asked(tmp_path):
    done = launched(tmp_path, "quiet", "none")
    assert done.returncode != 0
    assert "parallel='none' was asked for, but this is 'ddp', 2 process" in done.stderr
    done = launched(tmp_path, "quiet", ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    assert "parallel='fsdp2' was asked for" in done.stderr
    assert not list(tmp_path.iterdir())
