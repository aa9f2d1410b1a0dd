"""Learning rates: the same grid for all, chosen on validation data, and what follows from the choice."""

import dataclasses
import json
import pickle
import re
import shutil
from pathlib import Path

import pytest

from conditioned_attention.experiments import commands
from conditioned_attention.experiments.commands import RecipeTraining, compare_recipe, train_recipe
from conditioned_attention.experiments.evidence.comparison import Comparison
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.evidence.tuning import FIRST_SEED, Trial, Tuning, read_tuning
from conditioned_attention.experiments.report.charts import palette_of
from conditioned_attention.experiments.report.figures import charts_of
from conditioned_attention.experiments.report.subjects import Subject
from conditioned_attention.experiments.report.terminal import print_table
from conditioned_attention.experiments.report.write import read_report, to_json, write_report
from conditioned_attention.experiments.runs.gather import gather
from conditioned_attention.experiments.runs.tune import AtRates, set_aside, tune
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from conditioned_attention.storage.json_lines import JsonLines
from tests.experiments.loops import peaks_at_a_rate
from tests.experiments.tiny import Tiny

GRID = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
BOTH = ["baseline", "preconditioned"]


def test_each_variant_gets_its_own_best_rate_from_equal_budgets(tmp_path):
    tuning = tune(peaks_at_a_rate, BOTH, GRID, 2, folder=tmp_path, progress=False)
    assert tuning.rates() == {"baseline": 4e-3, "preconditioned": 1e-3}
    trial = tuning.trials["baseline"][2e-3]
    assert trial.scores == pytest.approx({FIRST_SEED: 80, FIRST_SEED + 1: 81}), "the last score, not the best"
    assert {len(t.scores) for by_rate in tuning.trials.values() for t in by_rate.values()} == {2}
    assert not tuning.warnings()
    assert Tuning.from_json(json.loads(json.dumps(tuning.to_json()))) == tuning == read_tuning(tmp_path)


def test_what_workers_are_sent_is_what_is_run():
    at = AtRates(RecipeTraining(Tiny(), Path("folder")), {"baseline": 1e-3})
    assert pickle.loads(pickle.dumps(at)) == at


def test_the_lowest_score_is_best_if_the_metric_says_so(tmp_path):
    tuning = tune(
        peaks_at_a_rate, ["baseline"], (1e-3, 4e-3), folder=tmp_path, metric=Metric("loss", False), progress=False
    )
    assert tuning.rates() == {"baseline": 1e-3}


def test_of_equal_rates_the_lower():
    tuning = Tuning({"baseline": {1e-3: Trial({0: 7.0}, {}), 2e-3: Trial({0: 7.0}, {})}}, Metric("score"))
    assert tuning.chosen("baseline") == 1e-3


@pytest.mark.parametrize(
    ("grid", "word"), [((4e-3, 8e-3), "lowest"), ((2e-3, 4e-3), "highest"), ((4e-3,), "lowest and highest")]
)
def test_a_best_rate_at_the_edge_of_the_grid_is_said(tmp_path, grid, word):
    tuning = tune(peaks_at_a_rate, ["baseline"], grid, folder=tmp_path, progress=False)
    assert tuning.warnings() == [
        f"baseline: the best learning rate, 0.004, is the {word} of the grid; widen it before trusting a difference: "
        "the same command with more rates tries only the new ones."
    ]


def test_a_baseline_at_the_edge_is_said_to_concern_every_difference(tmp_path):
    first, both = tune(peaks_at_a_rate, BOTH, GRID[:4], folder=tmp_path, progress=False).warnings()
    assert first.startswith("baseline: the best learning rate, 0.004, is the highest of the grid")
    assert both == "All are compared with baseline, whose best rate is at an edge: any difference may be due to tuning."
    (other,) = tune(peaks_at_a_rate, BOTH, GRID[1:], folder=tmp_path / "other", progress=False).warnings()
    assert other.startswith("preconditioned: the best learning rate, 0.001, is the lowest"), "the baseline's is inside"


def test_an_edge_is_said_before_the_comparison_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "compare", lambda *_, **__: pytest.fail("the comparison has started"))
    recipe = Tiny(dataclasses.replace(Tiny().training, epochs=1))
    words = "baseline: the best learning rate, 0.001, is the lowest and highest"
    with pytest.warns(UserWarning, match=words), pytest.raises(pytest.fail.Exception):
        compare_recipe(recipe, ["baseline"], 1, tmp_path, tune=[1e-3], progress=False, cost=False)


