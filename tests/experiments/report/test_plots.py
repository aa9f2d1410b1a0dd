"""Pictures of a comparison: what is drawn is where the numbers say."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from conditioned_attention import ConditionMonitor
from conditioned_attention.experiments.evidence.comparison import Comparison
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.report.columns import read_heads
from conditioned_attention.experiments.report.pictures import plot_kappa
from conditioned_attention.experiments.report.plots import plot_epochs_to_baseline, plot_scores
from conditioned_attention.measure.plots import THEMES, plot_condition_numbers
from tests.models import build, images
from tests.rendering import check_texts, differs, render


def history(*scores):
    return [{"epoch": i + 1, "score": score} for i, score in enumerate(scores)]


def comparison(higher_is_better=True):
    """The baseline ends at 80 and 84; ``fast`` is there after 2 and 4 epochs, its mean after 4; one ``late`` run is."""
    sign = 1 if higher_is_better else -1
    runs = {
        "baseline": {0: (50, 60, 70, 75, 80, 80), 1: (54, 64, 74, 79, 82, 84)},
        "fast": {0: (70, 81, 82, 83, 84, 85), 1: (70, 75, 80, 85, 86, 86)},
        "late": {0: (10, 20, 30, 40, 50, 80), 1: (10, 20, 30, 40, 50, 60)},
        "a variant that never gets there=0.25": {0: (10, 10, 10, 10, 10, 10)},
        "no pair": {7: (10, 20, 30, 40, 50, 60)},
        "nothing": {},
    }
    signed = {
        name: {seed: history(*(sign * s for s in h)) for seed, h in seeds.items()} for name, seeds in runs.items()
    }
    return Comparison(signed, Metric("accuracy (%)", higher_is_better), environment={})


@pytest.mark.parametrize("theme", THEMES)
def test_scores(theme):
    ax = plot_scores(comparison(), theme=theme)
    image = render(ax.figure)
    check_texts(ax.figure)
    baseline, fast = THEMES[theme].colours[:2]
    for epoch, mean, colour in ((3, 72.0, baseline), (5, 81.0, baseline), (2, 78.0, fast)):
        assert differs(image, ax, epoch, mean, colour, around=1) < 40
    ground = THEMES[theme].background
    assert differs(image, ax, 3, 73.5, ground) > 15, "in the band"
    assert differs(image, ax, 3, 68.0, ground) <= 1, "below it"
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[2:4] == ["late (2 seeds)", "a variant that never gets there=0.25 (1 seed)"]
    assert ax.get_window_extent().height > 2.7 * ax.figure.dpi, "the legend takes no room from the axes"


def test_runs_that_end_within_an_epoch_are_drawn_by_steps():
    curves = {"baseline": (2, 4), "fast": (4, 5)}
    rows = {
        name: [{"epoch": 0.1 * i, "step": 20 * i, "score": s} for i, s in enumerate(h, 1)] for name, h in curves.items()
    }
    within = Comparison({name: {0: history} for name, history in rows.items()}, Metric("score"), environment={})
    ax, bars = plot_scores(within), plot_epochs_to_baseline(within)
    assert (ax.get_xlabel(), list(ax.lines[0].get_xdata())) == ("step", [20, 40])
    assert [bar.get_width() for bar in bars.patches] == [40, 20]
    assert bars.get_xlabel().startswith("steps until")
    assert bars.texts[1].get_text() == "step 20"


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_bars_end_where_runs_reached_the_baseline(higher_is_better):
    ax = plot_epochs_to_baseline(comparison(higher_is_better), theme="dark")
    image = render(ax.figure)
    check_texts(ax.figure)
    dark = THEMES["dark"]
    for place, end in ((0, 6.0), (1, 4.0)):
        solid = [differs(image, ax, x, place, dark.background) > 80 for x in (0.1, end - 0.1, end + 0.1)]
        assert solid == [True, True, False], place
    for epoch in (5, 6):
        assert differs(image, ax, epoch, -0.125 if epoch == 5 else 0.125, dark.background, around=1) <= 8, "a dot"
        assert differs(image, ax, epoch, -0.125 if epoch == 5 else 0.125, dark.text, around=5) < 40, "and its edge"
    assert [text.get_text() for text in ax.texts] == [
        "epoch 6", "epoch 4", "never", "never", "no finished pair", "no finished pair",
    ]  # fmt: skip
    assert [label.get_text() for label in ax.get_yticklabels()] == list(comparison().runs)


def test_a_bar_without_an_end_is_open():
    """Hatched to the end of training; nothing at all where nothing was run."""
    ax = plot_epochs_to_baseline(comparison())
    image = render(ax.figure)
    for place, low, high in ((2, 0.05, 0.7), (4, 0.0, 0.0), (5, 0.0, 0.0)):
        points = [differs(image, ax, 0.1 + 0.058 * i, place, THEMES["light"].colours[place]) < 40 for i in range(100)]
        assert low <= np.mean(points[:50]) <= high
        assert low <= np.mean(points[50:]) <= high


def test_the_baseline_is_reached_by_what_its_curve_ended_with():
    """The dot of a seed stands where the bar's number says; the score of a test set is of other data than a curve."""
    runs = {"baseline": {0: history(50, 90)}, "other": {0: history(70, 95)}}
    runs["baseline"][0][-1]["test_score"] = 65.0
    ax = plot_epochs_to_baseline(Comparison(runs, Metric("accuracy"), environment={}))
    assert [line.get_xdata().item() for line in ax.lines] == [2, 2]
    assert [text.get_text() for text in ax.texts] == ["epoch 2", "epoch 2"]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="theme must be one of"):
        plot_epochs_to_baseline(comparison(), theme="blue")
    with pytest.raises(ValueError, match="comparison must hold a baseline"):
        plot_epochs_to_baseline(Comparison({}, Metric("score"), environment={}))


def test_the_picture_of_a_report_is_that_of_the_records(tmp_path):
    """From arrays or from records: the same curves, the same legend, the same floor."""
    path = tmp_path / "conditions.jsonl"
    model = build("timm_vit")
    monitor = ConditionMonitor(model, images(), path=path)
    for step in range(3):
        model.blocks[0].attn.qkv.weight.data *= 1 + step
        monitor.measure(step)
    from_arrays = plot_kappa({"mine": [read_heads(path)]}, Figure().add_subplot())
    from_records = plot_condition_numbers({"mine": [monitor.records]}, Figure().add_subplot())
    for one, two in zip(from_arrays.get_lines(), from_records.get_lines(), strict=True):
        assert one.get_ydata() == pytest.approx(two.get_ydata(), rel=1e-5)
    assert [text.get_text() for text in from_arrays.texts] == ["limit of float32"]
    labels = [[text.get_text() for text in ax.get_legend().get_texts()] for ax in (from_arrays, from_records)]
    assert labels[0] == labels[1]
