"""Runs of several machines, copied into one folder: one comparison, or a refusal that says what differs."""

import json
import re
import shutil

import pytest

from conditioned_attention.cli import main
from conditioned_attention.experiments import compare
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.report.terminal import print_table
from conditioned_attention.experiments.report.write import write_report
from conditioned_attention.experiments.runs.gather import gather
from conditioned_attention.experiments.runs.run import run_folder
from conditioned_attention.experiments.runs.tune import AtRates, tune
from tests.experiments.loops import peaks_at_a_rate, scores

BOTH = ["baseline", "preconditioned"]


def run(folder, seeds, train=scores, variants=BOTH, **kwargs):
    kwargs = {"settings": {"lr": 1, "model": {"depth": 2}}, "metric": Metric("points"), **kwargs}
    return compare(train, variants, seeds, folder=folder, progress=False, **kwargs)


def copy_runs(to, *folders):
    for folder in folders:
        shutil.copytree(folder / "runs", to / "runs", dirs_exist_ok=True)


def change(file, **entries):
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


@pytest.fixture
def merged(tmp_path):
    """Seeds 0 and 1 of one machine, 2 and 3 of another."""
    run(tmp_path / "one", (0, 1))
    run(tmp_path / "two", (2, 3))
    for file in (tmp_path / "two").glob("runs/*/*/result.json"):
        environment = {**json.loads(file.read_text())["environment"], "machine": "Abacus", "torch": "9.9"}
        change(file, environment=environment)
    copy_runs(tmp_path / "all", tmp_path / "one", tmp_path / "two")
    return tmp_path / "all"


def test_runs_of_two_machines_are_the_comparison_of_one(merged, tmp_path, capsys):
    whole = run(tmp_path / "whole", 4)
    found = gather(merged)
    assert found.runs == whole.runs
    assert list(found.runs) == BOTH
    assert list(found.runs["baseline"]) == [0, 1, 2, 3]
    assert str(found) == str(whole)
    assert found.verdicts() == whole.verdicts()
    assert found.metric == Metric("points")
    assert found.settings == {"lr": 1, "model": {"depth": 2}}
    assert [machine["runs"] for machine in found.machines] == [4, 4]
    write_report(found, merged)
    print_table(found)
    sentence = "4 on Abacus, torch 9.9, conditioned-attention"
    assert sentence in " ".join(capsys.readouterr().out.split())
    assert sentence in (merged / "report.html").read_text()
    assert len(json.loads((merged / "results.json").read_text())["machines"]) == 2


def test_only_what_is_missing_is_run_afterwards(merged):
    calls = []

    def train(variant, seed):
        calls.append((variant.name, seed))
        yield from scores(variant, seed)

    result = run(merged, 5, train)
    assert calls == [("baseline", 4), ("preconditioned", 4)]
    assert result.runs["baseline"].keys() == set(range(5))
    assert sorted(machine["runs"] for machine in result.machines) == [4, 6]


def test_the_report_of_a_folder_by_the_command_line(merged, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["report", str(merged)])
    assert ended.value.code == 0
    assert "better than baseline by" in " ".join(capsys.readouterr().out.split())
    assert (merged / "report.html").exists()


@pytest.mark.parametrize("claimed", [False, True])
def test_runs_of_other_settings_are_refused_by_name(merged, tmp_path, claimed):
    run(tmp_path / "three", [7], settings={"lr": 1, "model": {"depth": 3}})
    copy_runs(merged, tmp_path / "three")
    if claimed:
        shutil.copy(tmp_path / "one" / "settings.json", merged)
    stranger = re.escape(str(run_folder(merged, "baseline", 7)))
    with pytest.raises(ValueError, match=rf"{stranger}.* is a run of other settings \(model\.depth: 3 there, 2 in "):
        gather(merged)
    with pytest.raises(ValueError, match=rf"{stranger} holds a run of other settings \(model\.depth: 3 there, 2 now\)"):
        run(merged, 8)
    assert claimed or not (merged / "settings.json").exists(), "what was refused has claimed the folder"


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(merged):
    path = run_folder(merged, "baseline", 5)
    (path / "checkpoint-00000001").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"begun\.json does not say with which settings"):
        run(merged, 6)
    shutil.copy(run_folder(merged, "baseline", 0) / "begun.json", path)
    change(path / "begun.json", seed=5, settings={"lr": 2, "model": {"depth": 2}})
    with pytest.raises(ValueError, match=r"seed-5 holds a run of other settings \(lr: 2 there, 1 now\)"):
        run(merged, 6)
    change(path / "begun.json", settings={"lr": 1, "model": {"depth": 2}})
    assert 5 in run(merged, 6).runs["baseline"]


def test_runs_in_the_wrong_place(merged):
    shutil.move(run_folder(merged, "baseline", 3), run_folder(merged, "baseline", 4))
    with pytest.raises(ValueError, match=r"is baseline with seed 3, which belongs in .*seed-3"):
        gather(merged)


def test_a_result_without_settings(merged):
    file = run_folder(merged, "baseline", 3) / "result.json"
    file.write_text(json.dumps({"variant": "baseline", "seed": 3, "history": [{"score": 1}]}))
    for use in (gather, lambda folder: run(folder, 4)):
        with pytest.raises(ValueError, match=r"seed-3/result\.json does not say with which settings"):
            use(merged)