def test_the_page_draws_the_whole_curve_over_rates():
    """Of three tuning seeds mean and extremes; without a point where one of them failed."""
    trials = {
        1e-3: Trial({0: 60.0, 1: 70.0, 2: 80.0}, {}),
        2e-3: Trial({0: 80.0, 1: 90.0, 2: 82.0}, {}),
        4e-3: Trial({0: 99.0, 2: 99.0}, {1: "FloatingPointError: nan"}),
    }
    failed = dict.fromkeys(trials, Trial({}, {0: "FloatingPointError: nan"}))
    tuning = Tuning({"baseline": trials, "left out": failed}, Metric("accuracy (%)"))
    runs = {"baseline": {0: [{"epoch": 1, "score": 1.0}, {"epoch": 2, "score": 2.0}]}}
    subject = Subject("tuned", Comparison(runs, Metric("accuracy (%)"), environment={}, tuning=tuning))
    (chart,) = [c for c in charts_of(subject, {}, palette_of(subject.variants)) if c.key == "rates"]
    band, mean, *seeds = chart.views[0].traces
    assert chart.views[0].layout["xaxis"]["type"] == "log"
    assert (mean["x"], mean["y"]) == ([0.001, 0.002], [70, 84])
    assert (min(band["y"]), max(band["y"])) == (60, 90)
    assert [len(seed["x"]) for seed in seeds] == [3, 2, 3]


def test_a_rate_that_fails_loses_to_every_one_that_does_not(tmp_path):
    tuning = tune(peaks_at_a_rate, BOTH, (0.2, 1e-6), folder=tmp_path, progress=False)
    assert tuning.rates() == {"baseline": 1e-6, "preconditioned": 1e-6}
    assert "training loss is nan" in tuning.trials["baseline"][0.2].failures[FIRST_SEED]


def test_one_failed_seed_of_two_is_a_failed_rate():
    trials = {1e-3: Trial({0: 50.0}, {}), 2e-3: Trial({0: 99.0}, {1: "FloatingPointError: nan"})}
    assert Tuning({"baseline": trials}, Metric("score")).chosen("baseline") == 1e-3


def test_a_rate_that_was_lost_by_accident_is_named_and_may_be_tried_again(tmp_path):
    def train(variant, seed, lr):
        if lr == 4e-3 and not (tmp_path / "room").exists():
            raise OSError("No space left on device")
        yield from peaks_at_a_rate(variant, seed, lr)

    tuning = tune(train, ["baseline"], GRID, folder=tmp_path, progress=False)
    assert tuning.rates() == {"baseline": 2e-3}
    assert tuning.warnings() == [
        "baseline: the learning rate 0.004 was excluded because a run failed (OSError: No space left on device); if "
        "that was an accident, delete tuning.json and run the command again."
    ]
    (tmp_path / "room").touch()
    (tmp_path / "tuning.json").unlink()
    assert tune(train, ["baseline"], GRID, folder=tmp_path, progress=False).rates() == {"baseline": 4e-3}


def test_a_variant_that_no_rate_suits_has_no_rate_and_says_why(tmp_path):
    def train(variant, seed, lr):
        if variant.name.startswith("preconditioned"):
            raise FloatingPointError(f"nan at {lr}")
        yield {"score": lr}

    tuning = tune(train, BOTH, GRID, folder=tmp_path, progress=False)
    assert tuning.rates() == {"baseline": 8e-3}
    assert tuning.failures() == {
        "preconditioned": "every learning rate of the grid failed; the first, 0.0005 with seed 1000000: "
        "FloatingPointError: nan at 0.0005"
    }
    tune(train, ["baseline", "head_rmsnorm"], GRID, folder=tmp_path, progress=False)
    assert read_tuning(tmp_path).failures() == tuning.failures(), "nor is it forgotten when others come later"


def test_a_choice_stays_and_only_what_is_missing_is_tried(tmp_path):
    calls = []

    def train(variant, seed, lr):
        calls.append(variant.name)
        if lr == 8e-3:
            raise FloatingPointError("nan")
        yield {"score": lr + len(calls)}

    first = tune(train, ["baseline"], GRID, folder=tmp_path, progress=False)
    assert len(calls) == 5
    both = tune(train, BOTH, GRID, folder=tmp_path, progress=False)
    assert len(calls) == 10, "the failed run of a variant with a rate is not tried again"
    assert both.trials["baseline"] == first.trials["baseline"]
    with pytest.raises(ValueError, match=re.escape("grid.rates: [0.0005, 0.001, 0.002, 0.004, 0.008] there, [0.001]")):
        tune(train, BOTH, (1e-3,), folder=tmp_path, progress=False)


