"""What a report says and draws, by what makes it: no browser, nothing trained."""

import json
import re

import numpy as np
import pytest

from conditioned_attention.cli import main
from conditioned_attention.experiments.evidence.comparison import Comparison
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.report.charts import palette_of
from conditioned_attention.experiments.report.columns import Heads, average_kappa, read_heads
from conditioned_attention.experiments.report.curves import POINTS, Band, thin, thin_band
from conditioned_attention.experiments.report.figures import charts_of
from conditioned_attention.experiments.report.page import Section, page
from conditioned_attention.experiments.report.pictures import picture, plot_kappa
from conditioned_attention.experiments.report.subjects import Subject, comparison_subject, how_far
from conditioned_attention.experiments.report.words import alarms, description, seeds_to_show, short_answer
from conditioned_attention.experiments.report.write import read_subjects, write_reports
from conditioned_attention.measure.monitoring.records import HeadRecord

BOTH = ["baseline", "preconditioned"]


def test_no_word_on_what_was_not_measured(tmp_path):
    rows = [{"epoch": 1, "score": 50.0}, {"epoch": 2, "score": 60.0}]
    runs = {name: dict.fromkeys((0, 1), rows) for name in ("baseline", "other")}
    subject = comparison_subject(Comparison(runs, Metric("points")), tmp_path)
    text = page([Section(subject, [])])
    assert "reaches baseline" in text
    for word in ("time ×", "memory ×", "blocked", "average precision", "Conditioning", "Pictures", "papers", "recipe"):
        assert word not in text, word


def test_the_last_third_of_a_curve_that_has_settled_is_a_view_of_its_own():
    def views(scores):
        history = [{"epoch": i + 1, "score": score} for i, score in enumerate(scores)]
        subject = Subject("one", Comparison({"baseline": {0: history}}, Metric("points")))
        (chart,) = charts_of(subject, {}, palette_of(["baseline"]))
        return {view.name: [trace["x"] for trace in view.traces] for view in chart.views}

    assert views(range(9)) == {"": [[1, 2, 3, 4, 5, 6, 7, 8, 9]]}
    settled = views([0, 50, 80, 90, 95, 96, 97, 98, 98])
    assert settled == {"all epochs": [[1, 2, 3, 4, 5, 6, 7, 8, 9]], "last third": [[7, 8, 9]]}


def test_the_papers_numbers_stand_on_the_page_of_a_recipe_in_a_table(tmp_path):
    runs = {name: {0: [{"score": 70.0 + i}], 1: [{"score": 72.0 + i}]} for i, name in enumerate(BOTH)}
    settings = {"recipe": "swin_b", "timm_model": "swin_base_patch4_window7_224"}
    comparison = Comparison(runs, Metric("accuracy (%)"), settings=settings)
    text = page([Section(comparison_subject(comparison, tmp_path), [])])
    assert "Table 1 of arXiv 2603.27153" in text
    cells = ("83.4", "84.5", "+1.1", "71.00 ± 1.41", "72.00 ± 1.41")
    assert f'<th scope="row">Swin-base</th>{"".join(f"<td>{cell}</td>" for cell in cells)}' in text
    assert "Table 2" not in text, "nothing was measured of it"
    assert "2603.07162" not in text, "its variant was not trained"


@pytest.mark.parametrize(
    ("rows", "training", "words"),
    [
        ([{"epoch": 1.5, "step": 9, "score": 1.0}], {"epochs": 3}, "evaluated 1 time, last at epoch 1.5 of 3"),
        (
            [{"epoch": 1, "step": 9, "score": 1.0}] * 2,
            {"epochs": 3, "max_steps": 50},
            "evaluated 2 times, last at epoch 1",
        ),
        ([{"epoch": 1, "step": 9, "score": 1.0}], {"epochs": 3, "tokens": 50}, "evaluated 1 time, last at epoch 1"),
        ([{"step": 9, "score": None}], {"epochs": 3, "max_steps": 50}, "evaluated 1 time"),  # a stream has no epochs
        ([], {"epochs": 3}, ""),
    ],
)
def test_how_far_a_run_is(tmp_path, rows, training, words):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = how_far(tmp_path, {"settings": {"training": training}})
    assert re.fullmatch(rf"not finished: ({re.escape(words)}; )?last written .* UTC", told)


def test_a_single_run_is_told_by_what_it_ended_with():
    """On its test set, as in the table, and not by its last evaluation."""
    history = [{"epoch": 1, "score": 60.0}, {"epoch": 2, "score": 50.0, "selected_score": 60.0, "test_score": 55.0}]
    subject = Subject("one", Comparison({"baseline": {0: history}}, Metric("accuracy"), environment={}), single=True)
    assert "Accuracy: 55.00 at the end, 60.00 at best (epoch 1)." in description(subject)


