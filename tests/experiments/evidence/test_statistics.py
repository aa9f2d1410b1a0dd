"""The numbers of a table, against scipy and by hand."""

import json
import math
import re
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.evidence.power import detectable, pairs_to_show
from conditioned_attention.experiments.evidence.statistics import (
    decimals,
    final_score,
    holm,
    many_compared,
    paired_interval,
    reached,
    summarise,
    verdict,
)
from conditioned_attention.experiments.report.write import read_report, to_json

UP, DOWN = Metric("accuracy (%)"), Metric("loss", higher_is_better=False)


def history(*scores, **last):
    rows = [{"epoch": i + 1, "score": score} for i, score in enumerate(scores)]
    rows[-1].update(last)
    return rows


def test_interval_is_that_of_a_paired_t_test():
    a, b = torch.randn(2, 7, generator=torch.Generator().manual_seed(0)).double().tolist()
    ours = paired_interval([x - y for x, y in zip(a, b)])
    test = stats.ttest_rel(a, b)
    theirs = test.confidence_interval(0.95)
    assert (ours.low, ours.high, ours.p_value) == pytest.approx((theirs.low, theirs.high, test.pvalue), rel=1e-12)
    half = stats.t.ppf(0.975, 6) * statistics.stdev(x - y for x, y in zip(a, b)) / math.sqrt(7)
    assert (ours.low, ours.high) == pytest.approx((ours.mean - half, ours.mean + half), abs=1e-12), "by its formula"
    assert ours.contains_zero == (theirs.low <= 0 <= theirs.high)
    alone = paired_interval([3.0])
    assert alone.mean == 3
    assert math.isnan(alone.low)
    assert alone.contains_zero
    # accuracies in single precision: three seeds with four of 360 samples less
    pairs = [(95.55555582046509, 96.66666388511658), (92.77777671813965, 93.88889074325562)]
    counted = paired_interval([x - y for x, y in [*pairs, (95.27778029441833, 96.38888835906982)]])
    assert (counted.low, counted.high) == (counted.mean, counted.mean)
    assert math.isnan(counted.p_value), "no spread, no test"


@pytest.mark.parametrize("n", [2, 5, 20])
def test_what_could_have_been_seen_is_seen_in_four_of_five_comparisons(n):
    """By simulation: pairs with a true difference of that size, in units of their true spread."""
    critical = stats.t.ppf(0.975, n - 1)
    size = detectable(critical / math.sqrt(n), critical, n - 1)
    pairs = np.random.default_rng(0).normal(size, 1, (20_000, n))
    seen = stats.ttest_1samp(pairs, 0, axis=1).pvalue < 0.05
    assert seen.mean() == pytest.approx(0.8, abs=0.01)
    ours = paired_interval(pairs[0].tolist())
    assert ours.detectable == pytest.approx(size * pairs[0].std(ddof=1))
    assert math.isnan(paired_interval([1.0]).detectable)
    assert math.isnan(paired_interval([1.0, 1.0]).detectable)


def test_as_many_pairs_are_asked_for_as_show_the_difference_measured():
    """So many could have seen it, one fewer could not."""
    found = paired_interval([1.0, 3.0, -2.0, 4.0, 2.5])
    sd = found.detectable / detectable(1.0, stats.t.ppf(0.975, 4), 4) / stats.t.ppf(0.975, 4) * math.sqrt(5)
    n = found.pairs_to_show

    def could_have_seen(pairs):
        critical = stats.t.ppf(0.975, pairs - 1)
        return detectable(critical * sd / math.sqrt(pairs), critical, pairs - 1)

    assert n == pairs_to_show(-found.mean, sd), "which way does not count"
    assert could_have_seen(n) <= found.mean < could_have_seen(n - 1)
    assert math.isnan(paired_interval([1.0]).pairs_to_show)
    assert math.isnan(paired_interval([1.0, 1.0]).pairs_to_show)


def test_epochs_to_reach_the_baseline():
    """By the mean over runs at the evaluations that all have: here 1, 3.5, 3, 5.5."""
    found = reached([history(1, 5, 3, 5), history(1, 2, 3, 6)], 5.0, UP)
    assert (found.epoch, found.n) == (4, 2)
    assert str(found) == "epoch 4"
    assert str(reached([history(1, 2), history(7)], 5.0, UP)) == "never", "at epoch 1 the mean is 4"
    assert str(reached([history(4, 2)], 3.0, DOWN)) == "epoch 2"
    assert str(reached([], 5.0, UP)) == "-"
    assert str(reached([[{"epoch": 1.1, "score": 9}], [{"epoch": 1.2, "score": 9}]], 5.0, UP)) == "-", "none is shared"
    assert reached([[{"score": 9.0}]], 5.0, UP).epoch == 1, "rows without an epoch are counted"
    assert reached([[{"epoch": 5, "score": None}]], 5.0, UP).epoch is None, "no number reaches nothing"


