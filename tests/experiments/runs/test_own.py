"""A loop of one's own with a folder and a monitor from `compare`, and the page of a monitor's own log."""

import json
import re

import pytest
import torch

from conditioned_attention import ConditionMonitor
from conditioned_attention.experiments import compare
from conditioned_attention.experiments.report.write import write_report
from conditioned_attention.experiments.runs.own import Run
from conditioned_attention.measure import read_records
from tests.test_cli import call


def encoder():
    return torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1)


def watched(variant, seed, run):
    """Measures twice, and yields three rows."""
    torch.manual_seed(seed)
    model = encoder()
    variant.apply(model)
    monitor = run.monitor(model, torch.randn(2, 5, 16), every=2)
    (run.folder / "mine.txt").write_text("kept")
    for step in range(3):
        with torch.no_grad():
            model.layers[0].self_attn.in_proj_weight.mul_(1.1)
        monitor.step(step)
        yield {"score": 1.0 + seed + step}


def test_the_comparison_of_a_watched_loop_has_kappa(tmp_path):
    result = compare(watched, seeds=2, folder=tmp_path, progress=False)
    for variant in ("baseline", "preconditioned"):
        for seed in (0, 1):
            first, between, last = result.runs[variant][seed]
            assert first["log10_kappa"] != last["log10_kappa"]
            assert "log10_kappa" not in between, "nothing was measured for it"
            folder = tmp_path / "runs" / variant / f"seed-{seed}"
            assert [record.step for record in read_records(folder / "conditions.jsonl")] == [0, 0, 2, 2]
            assert (folder / "mine.txt").read_text() == "kept"
    assert "log10 κ(heads)" in str(result)
    write_report(result, tmp_path)
    assert "Condition numbers of the heads" in (tmp_path / "report.html").read_text()


def test_a_second_monitor_is_refused_and_the_first_ones_records_stay(tmp_path):
    run, probe = Run(tmp_path), torch.randn(2, 5, 16)
    run.monitor(encoder(), probe).measure(0)
    with pytest.raises(ValueError, match=r"run\.monitor was called before: .* path=run\.folder / …"):
        run.monitor(encoder(), probe)
    assert read_records(tmp_path / "conditions.jsonl")


def test_a_loop_that_asks_for_no_run_gets_none():
    def train(variant, seed):
        yield {"score": 1.0}

    assert compare(train, seeds=1, progress=False).runs["baseline"] == {0: [{"score": 1.0}]}


def test_the_page_of_a_log(tmp_path, capsys):
    torch.manual_seed(0)
    model, logs = encoder(), [tmp_path / "conditions.jsonl", tmp_path / "heads.parquet"]
    for log in logs:
        monitor = ConditionMonitor(model, torch.randn(2, 5, 16), path=log)
        monitor.measure(0), monitor.measure(10)
    assert call("report", str(logs[0])) == 0
    kappa = r"Median κ of the heads: [\d.,]+ at step 0, [\d.,]+ at step 10; then 0% of the heads were at the"
    assert re.match(f"conditions: {kappa} numerical floor", " ".join(capsys.readouterr().out.split()))
    page = (tmp_path / "conditions.html").read_text()
    assert re.search(kappa, page)
    assert "Every head: log10 κ by layer and head" in page
    assert "<h2>Scores" not in page
    assert call("report", *map(str, logs), "--output", str(tmp_path / "both.html")) == 0
    assert "heads: Median κ" in capsys.readouterr().out


def test_what_is_no_log_is_refused_and_somebody_elses_page_stays(tmp_path, capsys):
    log = tmp_path / "train.jsonl"
    log.write_text("")
    assert call("report", str(log)) == 2
    assert "holds no record of a ConditionMonitor" in capsys.readouterr().err
    log.write_text(json.dumps({"loss": 1.0}) + "\n")
    assert call("report", str(log)) == 2
    (tmp_path / "train.html").write_text("mine")
    assert call("report", str(log)) == 2
    assert (tmp_path / "train.html").read_text() == "mine"