def test_a_run_that_has_only_begun(tmp_path):
    begun = tmp_path / "begun.json"
    environment = {"machine": "Abacus", "devices": ["cpu"], "torch": "9", "conditioned-attention": "9"}
    about = {"variant": "baseline", "seed": 3, "settings": None, "environment": environment}
    begun.write_text(json.dumps({**about, "metric": {"name": "s", "higher_is_better": True}}))
    write_reports(read_subjects([tmp_path]), [tmp_path])
    text = (tmp_path / "report.html").read_text()
    assert "<strong>baseline, seed 3</strong> not finished: begun, nothing logged." in text
    assert "baseline: no evaluation yet." in text
    begun.write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"begun\.json: metric is missing; valid is an object"):
        read_subjects([tmp_path])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name at least one folder that 'conditioned-attention compare' or 'train' has written"),
        (["/nowhere"], "/nowhere: there is no such folder"),
        (["{empty}"], "holds no results.json; run 'conditioned-attention compare' into it first, or name"),
        (["/nowhere", "/nowhere"], "the folders must all be different, got /nowhere, /nowhere"),
        (["/nowhere", "--output", "page.pdf"], "output must be an .html file, got 'page.pdf'"),
    ],
)
def test_wrong_folders_are_one_line(arguments, words, capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["report", *(argument.format(empty=tmp_path) for argument in arguments)])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1


def test_heads_at_the_floor_and_layers_with_fewer_heads(tmp_path):
    rows = [(0, 0, 3.0, 0), (0, 1, None, 0), (1, 0, None, 0), (1, 1, None, 1.0)]  # the last one was not finite
    record = HeadRecord(5, 0, "a", 0, False, 1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 1.5)
    keys = ("layer", "head", "kappa_before", "not_finite")
    lines = [{**record.to_json(), **dict(zip(keys, row))} for row in rows]
    (tmp_path / "conditions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    heads = read_heads(tmp_path / "conditions.jsonl")
    np.testing.assert_array_equal(heads.used, [[[3.0, np.inf], [np.inf, np.nan]]])
    assert average_kappa(heads) == [3.0], "layers at the floor are left out"


def test_thinning_keeps_what_stands_out():
    y = np.random.default_rng(0).normal(size=100_000)
    y[[777, 50_000]] = (99.0, -99.0)
    xs, ys = thin(np.arange(100_000), y)
    assert len(xs) <= POINTS
    assert (ys.max(), ys.min()) == (99, -99)
    assert list(xs[[0, -1]]) == [0, 99_999]
    band = thin_band(Band(np.arange(100_000.0), y, y, y))
    assert len(band.x) <= POINTS
    assert (band.high.max(), band.low.min()) == (99, -99)
    assert np.average(band.mean) == pytest.approx(y.mean(), abs=0.01)


def test_words_say_what_the_numbers_say():
    def comparison(*finals):
        first = [{"epoch": 1, "score": 50.0}]
        runs = {name: {s: [*first, {"epoch": 2, "score": v}] for s, v in enumerate(values)} for name, *values in finals}
        return Comparison(runs, Metric("points"))

    unclear = ("b", 51, 49, 60), ("c", 70, 40, 50)
    assert short_answer(comparison(("a", 50, 51, 52), unclear[0])) == "", "its own sentence says it"
    assert seeds_to_show(comparison(("a", 50, 51, 52), *unclear, ("d", 60, 61, 62.5), ("e", 50, 51, 52))) == (
        "Seeds that would show a difference as large as the one measured, with probability 80 %: 40 for b, 369 for c."
    )
    assert (
        short_answer(comparison(("a", 50, 51, 52), *unclear)) == "No difference to a was shown for any of 2 variants "
        "(one of 16.75 or more could have been seen, of 52.05 where seeds scatter most)."
    )
    assert short_answer(comparison(("a", 50, 51, 52), ("d", 60, 61, 62.5), unclear[1])) == (
        "2 variants compared with a, each by its own 95 % interval: 1 better, none worse, 1 without a difference shown "
        "(one of 52.05 or more could have been seen)."
    )
    assert alarms(comparison(("a", 50, 51, 52), unclear[1])) == [
        "Runs that ended worse than at their first evaluation: c (1 of 3)."
    ]


def test_runs_that_were_measured_at_other_steps_have_a_sentence_in_place_of_a_line():
    def measured(*steps):
        ones = np.ones((len(steps), 1, 2), np.float32)
        return Heads(np.array(steps, float), ["a"], ones, ones, ones, ones, 2e6)

    heads = {"apart": [measured(0, 10), measured(5, 15)], "together": [measured(0, 10), measured(0, 5, 10)]}
    runs = {name: {seed: [{"epoch": 1, "score": 1.0}] for seed in range(2)} for name in heads}
    subject = Subject("small", Comparison(runs, Metric("points"), environment={}))
    charts = {chart.key: chart for chart in charts_of(subject, heads, palette_of(list(heads)))}
    assert [one["variant"] for one in charts["heat"].heat["variants"]] == ["together"]
    words = "No κ curve for these, as there is no step at which the heads of all runs were measured: apart."
    assert words in page([Section(subject, list(charts.values()), heads)])
    assert not {"kappa", "heat"} & {
        c.key for c in charts_of(subject, {"apart": heads["apart"]}, palette_of(["apart", "together"]))
    }
    picture(lambda ax: plot_kappa(heads, ax))


def test_the_chart_of_the_largest_c_has_that_of_all_seeds():
    """As the table does; the same is looked at in a browser above, where there is one."""
    runs = {"a": {seed: [{"epoch": i, "score": 1.0, "largest_scale": seed + i} for i in (1, 2)] for seed in range(3)}}
    subject = Subject("small", Comparison(runs, Metric("points")), {"a": {}})
    (chart,) = [chart for chart in charts_of(subject, {}, palette_of(["a"])) if chart.key == "conditioning"]
    (line,) = [trace for trace in chart.views[0].traces if trace["meta"] == "mean"]
    assert (list(line["x"]), list(line["y"])) == ([1, 2], [3, 4])
