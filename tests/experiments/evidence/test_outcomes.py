"""Other numbers than the final score: what they are, and when they are shown."""

import json
import math

import pytest

from conditioned_attention.cli import main
from conditioned_attention.experiments.evidence.comparison import Comparison
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.evidence.outcomes import final_number, mean_score
from conditioned_attention.experiments.evidence.statistics import paired_interval
from conditioned_attention.experiments.report.terminal import print_table
from conditioned_attention.experiments.report.write import read_report, write_report

ACCURACY = Metric("accuracy (%)")


def history(*scores, loss=None):
    rows = [{"epoch": i + 1, "step": 10 * (i + 1), "score": float(score)} for i, score in enumerate(scores)]
    return [{**row, "eval_loss": loss} for row in rows] if loss is not None else rows


def comparison(final=99.0, metric=ACCURACY, **more):
    """Both variants end alike; ``fast`` is there sooner, and has the lower loss."""
    runs = {
        "baseline": {s: history(50 + s, 60, final + s / 10, loss=0.3 + s / 100) for s in range(3)},
        "fast": {s: history(70 + s / 2, 80, final + (s == 1) / 10, loss=0.2) for s in range(3)},
    }
    return Comparison(runs, metric, environment={}, **more)


def test_the_mean_over_a_run():
    assert mean_score(history(10, 20, 60)) == 30
    assert math.isnan(mean_score(history(10))), "of one evaluation it is the final score"
    assert math.isnan(mean_score([{"score": 1.0}, {"score": None}]))


@pytest.mark.parametrize(
    ("last", "loss"),
    [
        ({"eval_loss": 3.0}, 3.0),
        ({"eval_loss": 3.0, "selected_step": 10}, 1.0),
        ({"eval_loss": 3.0, "selected_step": 10, "test_eval_loss": 7.0}, 7.0),
        ({"eval_loss": None}, math.nan),
        ({}, math.nan),
    ],
)
def test_the_loss_is_that_of_the_weights_that_are_compared(last, loss):
    rows = [{"step": 10, "score": 9.0, "eval_loss": 1.0}, {"step": 20, "score": 8.0, **last}]
    assert final_number("eval_loss")(rows) == pytest.approx(loss, nan_ok=True)


def test_rows_of_a_loop_that_counts_no_steps_end_with_the_last():
    assert final_number("eval_loss")([{"score": 9.0, "eval_loss": 1.0}, {"score": 8.0, "eval_loss": 3.0}]) == 3.0


def test_every_final_number_is_of_the_weights_that_are_compared():
    """As the score is: those that were selected, and on the test set."""
    first, last = {"step": 10, "score": 9.0, "mask_ap": 5.0}, {"step": 20, "score": 8.0, "mask_ap": 4.0}
    for more, number in (({}, 4.0), ({"selected_step": 10}, 5.0), ({"selected_step": 10, "test_mask_ap": 6.0}, 6.0)):
        found = Comparison({name: {0: [first, {**last, **more}]} for name in ("a", "b")}, ACCURACY, environment={})
        by_name = {other.metric.name: other.runs["a"][0] for other in found.outcomes()}
        assert by_name["mask AP (%)"] == [{"score": number}]


def test_differences_of_other_numbers_are_tested_as_those_of_scores_are():
    mean, loss = comparison().outcomes()
    assert (mean.metric, loss.metric) == (
        Metric("mean accuracy (%) over the run"),
        Metric("evaluation loss at the end", higher_is_better=False),
    )
    differences = [(20 - s / 2 + 20 + (s == 1) / 10 - s / 10) / 3 for s in range(3)]
    ours, by_hand = mean.summary()[1].difference, paired_interval(differences)
    assert (ours.mean, ours.low, ours.p_value) == pytest.approx((by_hand.mean, by_hand.low, by_hand.p_value))
    header, (_, fast) = comparison().outcome_table()
    assert header[1::2] == [mean.metric.name, loss.metric.name]
    assert fast[3:] == ["0.2000 ± 0.0000", "-0.1100 [-0.1348, -0.0852]"]
    sentences = comparison().outcome_sentences()
    assert sentences[0].startswith("Mean accuracy (%) over the run. fast: better than baseline by 13.")
    assert sentences[1].startswith(
        "Evaluation loss at the end. fast: better than baseline by 0.1100 in evaluation loss"
    )


def test_runs_without_them_have_none():
    runs = {name: {s: [{"score": float(s)}] for s in range(3)} for name in ("a", "b")}
    assert Comparison(runs, ACCURACY, environment={}).outcome_table() == (["variant"], [])
    (mean,) = Comparison({"a": {0: history(1, 3)}, "b": {0: history(2, 4)}}, ACCURACY, environment={}).outcomes()
    assert mean.runs == {"a": {0: [{"score": 2.0}]}, "b": {0: [{"score": 3.0}]}}
    alone = Comparison({"a": {0: history(1, 3)}}, ACCURACY, environment={})
    assert not alone.outcomes(), "nothing is compared"


@pytest.mark.parametrize(
    ("final", "metric", "shown"),
    [
        (99.0, ACCURACY, True),
        (90.0, ACCURACY, False),
        (2.0, Metric("error (%)", higher_is_better=False), True),
        (99.0, Metric("score"), False),
    ],
)
def test_they_are_shown_where_scores_are_close_to_their_limit(final, metric, shown, capsys):
    result = comparison(final, metric)
    assert result.saturated == shown
    assert ("over the run" in str(result)) == shown
    print_table(result)
    assert ("over the run" in capsys.readouterr().out) == shown
    print_table(result, outcomes=True)
    assert "over the run" in capsys.readouterr().out


@pytest.mark.slow
def test_results_and_page_always_have_them_and_the_terminal_on_request(tmp_path, capsys):
    write_report(comparison(90.0), tmp_path)
    data = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert [found["metric"]["name"] for found in data["outcomes"]] == [
        "mean accuracy (%) over the run",
        "evaluation loss at the end",
    ]
    assert data["outcomes"][1]["table"][1]["final"] == "0.2000 ± 0.0000"
    assert data["outcomes"][1]["tests"][0]["p (paired t)"] == "0.0027"
    page = (tmp_path / "report.html").read_text()
    assert "<details><summary>By other numbers</summary>" in page
    assert '<th scope="col">evaluation loss at the end</th>' in page
    for arguments, shown in (([], False), (["--outcomes"], True)):
        with pytest.raises(SystemExit):
            main(["report", str(tmp_path), *arguments])
        assert ("over the run" in capsys.readouterr().out) == shown
    write_report(comparison(99.0), tmp_path)
    assert (
        "<details open><summary>By other numbers: final scores are close to" in (tmp_path / "report.html").read_text()
    )
    assert read_report(tmp_path).outcome_table() == comparison(99.0).outcome_table()