@pytest.mark.parametrize(
    ("last", "when"),
    [
        ({"epoch": 0.02, "step": 2500}, "step 2,500"),
        ({"step": 2500}, "step 2,500"),
        ({"epoch": 1, "step": 2500}, "epoch 1"),
        ({"epoch": 0.02}, "epoch 0.02"),
    ],
)
def test_runs_that_end_within_an_epoch_count_steps(last, when):
    """Also of a stream without a length, which has no epochs; not where no steps were counted."""
    early = {key: value / 2 for key, value in last.items()}
    runs = {"baseline": {0: [early | {"score": 1.0}, last | {"score": 2.0}]}}
    (row,) = summarise(runs, UP)
    assert str(row.reached) == when


def test_noise_alone_reaches_the_baseline_less_early_by_the_mean_curve():
    """A twin of the baseline that only scatters more: below the noise both get there at the end, epoch 40.

    By single runs the twin looks 16 epochs faster (median), by the mean of five 10.
    """
    noise = np.random.default_rng(0)
    truth = 90 - 40 * np.exp(-np.arange(1, 41) / 8)
    single, mean = [], []
    for _ in range(100):
        goals = truth[-1] + noise.normal(0, 0.2, 5)
        twin = [history(*(truth + noise.normal(0, 2, 40)).tolist()) for _ in range(5)]
        single += [reached([run], goal, UP).epoch or 41 for run, goal in zip(twin, goals)]
        mean.append(reached(twin, goals.mean(), UP).epoch or 41)
    early, less_early = 40 - np.median(single), 40 - np.median(mean)
    assert 14 <= early <= 18
    assert 0 < less_early < 0.75 * early


def test_summary():
    runs = {
        "baseline": {0: history(1, 4, 3, log10_kappa=2.0, floor_share=0.0), 1: history(1, 2, 5)},
        "other": {0: history(3, 6, 5, log10_kappa=None, floor_share=1.0), 1: history(2, 5, 6), 2: history(9)},
    }
    base, other = summarise(runs, UP)
    assert (base.final.mean, base.final.sd, base.final.n) == (4, pytest.approx(2**0.5), 2)
    assert base.best.mean == 4.5
    assert base.difference is None
    assert str(base.reached) == "epoch 3", "1, 3, 4 against 4"
    assert (base.log10_kappa, base.floor_share) == (2.0, 0.0)
    assert other.final.n == 3
    assert other.difference.mean == 1.5, "pairs only: seed 2 has no partner"
    assert other.difference.n == 2
    assert (other.log10_kappa, other.floor_share) == (math.inf, 1.0)
    assert (str(other.reached), other.reached.n) == ("epoch 2", 2)
    tested = history(1, 3, 3, test_score=9.0, selected_score=4.0)
    (alone,) = summarise({"baseline": {0: [{**row, "step": 100 * i} for i, row in enumerate(tested, 1)]}}, UP)
    assert (alone.final.mean, str(alone.reached), alone.reached.step) == (9, "epoch 2", 200), "dev against dev"
    (down,) = summarise({"baseline": runs["baseline"]}, DOWN)
    assert down.best.mean == 1


def test_numbers_keep_four_digits():
    assert [decimals(x) for x in (96.7, 2.1, 0.9, 0.012, 1234.0, 0.0)] == [2, 3, 4, 5, 2, 2]
    runs = {"base": {0: history(0.9001), 1: history(0.9003)}, "new": {0: history(0.9042), 1: history(0.9046)}}
    assert "by 0.0042 in" in verdict(summarise(runs, UP)[1], "base", UP)


@pytest.mark.parametrize(
    ("metric", "differences", "words"),
    [
        (
            UP,
            [1.0, -1.0, 0.5],
            "was seen; these 3 seeds could have seen a difference of 3.40 or more",
        ),
        (UP, [1.0, 1.1, 0.9], "better than base by 1.00 in accuracy (%) (95 % interval +0.75 to +1.25, 3 seeds)"),
        (UP, [-1.0, -1.1, -0.9], "worse than base by 1.00"),
        (DOWN, [-1.0, -1.1, -0.9], "better than base by 1.00"),
        (UP, [1.0], "no difference was shown"),
        (UP, [0.0, 0.0], "new: the same score as base on each of 2 seeds."),
        (UP, [0.1 + 0.2, 0.3], "no measurable spread, so no difference was shown"),
    ],
)
def test_the_sentence_says_what_the_interval_supports(metric, differences, words):
    runs = {
        "base": {seed: history(50.0) for seed in range(len(differences))},
        "new": {seed: history(50.0 + d) for seed, d in enumerate(differences)},
    }
    assert words in verdict(summarise(runs, metric)[1], "base", metric)