@pytest.mark.parametrize("rates", [(), (1e-3, 1e-3), (0.0,), (-1.0,), (float("inf"),), (float("nan"),)])
def test_grids_that_are_none(tmp_path, rates):
    with pytest.raises(ValueError, match="learning rates to try must be at least one, all different"):
        tune(peaks_at_a_rate, BOTH, rates, folder=tmp_path)
    with pytest.raises(ValueError, match="tune_seeds must be at least 1, got 0"):
        tune(peaks_at_a_rate, BOTH, GRID, 0, folder=tmp_path)


def rates_of(run):
    """The learning rates of a run's log."""
    return [row["lr"] for row in JsonLines(run / "train.jsonl").read()]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Real training: with a rate of 1e-6 nothing is learned, with 1e6 the loss is soon not finite."""
    folder = tmp_path_factory.mktemp("tuned")
    settings = {"epochs": 12, "evaluate_every": 12, "accumulation": 1, "clip": None, "schedule": "constant"}
    recipe = Tiny(dataclasses.replace(Tiny().training, **settings))
    return folder, recipe, compare_recipe(recipe, BOTH, 2, folder, tune=(1e-6, 3e-3, 1e6), cost=False, progress=False)


@pytest.mark.slow
def test_a_real_comparison_at_tuned_rates(tuned):
    folder, _, result = tuned
    assert result.tuning.rates() == {"baseline": 3e-3, "preconditioned": 3e-3}
    assert "loss is" in result.tuning.trials["baseline"][1e6].failures[FIRST_SEED]
    assert {lr for run in folder.glob("runs/*/*") for lr in rates_of(run)} == {3e-3}
    assert {lr for run in folder.glob("tuning/runs/*-lr-1e-06/*") for lr in rates_of(run)} == {1e-6}
    assert "Learning rates, tuned on validation data: 0.003 for baseline, 0.003" in str(result)
    for path in folder.glob("runs/*/*/result.json"):
        run = json.loads(path.read_text())
        assert run["variant_settings"] == {"lr": 3e-3}
        assert run["settings"]["training"]["lr"] == "tuned"
        assert run["environment"]["torch"]


@pytest.mark.slow
def test_reports_show_what_was_tried_and_chosen(tuned, capsys):
    folder, _, result = tuned
    write_report(result, folder)
    data = json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail)
    assert data["settings"]["tuning"] == {"rates": [1e-6, 3e-3, 1e6], "seeds": 1}
    assert data["tuning"]["chosen"] == {"baseline": 3e-3, "preconditioned": 3e-3}
    assert len(data["tuning"]["trials"]) == 6
    assert to_json(read_report(folder))["tuning"] == data["tuning"]
    print_table(result)
    printed, page = capsys.readouterr().out, (folder / "report.html").read_text()
    assert len(re.findall(r"0\.003 .*chosen", printed)) == 2
    assert page.count("<td>chosen</td>") == 2
    assert "1 failed: FloatingPointError" in page
    assert "1 failed: FloatingPointError" in printed


@pytest.mark.slow
def test_more_variants_may_come_later_but_no_fewer_rates(tuned):
    folder, recipe, before = tuned
    variants = [*BOTH, "head_rmsnorm"]
    with pytest.warns(UserWarning, match="head_rmsnorm: the best learning rate, 1e-06, is the lowest of the grid"):
        result = compare_recipe(recipe, variants, 1, folder, tune=(1e6, 3e-3, 1e-6), cost=False, progress=False)
    assert result.runs["head_rmsnorm"].keys() == {0}
    assert result.tuning.trials["baseline"] == before.tuning.trials["baseline"]
    with pytest.raises(ValueError, match=re.escape("tuning.rates: [1e-06, 0.003, 1000000.0] there, [0.003] now")):
        compare_recipe(recipe, BOTH, 1, folder, tune=[3e-3], progress=False)
    with pytest.raises(ValueError, match=r"training\.lr: tuned there, 0\.001 now"):
        compare_recipe(recipe, BOTH, 1, folder, progress=False)


def test_a_wider_grid_tries_the_new_rates_alone_and_makes_runs_at_a_new_best_again(tmp_path):
    recipe = Tiny(dataclasses.replace(Tiny().training, epochs=2, evaluate_every=2, schedule="constant"))
    how = {"folder": tmp_path, "cost": False, "progress": False}
    with pytest.warns(UserWarning, match="the same command with more rates tries only the new ones"):
        before = compare_recipe(recipe, ["baseline"], 1, tune=(1e-6, 1e-5), **how)
    old = before.tuning.chosen("baseline")
    tried = {path: path.stat().st_mtime_ns for path in tmp_path.glob("tuning/runs/*/*/result.json")}
    assert len(tried) == 2
    with pytest.warns(UserWarning, match=f"its runs at the learning rate {old:g}, which is no longer its best"):
        after = compare_recipe(recipe, ["baseline"], 1, tune=(3e-3, 1e-2, 1e-6, 1e-5), tune_seeds=2, **how)
    new = after.tuning.chosen("baseline")
    assert new in (3e-3, 1e-2)
    assert list(after.tuning.trials["baseline"]) == [1e-6, 1e-5, 3e-3, 1e-2]
    assert {len(trial.scores) for trial in after.tuning.trials["baseline"].values()} == {2}
    assert {path: path.stat().st_mtime_ns for path in tried} == tried, "none is tried twice"
    assert set(rates_of(tmp_path / "runs" / "baseline" / "seed-0")) == {new}
    assert gather(tmp_path).runs == after.runs != before.runs
    results = {path.parts[-5]: json.loads(path.read_text()) for path in tmp_path.glob("**/runs/*/*/result.json")}
    steps = {name: result["history"][-1]["step"] for name, result in results.items()}
    assert steps["tuning"] == 12, "2 epochs of 189 images, 30 a step: tuning sees no image of the evaluation set"
    assert steps[tmp_path.name] == 14, "2 epochs of 210 images"
    assert gather(tmp_path).settings["tuning"] == {"rates": [1e-6, 1e-5, 3e-3, 1e-2], "seeds": 2}
    with pytest.raises(ValueError, match=r"tuning\.seeds: 2 there, 1 now"):
        compare_recipe(recipe, ["baseline"], 1, tune=(3e-3, 1e-2, 1e-6, 1e-5), **how)
    failed = tmp_path / "runs" / "baseline" / "seed-0"
    assert set_aside(tmp_path, {"baseline": old}) == {"baseline": new}, "as if a yet wider grid had chosen it again"
    assert set(rates_of(tmp_path / "runs" / "baseline" / "seed-0")) == {old}
    assert set_aside(tmp_path, {"baseline": old}) == {}
    assert set_aside(tmp_path, {"baseline": 1.0}) == {"baseline": old}
    (failed / "error.txt").parent.mkdir()
    (failed / "error.txt").write_text("OSError: disk full")
    (failed / ".conditioned-attention").touch()
    assert set_aside(tmp_path, {"baseline": old}) == {}
    assert not (failed / "error.txt").exists()
    assert set(rates_of(failed)) == {old}
    with pytest.raises(ValueError, match=f"at the learning rate {old}, but .* has chosen {new}; continue the comp"):
        gather(tmp_path)


@pytest.mark.slow
def test_a_run_elsewhere_takes_the_rate_of_a_copied_tuning(tuned, tmp_path):
    """What another machine needs is small: no runs, and no settings.json but that of the tuning."""
    folder, recipe, _ = tuned
    (tmp_path / "tuning").mkdir()
    for name in ("tuning.json", "settings.json"):
        shutil.copy(folder / "tuning" / name, tmp_path / "tuning")
    other = Tiny(dataclasses.replace(recipe.training, batch_size=70))
    for use in (
        lambda: train_recipe(other, VARIANTS["baseline"], 7, into=tmp_path),
        lambda: tune(peaks_at_a_rate, BOTH, (1e-6, 3e-3, 1e6), folder=tmp_path / "tuning", progress=False),
    ):
        with pytest.raises(ValueError, match=r"tuning holds runs of other settings \(runs"):
            use()
    assert [path.name for path in tmp_path.iterdir()] == ["tuning"]
    path = train_recipe(recipe, VARIANTS["baseline"], 7, into=tmp_path)
    assert set(rates_of(path)) == {3e-3}
    assert gather(tmp_path).runs["baseline"].keys() == {7}


def test_seeds_of_tuning_are_refused_for_the_comparison(tmp_path):
    with pytest.raises(ValueError, match="seeds from 1,000,000 on are those of tuning"):
        compare_recipe(Tiny(), BOTH, [FIRST_SEED], tmp_path, tune=GRID)


def test_no_rate_for_the_baseline_is_an_error_that_names_it(tmp_path):
    recipe = Tiny(dataclasses.replace(Tiny().training, epochs=1, clip=None, schedule="constant"))
    with pytest.raises(RuntimeError, match=r"baseline: every learning rate of the grid failed; the first, 1e\+30"):
        compare_recipe(recipe, ["baseline"], 1, tmp_path, tune=[1e30], progress=False)


def test_a_rate_is_chosen_by_the_metric_that_it_was_tuned_for(tmp_path):
    how = {"folder": tmp_path, "progress": False}
    tune(peaks_at_a_rate, ["baseline"], (1e-3, 4e-3), metric=Metric("loss", False), **how)
    with pytest.raises(ValueError, match=r"tuned for loss \(lower is better\), not for loss \(higher is better\)"):
        tune(peaks_at_a_rate, ["baseline"], (1e-3, 4e-3), metric=Metric("loss"), **how)
