"""Comparisons: paired, resumable, honest, whatever happens to their processes."""

import json
import re
import warnings

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from conditioned_attention.experiments import compare
from conditioned_attention.experiments.commands import compare_recipe
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.models.vision_transformer import VisionTransformer
from conditioned_attention.experiments.recipes.small_images import Digits
from conditioned_attention.experiments.report.write import read_report, write_report
from conditioned_attention.experiments.runs import compare as runs_compare
from conditioned_attention.experiments.runs import run
from conditioned_attention.experiments.runs.compare import run_missing
from conditioned_attention.experiments.runs.run import run_folder
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.variants.variant import Variant
from conditioned_attention.storage.files import write_json
from conditioned_attention.storage.ownership import claim
from tests.experiments.loops import fails_on_seed_1, scores
from tests.experiments.tiny import Tiny


def test_a_users_own_loop_without_a_folder():
    result = compare(scores, seeds=3, progress=False)
    assert result.runs["baseline"].keys() == {0, 1, 2}
    assert "better than baseline by 5.10 in score" in result.verdicts()[0]
    assert "preconditioned  3" in str(result)


def test_a_second_call_runs_only_what_is_missing(tmp_path):
    calls = []

    def train(variant, seed):
        calls.append((variant.name, seed))
        yield {"score": 1.0}

    compare(train, seeds=1, folder=tmp_path, progress=False)
    compare(train, ["baseline", "preconditioned", "head_rmsnorm"], seeds=2, folder=tmp_path, progress=True)
    assert len(calls) == len(set(calls)) == 6


def test_a_run_that_fails_does_not_take_the_others_down(tmp_path):
    with pytest.warns(UserWarning, match="preconditioned, seed 1 has no result: ArithmeticError: seed 1 went wrong"):
        result = compare(fails_on_seed_1, seeds=3, folder=tmp_path, progress=False)
    assert result.runs["preconditioned"].keys() == {0, 2}
    assert result.summary()[1].difference.n == 2
    assert "fails_on_seed_1" in (run_folder(tmp_path, "preconditioned", 1) / "error.txt").read_text()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not compare(scores, seeds=3, folder=tmp_path, progress=False).failures, "failed runs are tried again"


def test_a_run_that_another_process_is_at_is_left_to_it(tmp_path):
    """Of ``train --into``, in the folder of a comparison that is running."""
    claim(tmp_path)
    path = run_folder(tmp_path, "baseline", 1)
    claim(path)
    (path / "metrics.jsonl").write_text('{"score": 1.0}\n')
    warning = "baseline, seed 1 has no result: RuntimeError: another process is working in"
    with FileLock(path / ".lock"), pytest.warns(UserWarning, match=warning):
        result = compare(scores, seeds=2, folder=tmp_path, progress=False)
    assert result.runs["baseline"].keys() == {0}
    assert (path / "metrics.jsonl").read_text() == '{"score": 1.0}\n', "that process's own"
    assert not compare(scores, seeds=2, folder=tmp_path, progress=False).failures


def test_a_result_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    def full(path, data):
        if path.parent.parent.name == "preconditioned" and path.name == "result.json":
            raise OSError(28, "No space left on device")
        write_json(path, data)

    monkeypatch.setattr(run, "write_json", full)
    with pytest.warns(UserWarning, match="preconditioned, seed 0 has no result: OSError: .* No space left on device"):
        compare(scores, seeds=1, folder=tmp_path, progress=False)


def test_when_nothing_finishes_that_is_an_error(tmp_path):
    def train(variant, seed):
        raise KeyError("no data")
        yield

    with pytest.raises(RuntimeError, match="no run finished; the first that failed: baseline, seed 0: KeyError"):
        compare(train, folder=tmp_path, progress=False)
    with pytest.raises(RuntimeError, match="without 'score'"):
        compare(lambda variant, seed: [{"accuracy": 1}], progress=False)
    for score in (float("nan"), "high", None, True):
        with pytest.raises(RuntimeError, match="not a finite number"):
            compare(lambda variant, seed, score=score: [{"score": score}], progress=False)
    with pytest.raises(RuntimeError, match="yielded no row"):
        compare(lambda variant, seed: [], progress=False)


def test_a_score_may_be_missing_until_the_end(tmp_path):
    rows = {0: [None, 2.0], 1: [2.0, None]}
    with pytest.warns(UserWarning, match="seed 1 has no result: ValueError: train ended with a score that is not"):
        result = compare(lambda v, s: [{"score": score} for score in rows[s]], seeds=2, folder=tmp_path, progress=False)
    assert result.runs["baseline"] == {0: [{"score": None}, {"score": 2.0}]}
    assert [row.final.mean for row in result.summary()] == [2.0, 2.0]


def test_wrong_arguments(tmp_path):
    for kwargs, words in (
        ({"seeds": 0}, "seeds must be at least one"),
        ({"seeds": [1, 1]}, "all different"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"threads": -1}, "threads must be at least 1"),
        ({"variants": ["baseline", "baseline"]}, "all different"),
        ({"variants": []}, "variants must be at least one"),
    ):
        with pytest.raises(ValueError, match=words):
            compare(scores, progress=False, **kwargs)
    with FileLock(tmp_path / ".lock"), pytest.raises(RuntimeError, match="another process is working in"):
        compare(scores, folder=tmp_path, progress=False)


def test_numbers_of_numpy_and_torch_are_numbers():
    result = compare(
        lambda v, s: [{"score": np.float32(0.5), "loss": torch.ones(())}], seeds=[np.int64(3)], progress=False
    )
    assert result.runs["baseline"] == {3: [{"score": 0.5, "loss": 1.0}]}