def test_what_has_no_result_is_named(merged):
    for seed, error in ((8, None), (9, "ArithmeticError: odd\n\nTraceback")):
        path = run_folder(merged, "baseline", seed)
        path.mkdir()
        shutil.copy(run_folder(merged, "baseline", 0) / "begun.json", path)
        change(path / "begun.json", seed=seed)
        if error:
            (path / "error.txt").write_text(error)
    assert gather(merged).failures == {"baseline, seed 8": "not finished", "baseline, seed 9": "ArithmeticError: odd"}


def test_the_baseline_of_an_earlier_report_stays_and_so_does_its_cost(merged):
    cost = {"variants": {}, "threads": 1, "rounds": 1}
    change_order = {"table": [{"variant": "preconditioned"}], "cost": cost, "settings": gather(merged).settings}
    (merged / "results.json").write_text(json.dumps(change_order))
    found = gather(merged)
    assert list(found.runs) == ["preconditioned", "baseline"]
    assert found.cost == cost
    change(merged / "results.json", settings={"lr": 9})
    assert gather(merged).cost is None, "measured with other settings"


def test_nothing_to_gather(tmp_path, capsys):
    assert gather(tmp_path) is None
    run_folder(tmp_path, "baseline", 0).mkdir(parents=True)
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path)])
    assert "holds no results.json; none of its runs has finished" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["runs/baseline/seed-1/result.json", "settings.json", "results.json"])
def test_a_damaged_file_is_named(merged, name):
    (merged / name).write_text('{"settings": {')
    with pytest.raises(ValueError, match=rf"{re.escape(name)} is damaged: it holds no JSON \(Expecting"):
        gather(merged)


def test_tuned_runs_need_the_tuning_that_explains_them(tmp_path):
    grid = {"rates": [1e-3, 4e-3], "seeds": 1}
    tuning = tune(peaks_at_a_rate, BOTH, grid["rates"], folder=tmp_path / "one" / "tuning", progress=False)
    changes = {name: {"lr": lr} for name, lr in tuning.rates().items()}
    for name, seeds in (("one", (0, 1)), ("two", (2,))):
        train = AtRates(peaks_at_a_rate, tuning.rates())
        run(tmp_path / name, seeds, train, settings={"tuning": grid}, variant_settings=changes)
    merged = tmp_path / "all"
    copy_runs(merged, tmp_path / "one", tmp_path / "two")
    with pytest.raises(FileNotFoundError, match=r"tuning\.json is missing, and the runs are at tuned learning rates"):
        gather(merged)
    shutil.copytree(tmp_path / "one" / "tuning", merged / "tuning")
    found = gather(merged)
    assert found.tuning == tuning
    assert found.runs["baseline"].keys() == {0, 1, 2}
    stranger = run_folder(merged, "baseline", 2) / "result.json"
    change(stranger, variant_settings={"lr": 1e-3})
    with pytest.raises(ValueError, match=re.escape("variant_settings.lr: 0.001 there, 0.004 in ")):
        gather(merged)
    for file in merged.glob("runs/baseline/*/result.json"):
        change(file, variant_settings={"lr": 1e-3})
    with pytest.raises(ValueError, match=r"was made at the learning rate 0\.001, but .* has chosen 0\.004"):
        gather(merged)


@pytest.mark.parametrize("other", [Metric("points", higher_is_better=False), Metric("marks")])
def test_a_folder_has_one_metric(merged, tmp_path, other):
    """Better and worse are the same words for `compare` and for `report`, or neither says any."""
    for call in (
        lambda: run(merged, 4, metric=other),  # nothing is missing
        lambda: run(merged, [9], variants=["head_rmsnorm"], metric=other),  # beside runs that it does not ask for
    ):
        with pytest.raises(ValueError, match=r"seed-\d holds a run of .*metric.* there, .* now\)"):
            call()
    assert not run_folder(merged, "head_rmsnorm", 9).exists(), "refused before it is trained"
    run(tmp_path / "other", [7], metric=other)
    copy_runs(merged, tmp_path / "other")
    with pytest.raises(ValueError, match=r"seed-7.*other settings \(metric\.\w+: \w+ there, \w+ in .*seed-0"):
        gather(merged)


def test_the_direction_of_the_metric_is_that_of_the_report(tmp_path):
    result = run(tmp_path, 3, metric=Metric("loss", higher_is_better=False))
    assert "worse than baseline" in result.verdicts()[0]
    assert gather(tmp_path).verdicts() == result.verdicts()


def test_the_metric_of_a_checkpoint_is_the_one_that_it_goes_on_with(merged):
    path = run_folder(merged, "baseline", 5)
    (path / "checkpoint-00000001").mkdir(parents=True)
    shutil.copy(run_folder(merged, "baseline", 0) / "begun.json", path)
    change(path / "begun.json", seed=5, metric={"name": "points", "higher_is_better": False})
    with pytest.raises(ValueError, match=r"seed-5 holds a run of .*higher_is_better: False there, True now"):
        run(merged, 6)
