"""The blocked test: against Dunnett's table, scipy's tests and by simulation; and what is said of it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from conditioned_attention.experiments.evidence.blocks import blocked_test, critical_value
from conditioned_attention.experiments.evidence.comparison import Comparison
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.evidence.power import detectable
from conditioned_attention.experiments.evidence.statistics import holm, paired_interval
from conditioned_attention.experiments.evidence.tables import difference_table
from conditioned_attention.experiments.report.write import read_report, to_json

RESULTS = Path(__file__).parents[3] / "results"
UP = Metric("accuracy (%)")

# Two-sided, 5 %: C. W. Dunnett, New tables for multiple comparisons with a control, Biometrics 20 (1964), for 1, 2, … 9
# treatments beside the control.
TABLE = {
    5: (2.57, 3.03, 3.29, 3.48, 3.62, 3.73, 3.82, 3.90, 3.97),
    10: (2.23, 2.57, 2.76, 2.89, 2.99, 3.07, 3.14, 3.19, 3.24),
    20: (2.09, 2.38, 2.54, 2.65, 2.73, 2.80, 2.86, 2.90, 2.95),
}


def named(y):
    """Rows are seeds, columns variants."""
    return {f"v{i}": dict(enumerate(column.tolist())) for i, column in enumerate(y.T)}


def draw(rng, seeds, variants, gains=0.0):
    """Scores of equal spread 1, with seeds that are easier and harder for all."""
    return rng.normal(size=(seeds, variants)) + 3 * rng.normal(size=(seeds, 1)) + gains


@pytest.mark.parametrize("df", TABLE)
def test_critical_values_are_those_of_dunnetts_table(df):
    ours = [critical_value(variants, df) for variants in range(1, 10)]
    assert ours == pytest.approx(TABLE[df], abs=0.006)


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "variants"), [(5, 4), (3, 9)])
def test_p_values_are_those_of_the_multivariate_t(seeds, variants):
    """And the spread is that of the linear model, solved by least squares."""
    y = draw(np.random.default_rng(1), seeds, variants, np.linspace(0, 2, variants))
    found = blocked_test(named(y))
    design = np.hstack([np.kron(np.eye(seeds), np.ones((variants, 1))), np.tile(np.eye(variants), (seeds, 1))])
    residual = y.ravel() - design @ np.linalg.lstsq(design, y.ravel(), rcond=None)[0]
    assert found.df == seeds * variants - np.linalg.matrix_rank(design) == (seeds - 1) * (variants - 1)
    error = math.sqrt(2 / seeds * (residual**2).sum() / found.df)
    assert found.half_width == pytest.approx(found.critical * error)
    shape = np.full((variants - 1, variants - 1), 0.5) + 0.5 * np.eye(variants - 1)
    for name, difference in found.differences.items():
        assert difference == pytest.approx((y[:, int(name[1:])] - y[:, 0]).mean())
        ends = np.full(variants - 1, abs(difference) / error)
        within = stats.multivariate_t.cdf(
            ends, shape=shape, df=found.df, lower_limit=-ends, maxpts=50_000, random_state=0
        )
        assert found.p_values[name] == pytest.approx(1 - within, abs=2e-3)


def test_of_two_it_is_the_paired_t_test():
    y = draw(np.random.default_rng(2), 6, 2, [0, 1])
    found, paired = blocked_test(named(y)), paired_interval((y[:, 1] - y[:, 0]).tolist())
    assert found.p_values["v1"] == pytest.approx(paired.p_value)
    assert found.half_width == pytest.approx((paired.high - paired.low) / 2)
    assert found.detectable == pytest.approx(paired.detectable)


@pytest.mark.parametrize("df", [1, 2, 5, 50])
def test_critical_values_for_one_variant_are_those_of_t(df):
    assert critical_value(1, df) == pytest.approx(stats.t.ppf(0.975, df), rel=1e-6)


@pytest.mark.slow
def test_family_wise_error_and_power_by_simulation():
    """Nine variants, five seeds, those that Bartlett's check thins out included.

    Without a difference one is found in 5 % of comparisons; one that "could have been seen" in four of five, by Holm's
    correction of paired t tests in less than a half of that.
    """
    rng, n = np.random.default_rng(3), 300
    critical, df = critical_value(8, 32), 32
    gain = detectable(critical * math.sqrt(2 / 5), critical, df)
    false = found = by_holm = took_part = 0
    for _ in range(n):
        y = draw(rng, 5, 9)
        test = blocked_test(named(y))
        false += test.trusted and min(test.p_values.values()) < 0.05
        y[:, 1] += gain
        test = blocked_test(named(y))
        if test.trusted and "v1" in test.p_values:
            took_part += 1
            found += test.p_values["v1"] < 0.05
        paired = stats.ttest_1samp(y[:, 1:] - y[:, :1], 0).pvalue
        by_holm += holm(dict(enumerate(paired)))[0] < 0.05
    assert 0.03 <= false / n <= 0.07
    assert took_part / n > 0.95
    assert found / took_part == pytest.approx(0.8, abs=0.03)
    assert by_holm / n < 0.4


def test_one_that_scatters_unlike_the_others_is_left_out_and_named():
    y = draw(np.random.default_rng(4), 5, 8, [0, 0, 0, 0, 0, 5, 0, 0])
    y[:, 3] += np.array([-30, 10, 40, -10, -50])
    test = blocked_test(named(y))
    assert test.left_out == {"v3": "scatters unlike the others"}
    assert list(test.differences) == ["v1", "v2", "v4", "v5", "v6", "v7"]
    without = blocked_test({name: of for name, of in named(y).items() if name != "v3"})
    assert (without.p_values, without.left_out) == (test.p_values, {})
    sentences = test.sentences(UP, 2)
    assert "1 of 6 variants differ significantly from v0; better: v5 (" in sentences[0]
    assert f"could have seen a difference of {test.detectable:.2f} or more (with probability 80 %)" in sentences[0]
    assert sentences[1].endswith("their paired t tests stand alone: v3 scatters unlike the others.")
    worse = test.sentences(Metric("loss", higher_is_better=False), 2)
    assert "worse: v5" in worse[0]


def test_where_the_baseline_is_the_odd_one_the_paired_tests_stand():
    y = draw(np.random.default_rng(5), 5, 5)
    y[:, 0] += np.array([-30, 10, 40, -10, -50])
    test = blocked_test(named(y))
    assert not test.trusted
    (sentence,) = test.sentences(UP, 2)
    assert sentence.startswith("The scores of the variants do not scatter alike (Bartlett's check on 5 seeds, p = ")
    assert sentence.endswith("so a common spread cannot be assumed and only the paired t tests apply.")
    runs = {name: {s: [{"score": v}] for s, v in of.items()} for name, of in named(y).items()}
    result = Comparison(runs, UP, environment={})
    assert sentence in result.verdicts()
    header, rows = difference_table(result.summary(), result.blocked())
    assert header[3::2] == ["p (blocked)", "could have seen (blocked)"]
    assert {(row[3], row[5]) for row in rows} == {("-", "-")}


def test_what_has_no_part_in_it():
    """One that lacks a seed, one with a score that is not finite; a seed of which the baseline has none is no block."""
    scores = named(draw(np.random.default_rng(6), 4, 6))
    del scores["v1"][2]
    scores["v2"][0] = math.nan
    scores["v0"][3] = math.nan
    test = blocked_test(scores)
    assert test.seeds == 3
    assert test.left_out == dict.fromkeys(["v1", "v2"], "lacks a seed or a finite score")
    assert list(test.p_values) == ["v3", "v4", "v5"]


def test_where_there_is_nothing_to_test():
    one = {"a": {0: 1.0}, "b": {0: 2.0}, "c": {0: 3.0}}
    assert blocked_test(one) is None, "one seed"
    assert blocked_test({"a": {0: 1.0, 1: 2.0}}) is None, "one variant"
    assert blocked_test({"a": {0: 0.1, 1: 0.2}, "b": {0: 0.3, 1: 0.4}, "c": {0: 0.1 + 0.2, 1: 0.4}}) is None, "rounding"
    assert blocked_test({"a": {}, "b": {0: 1.0}}) is None, "no baseline"
    runs = {name: {s: [{"score": float(s)}] for s in range(3)} for name in ("a", "b")}
    assert Comparison(runs, UP, environment={}).blocked() is None, "of two it is the paired t test"


@pytest.mark.slow
def test_the_published_table_on_fashion_mnist():
    """Nine variants differ where Holm's correction of five pairs tells two; λ = 10 would have blurred them all."""
    result = read_report(RESULTS / "fashion_variants")
    test = result.blocked()
    assert list(test.left_out) == ["spectral_published"]
    assert sum(p < 0.05 for p in test.p_values.values()) == 9
    data = json.loads(json.dumps(to_json(result), allow_nan=False))
    assert data["blocked"]["trusted"]
    assert data["blocked"]["p_values"] == test.p_values
    assert [row["p (blocked)"] for row in data["tests"] if row["variant"] == "spectral_published"] == ["-"]
    assert "9 of 15 variants differ significantly from baseline; better: spectral (+0.86, p = 0.014)" in str(result)
    assert "p (blocked)" in str(result)