def test_threads_depend_on_the_workers_and_not_on_what_is_missing(monkeypatch):
    """Rounding depends on them: a comparison that goes on has those that it began with."""
    given = []
    monkeypatch.setattr(runs_compare, "cores", lambda: 6)
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setattr(
        runs_compare, "run_in_workers", lambda train, jobs, workers, threads, shown: given.append(threads)
    )
    how = {"folder": None, "threads": None, "metric": None, "settings": None, "progress": False}
    run_missing(scores, [Variant("a")], [0, 1], workers=3, **how)
    run_missing(scores, [Variant("a")], [0], workers=3, **how)
    assert given == [2, 2, torch.get_num_threads()], "which a run in this process gives back"


def test_a_train_that_workers_cannot_have():
    with pytest.raises(TypeError, match="workers=2 needs a train that can be pickled"):
        compare(lambda v, s: [{"score": 1.0}], workers=2, progress=False)


@pytest.mark.parametrize("name", ["../evil", "[red]", "", ".hidden", "a/b"])
def test_names_of_variants_are_names_of_folders(name):
    with pytest.raises(ValueError, match="a variant's name is also a folder's"):
        Variant(name)


def test_an_attempt_that_came_to_nothing_does_not_claim_the_folder(tmp_path):
    def fail(variant, seed):
        raise ValueError("wrong heads")
        yield

    with pytest.raises(RuntimeError):
        compare(fail, folder=tmp_path, settings={"heads": 5}, progress=False)
    assert compare(scores, folder=tmp_path, settings={"heads": 4}, progress=False).runs


def test_a_folder_refuses_runs_of_other_settings(tmp_path):
    compare(scores, folder=tmp_path, settings={"lr": 1, "model": {"depth": 2}}, progress=False)
    with pytest.raises(ValueError, match=re.escape("model.depth: 2 there, 3 now")):
        compare(scores, folder=tmp_path, settings={"lr": 1, "model": {"depth": 3}}, progress=False)


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    recipe = Digits(VisionTransformer(layers=2, hidden_size=32, heads=4), Training(epochs=2, lr=3e-3))
    result = compare_recipe(recipe, ["baseline", "preconditioned"], 2, folder, progress=False)
    write_report(result, folder)
    return folder, result


@pytest.mark.slow
def test_report_of_a_recipe(reported):
    folder, result = reported
    data = json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail)
    assert data["metric"]["name"] == "accuracy (%)"
    assert [row["variant"] for row in data["table"]] == ["baseline", "preconditioned"]
    assert len(data["runs"]) == 4
    assert data["environment"]["torch"]
    assert data["settings"]["training"]["epochs"] == 2
    assert data["cost"]["variants"]["baseline"]["time_ratio"] == 1
    assert data["cost"]["variants"]["baseline"]["memory_ratio"] == 1
    assert 0.5 < data["cost"]["variants"]["preconditioned"]["time_ratio"] < 3
    assert 1 < data["cost"]["variants"]["preconditioned"]["memory_ratio"] < 1.5
    assert str(read_report(folder)) == str(result)


@pytest.mark.slow
def test_a_variant_that_cannot_be_built_costs_the_others_nothing(tmp_path):
    class Unbuildable(Variant):
        def apply(self, model, batch=None, **kwargs):
            raise RuntimeError("no attention that is known")

    recipe = Tiny(Training(epochs=1, batch_size=30, monitor_every=0))
    broken = Unbuildable("broken")
    with pytest.warns(UserWarning, match="broken, seed 0 has no result: RuntimeError: no attention"):
        result = compare_recipe(recipe, ["baseline", broken], 1, tmp_path / "one", progress=False)
    assert result.cost["variants"].keys() == {"baseline"}
    write_report(result, tmp_path / "one")
    with pytest.warns(UserWarning, match="broken, seed 0 has no result"):
        result = compare_recipe(recipe, [broken, "baseline"], 1, tmp_path / "two", progress=False)
    assert result.cost is None, "nothing to be relative to"
    write_report(result, tmp_path / "two")
    assert "broken    0      -" in str(result)


@pytest.mark.slow
def test_page_is_self_contained_and_says_what_the_table_says(reported):
    folder, result = reported
    page = (folder / "report.html").read_text()
    assert page.count('<figure class="cell chart"') >= 7
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert result.verdicts()[0].split(".")[0] in page
    assert "arXiv 2603.27153" in page


@pytest.mark.slow
@pytest.mark.parametrize("name", ["score.png", "kappa.png"])
def test_pictures_show_both_variants(reported, name):
    pixels = np.asarray(Image.open(reported[0] / name).convert("RGB")).reshape(-1, 3)
    blue = (abs(pixels.astype(int) - (0x00, 0x72, 0xB2)) < 12).all(1).sum()
    black = (pixels < 12).all(1).sum()
    assert blue > 100
    assert black > 100


def test_names_are_escaped(tmp_path):
    result = compare(scores, progress=False, metric=Metric("<b>score</b>"))
    write_report(result, tmp_path)
    assert "<b>score" not in (tmp_path / "report.html").read_text()


def test_a_folder_without_results(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no results\.json"):
        read_report(tmp_path)
    (tmp_path / "results.json").write_text('{"table": []}')
    with pytest.raises(ValueError, match=r"results\.json: cost is missing; valid is an object or null"):
        read_report(tmp_path)
