"""The command line as a user meets it."""

import json
import os
import re
import signal
import time
import warnings

import pytest
import torch
import tyro

from conditioned_attention import __version__
from conditioned_attention._command_line import EXAMPLES, REGISTRY
from conditioned_attention.cli import CONFIG, _default_workers, commands, main
from conditioned_attention.experiments import compare
from conditioned_attention.experiments.report.terminal import print_table
from tests.processes import Forked

QUICK = ["--epochs", "1", "--layers", "1", "--hidden-size", "16", "--heads", "4", "--batch-size", "256"]


def call(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_bare_call_helps_and_the_version_is_told(capsys):
    assert call() == 0
    said = capsys.readouterr().out
    assert all(command in said for command in ("compare", "train", "inspect", "report", "bench", "list", "env"))
    assert "COMMAND --help" in said
    assert call("--version") == 0
    assert capsys.readouterr().out == f"conditioned-attention {__version__}\n"
    assert not call("--tyro-print-completion", "bash")
    assert "complete " in capsys.readouterr().out


@pytest.mark.parametrize("command", ["compare digits", "train image_folder"])
def test_options_of_a_recipe_stand_before_those_of_its_launch(command, capsys):
    assert call(*command.split(), "--help") == 0
    said = capsys.readouterr().out
    places = [said.index(f" {title} options ") for title in ("model", "training", "launch")]
    assert places == sorted(places)
    assert "None}" not in said
    assert "--folder PATH" in said


def test_the_list_of_recipes_is_short_and_a_recipe_says_all(capsys):
    more = "does not come near on ImageNet-1k alone"
    assert call("compare", "--help") == 0
    listed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "ViT-B/16 by DeiT's recipe, which is the same network." in listed
    assert more not in listed
    assert call("compare", "vit_b", "--help") == 0
    assert more in " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize("command", EXAMPLES)
def test_examples_are_on_the_page_and_can_be_called(command, capsys):
    assert call(command, "--help") == 0
    said = capsys.readouterr().out
    assert all(len(line) <= 80 for line in said.splitlines() if line.startswith(("$ ", "      ")))
    said = said.replace(" \\\n      ", " ")  # a shell reads it as one line
    for example in EXAMPLES[command]:
        arguments = [command, *example.split()]
        assert " ".join(["$ conditioned-attention", *arguments]) in said
        assert tyro.cli(commands(arguments), args=arguments, config=CONFIG, registry=REGISTRY) is not None


def test_lists(capsys):
    for what, first in (("recipes", "digits"), ("variants", "baseline"), ("cases", "vit_b"), ("models", "vit_b")):
        assert call("list", what) == 0
        assert re.match(rf"{first}  +\S", capsys.readouterr().out)
    assert call("list", "gpus") == 0
    assert "A100-80   80 GB, 312 TFLOP/s of bf16, 19.5 of float32\n" in capsys.readouterr().out


def test_the_verdict_is_first_and_no_line_is_cut_at_80_columns(capsys, monkeypatch):
    for name, value in {"COLUMNS": "80", "TERM": "dumb", "TTY_COMPATIBLE": "1"}.items():
        monkeypatch.setenv(name, value)

    def train(variant, seed):
        yield {"score": 90.0 + seed + len(variant.name) / 7, "log10_kappa": 2.0, "floor_share": 0.1}

    print_table(compare(train, ["baseline", "preconditioned+spectral"], progress=False))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("preconditioned+spectral: ")
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    assert len([line for line in lines if line.startswith("preconditioned+spectral  ")]) >= 4


def test_compare_then_report_then_more_seeds(tmp_path, capsys):
    base = ["compare", "digits", "--folder", str(tmp_path), "--workers", "1", "--no-cost", *QUICK]
    assert call(*base, "--seeds", "1") == 0
    assert "One pair says nothing about the spread" in " ".join(capsys.readouterr().out.split())
    assert call(*base, "--seeds", "2", "--variants", "baseline", "head_rmsnorm") == 0
    data = json.loads((tmp_path / "results.json").read_text())
    assert [(run["variant"], run["seed"]) for run in data["runs"]] == [
        ("baseline", 0), ("baseline", 1), ("head_rmsnorm", 0), ("head_rmsnorm", 1),
    ]  # fmt: skip
    (tmp_path / "report.html").unlink()
    assert call("train", "digits", "--folder", str(tmp_path), *QUICK) == 2
    assert "is the folder of a comparison" in capsys.readouterr().err
    assert call("report", str(tmp_path)) == 0
    assert (tmp_path / "report.html").exists()
    assert call(*base, "--lr", "0.5") == 2
    assert "training.lr: 0.001 there, 0.5 now" in capsys.readouterr().err


@pytest.mark.slow
def test_compare_tunes_and_shares_the_seeds_out(tmp_path, capsys):
    base = ["compare", "digits", "--folder", str(tmp_path), "--workers", "1", "--no-cost", *QUICK, "--seeds", "1"]
    assert call(*base, "--tune", "1e-3", "1e-2", "--first-seed", "4") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "learning rates tuned on validation data: 0.0" in printed
    assert printed.count("chosen") >= 2
    data = json.loads((tmp_path / "results.json").read_text())
    assert {run["seed"] for run in data["runs"]} == {4}
    assert data["settings"]["tuning"] == {"rates": [1e-3, 1e-2], "seeds": 1}
    assert len(data["tuning"]["trials"]) == 4
    assert call("report", str(tmp_path)) == 0
    assert json.loads((tmp_path / "results.json").read_text())["tuning"] == data["tuning"]
    assert call("train", "digits", *QUICK, "--variant", "baseline", "--seed", "9", "--into", str(tmp_path)) == 0
    assert call("report", str(tmp_path)) == 0
    report = json.loads((tmp_path / "results.json").read_text())
    assert {(run["variant"], run["seed"]) for run in report["runs"]} >= {("baseline", 4), ("baseline", 9)}
    run = json.loads((tmp_path / "runs/baseline/seed-9/result.json").read_text())
    chosen = [row for row in report["tuning"]["trials"] if row["variant"] == "baseline" and row["chosen"]]
    assert run["variant_settings"] == {"lr": chosen[0]["lr"]}
    assert call(*base, "--tune", "1e-2") == 2
    assert "tuning.rates: [0.001, 0.01] there, [0.01] now" in capsys.readouterr().err
    assert call(*base, "--tune", "1e-3", "--tune-seeds", "0") == 2
    assert "tune_seeds must be at least 1" in capsys.readouterr().err


def test_sigterm_says_how_to_go_on(tmp_path):
    arguments = ["compare", "digits", "--folder", str(tmp_path), "--workers", "1", *QUICK, "--epochs", "10000"]
    process = Forked(tmp_path.with_suffix(".said"), main, arguments)
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob("runs/*/*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    assert process.said.read_text().rstrip().endswith("stopped; the same command goes on where this one was")
    assert list(tmp_path.glob("runs/*/*/checkpoint-*"))


@pytest.mark.slow
def test_a_warning_is_a_line(tmp_path):
    for name in ("good.txt", "better.txt"):
        (tmp_path / name).write_text("It was the best of times, it was the worst of times. " * 200)
    (tmp_path / "empty.txt").touch()
    with pytest.warns(UserWarning, match="left out") as caught:
        code = call("train", "next_byte", "--text", "files", "--path", str(tmp_path), "--context", "8", "--dry-run")
    assert code == 0
    lines = [warnings.formatwarning(w.message, w.category, w.filename, w.lineno) for w in caught]
    assert lines == ["warning: left out: 1 of 3 items cannot be read: empty.txt (it is empty)\n"]
    assert warnings.formatwarning("theirs", UserWarning, "their.py", 7).startswith("their.py:7: UserWarning: theirs")


def test_train_goes_on(tmp_path, capsys):
    base = ["train", "digits", "--folder", str(tmp_path), *QUICK, "--library", "timm"]
    assert call(*base) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9; 1,437 to train, 360 to evaluate"
    assert re.match(r"epoch 1  step 5  seen 1280  seconds \d+\.\d+  train_loss", second)
    first = json.loads((tmp_path / "result.json").read_text())
    assert call(*base) == 0
    assert json.loads((tmp_path / "result.json").read_text()) == first
    before = contents(tmp_path)
    assert call(*base, "--seed", "3") == 2
    assert "seed: 0 there, 3 now" in capsys.readouterr().err
    assert call(*base, "--variant", "baseline") == 2
    assert "variant: preconditioned there, baseline now" in capsys.readouterr().err
    assert call("compare", "digits", "--folder", str(tmp_path), "--workers", "1", *QUICK) == 2
    assert "is the folder of a single run" in capsys.readouterr().err
    assert contents(tmp_path) == before, "what was refused has changed nothing"


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "fashion_mnist", "--data-dir", "/nowhere"], "apt-get install dataset-fashion-mnist"),
        (["compare", "digits", "--patch-size", "3", "--workers", "1", "--seeds", "1"], "patch_size=3 must divide"),
        (["report", "/nowhere"], "/nowhere: there is no such folder"),
        (["report", "/"], "holds no results.json; run 'conditioned-attention compare' into it first"),
        (["report"], "name at least one folder"),
        (["compare", "digits", "--workers", "0"], "workers must be at least 1"),
        (["compare", "digits", "--heads", "0", "--workers", "1", "--seeds", "1"], "must be at least 1"),
        (["train", "digits", "--seed", "-1"], "seed must be between 0"),
        (["train", "digits", "--folder", "a", "--into", "b"], "a run has one place"),
        (["train", "digits", *QUICK, "--parallel", "ddp"], "start it with 'torchrun"),
        (["train", "digits", "--trackers", "paper"], "unknown tracker 'paper'; valid are tensorboard, wandb"),
        (["train", "next_byte", "--text", "wordnet", "--path", "/nowhere"], "apt-get install wordnet-base"),
        (["compare", "next_byte", "--text", "files"], "text='files' needs a path"),
        (["train", "digits", "--lr", "1e30", "--clip", "None", *QUICK], "training loss is nan"),
        (["bench", "loop", "--rounds", "0"], "rounds, threads and epochs must be at least 1"),
        (["bench"], "operator, step, gpu, blocks, monitor, spectra, loop, table"),
        (["bench", "operator", "--cases", "vit_z"], "case 'vit_z' is unknown; valid are vit_b, vit_s"),
        (
            ["bench", "operator", "--cases", "digits", "--rounds", "0"],
            "rounds, threads and batch_size must be at least 1",
        ),
        (["bench", "operator", "--modes", "sideways"], "sideways"),
        (["bench", "step", "--models", "bert"], "model 'bert' is unknown; valid are vit_b"),
        (["bench", "step", "--layers", "0"], "layers must be at least 1"),
        (["bench", "table", "/nowhere"], "holds neither operator.csv nor step.csv"),
        (["compare", "digits", "--seeds", "0"], "seeds must be at least one"),
        (["compare", "digits", "--epochs", "0"], "epochs must be at least 1"),
        (["compare", "imagenet"], "imagenet"),
        (["train", "digits", "--variant", "magic"], "magic"),
        (["dance"], "dance"),
    ],
)
def test_wrong_input_exits_with_2_and_says_why(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 2
    assert words in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_bench_measures_goes_on_and_fills_the_readme(tmp_path, capsys):
    quick = ["--output", str(tmp_path), "--batch-size", "1", "--rounds", "1"]
    operator = ["bench", "operator", "--no-compiled", "--sample-milliseconds", "0.1", *quick, "--cases"]
    assert call(*operator, "digits") == 0
    assert "three lines" in capsys.readouterr().out
    first = (tmp_path / "operator.csv").read_text()
    assert call(*operator, "digits", "xcit") == 0
    assert (tmp_path / "operator.csv").read_text().startswith(first)
    assert (tmp_path / "operator.png").exists()
    assert call("bench", "step", *quick, "--layers", "1", "--models", "vit_b_block") == 0
    assert "1 of 1 attention modules converted" in capsys.readouterr().out
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n\n<!-- bench:begin -->\n<!-- bench:end -->\n")
    assert call("bench", "table", str(tmp_path), "--into", str(readme)) == 0
    assert call("bench", "table", str(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert "| xcit: 1×8×48×196 |" in printed
    assert printed.strip() in readme.read_text()


def test_bench_stopped_by_ctrl_c(tmp_path, capsys, monkeypatch):
    from conditioned_attention.bench import operator

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(operator, "measure_case", stop)
    assert call("bench", "operator", "--cases", "digits", "--output", str(tmp_path)) == 130
    assert "goes on where this one was" in capsys.readouterr().err


@pytest.mark.slow
def test_the_demo_learns(tmp_path):
    """Both variants, whole runs: most digits are read rightly, or something in the line is broken."""
    assert call("compare", "digits", "--folder", str(tmp_path), "--seeds", "1", "--no-cost") == 0
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert len(runs) == 2
    assert all(run["history"][-1]["score"] > 92 for run in runs)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or torch.cuda.is_available(), reason="no affinity, or a GPU")
def test_workers_by_default_are_as_many_as_cores_that_may_be_used(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert _default_workers() == 2