def test_conditioning_in_the_summary():
    last = {"log10_kappa": 2.0, "floor_share": 0.0, "log10_kappa_weights": 1.0}
    runs = {
        "baseline": {
            0: history(1, **last, largest_scale=3.0, value_growth=1.5),
            1: history(2, **last, largest_scale=9.0, value_growth=2.5),
        },
        "other": {0: history(1, floor_share=0.0, log10_kappa=1.0), 1: history(1)},
    }
    base, other = summarise(runs, UP)
    assert (base.largest_scale, base.log10_kappa_weights, base.value_growth) == (9.0, 1.0, 2.0)
    assert math.isnan(other.value_growth)
    assert other.measured
    assert not summarise({"baseline": {0: history(1)}}, UP)[0].measured


def test_many_comparisons_are_corrected_for():
    """p-values against scipy; Holm's by its definition, and one difference that does not survive him."""
    noise = torch.randn(20, 6, generator=torch.Generator().manual_seed(1)).double()
    noise[0] = torch.tensor([2.0, 2.1, 1.9, 2.0, 2.2, 1.8])
    runs = {"base": {seed: history(0.0) for seed in range(6)}}
    runs |= {f"v{i}": {seed: history(noise[i, seed].item()) for seed in range(6)} for i in range(20)}
    rows = summarise(runs, UP)
    p_values = {row.variant: stats.ttest_1samp(noise[i].tolist(), 0.0).pvalue for i, row in enumerate(rows[1:])}
    assert {row.variant: row.difference.p_value for row in rows[1:]} == pytest.approx(p_values)
    adjusted = holm(p_values)
    for name, p in p_values.items():
        smaller = sorted(other for other in p_values.values() if other <= p)
        assert adjusted[name] == pytest.approx(min(1.0, max((20 - i) * other for i, other in enumerate(smaller))))
    assert sum(p < 0.05 for p in p_values.values()) > sum(p < 0.05 for p in adjusted.values()) == 1
    said = many_compared(rows)
    assert said.startswith("20 variants were compared with base")
    assert f"these still differ significantly: v0 (p = {adjusted['v0']:.2g})." in said
    assert "none of them differs significantly" in many_compared([rows[0], *rows[2:]])
    assert many_compared(rows[:2]) == ""


def test_runs_are_compared_by_what_they_ended_with():
    """On the test set where there is one; else by the evaluation whose weights were selected; else by the last."""
    rows = [{"score": 1.0}, {"score": 5.0}, {"score": 2.0}]
    assert final_score(rows) == 2.0
    assert final_score([*rows[:2], {**rows[2], "selected_score": 5.0}]) == 5.0
    tested = [*rows[:2], {**rows[2], "selected_score": 5.0, "test_score": 4.0}]
    assert final_score(tested) == 4.0
    summary = summarise({"baseline": {0: rows}, "other": {0: tested}}, Metric("score"))[1]
    assert (summary.final.mean, summary.best.mean, summary.difference.mean) == (4.0, 5.0, 2.0)


@pytest.mark.parametrize("odd", [None, math.nan, math.inf, -math.inf])
def test_a_final_score_that_is_not_finite_is_said(odd):
    runs = {"baseline": {0: history(1.0), 1: history(2.0)}, "other": {0: history(3.0), 1: history(3.0, odd)}}
    row = summarise(runs, UP)[1]
    assert (row.final.n, row.best.n, row.difference.n) == (2, 2, 2)
    assert all(map(math.isnan, (row.final.sd, row.difference.mean, row.difference.low, row.difference.p_value)))
    assert "a final score of it or of baseline is not finite" in verdict(row, "baseline", UP)


def test_infinities_that_cancel_out_do_not_stop_the_mean():
    """Python's fmean raises for them."""
    runs = {"baseline": {0: history(math.inf, math.inf), 1: history(-math.inf, -math.inf)}}
    (row,) = summarise(runs, UP)
    assert math.isnan(row.final.mean)
    assert row.best.n == 0


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", ["digits_d_optimal", "fashion_variants", "next_byte_variants"])
def test_committed_numbers_come_out_again(name, tmp_path):
    """Intervals, p-values by Holm, medians and words, of results that were put together long ago.

    "reaches baseline" was a median over runs then, and is left out; sentences have come to say more, so their numbers
    count.
    """
    seen = re.compile(r" could have seen a difference of .*? \(with probability 80 %\)")

    def numbers(sentence):
        return sorted(re.findall(r"[+-]?\d[\d.e-]*", seen.sub("", sentence)))

    committed = Path(__file__).parents[3] / "results" / name / "results.json"
    before = json.loads(committed.read_text())
    shutil.copy(committed, tmp_path)
    now = json.loads(json.dumps(to_json(read_report(tmp_path))))
    for row in now["table"] + before["table"]:
        del row["reaches baseline"]
    said = len(before["verdicts"])  # since then sentences on the blocked test follow
    now["verdicts"], before["verdicts"] = ([numbers(s) for s in data["verdicts"][:said]] for data in (now, before))
    for part in ("table", "conditioning", "verdicts", "tuning"):
        assert now[part] == before[part], part
