"""Pictures show what the numbers say, in light and dark: the tests look at pixels and at the boxes of text."""

import dataclasses
import math
from functools import cache
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.text import Text

from conditioned_attention.measure.monitoring.records import HeadRecord
from conditioned_attention.measure.plots import (
    FIELDS,
    THEMES,
    average_condition_number,
    plot_before_after,
    plot_condition_numbers,
    plot_head_spectra,
    plot_heat_map,
    plot_heat_maps,
    plot_layers,
    plot_spectra,
    share_at_floor,
    side_by_side,
)
from conditioned_attention.measure.plots.style import SCALE
from conditioned_attention.measure.probing.probe import HeadOutputs, head_outputs
from tests.colour import VISION, contrast, distance, lab
from tests.models import images, timm_vit
from tests.rendering import check_texts, differs, pixel_at, render

FLOOR = 4e5
LIGHT, DARK = THEMES["light"], THEMES["dark"]


def record(step, layer, head, kappa, **others):
    """A head that runs without a transform."""
    floor = float(math.isinf(kappa))
    return HeadRecord(step, layer, "m", head, False, kappa, 10.0, 0.0, 0.0, floor, 0.0, 1.0, **others)


def kappa_of(step, layer, head):
    return 10 ** (1 + layer / 2 + head / 3 + min(step, 30) / 60)


def run(layers=4, heads=5, steps=(0, 10, 20, 30), factor=1.0):
    """κ differs from head to head; the last head of the last layer is at the floor."""
    return [
        record(
            step, layer, head,
            math.inf if layer == layers - 1 and head == heads - 1 else factor * kappa_of(step, layer, head),
            resolution=FLOOR, effective_rank_before=1.0 + head, effective_rank_after=2.0 + layer,
        )
        for step in steps for layer in range(layers) for head in range(heads)
    ]  # fmt: skip


def without_new_fields(records):
    """As the files of version 0.1's first months have them."""
    new = {"resolution", "effective_rank_before", "effective_rank_after"}
    return [dataclasses.replace(found, **dict.fromkeys(new, math.nan)) for found in records]


@cache
def outputs():
    torch.manual_seed(0)
    return head_outputs(timm_vit(), images())


def outputs_of_a_large_head():
    torch.manual_seed(0)
    before = torch.randn(6, 1, 197, 64) @ torch.diag(torch.logspace(0, -7, 64))
    return [HeadOutputs("attn", True, before, before / before.norm(dim=-1, keepdim=True))]


RUNS = {"baseline": [run(), run(factor=3.0)], "a variant with a long name=0.25": [run(factor=0.3), run(factor=0.1)]}
MANY = {f"variant number {i}": [run(factor=1.2**i)] for i in range(9)}
PICTURES = {
    "curves": lambda theme: plot_condition_numbers(RUNS, theme=theme),
    "nine curves": lambda theme: plot_condition_numbers(MANY, theme=theme),
    "quantiles": lambda theme: plot_condition_numbers(RUNS, quantiles=(0.1, 0.9), theme=theme),
    "heads": lambda theme: plot_heat_map(run(), theme=theme),
    "24 × 16 heads over time": lambda theme: plot_heat_maps(run(24, 16, (0, 12000, 180000)), theme=theme),
    "before and after": lambda theme: plot_before_after(run(12, 12), field="row_spread", theme=theme),
    "effective ranks": lambda theme: plot_before_after(run(12, 12), field="effective_rank", theme=theme),
    "layers": lambda theme: plot_layers(run(6, 5, range(0, 500_000, 10_000)), theme=theme),
    "spectra of heads": lambda theme: plot_head_spectra(outputs(), [(0, 0), (1, 3), (0, 2)], theme=theme),
    "spectrum": lambda theme: plot_spectra(*both(outputs_of_a_large_head()[0]), theme=theme),
    "curves side by side": lambda theme: side_by_side({"a": run(), "another": run()}, picture="curves", theme=theme),
    "layers side by side": lambda theme: side_by_side({"a": run(), "another": run()}, picture="layers", theme=theme),
}
DARK_TOO = ("curves", "quantiles", "heads", "spectra of heads")  # every kind of artist is in one of them
EACH = pytest.mark.parametrize("name", PICTURES)
BOTH_THEMES = pytest.mark.parametrize("theme", THEMES)


def both(outputs):
    return outputs.before[:, 0], outputs.after[:, 0]


@cache
def rendered(name, theme):
    axes = PICTURES[name](theme)
    axes = axes if isinstance(axes, list) else [axes]
    return axes, render(axes[0].figure)


@pytest.mark.one_in(4)
@EACH
def test_text_does_not_overlap_and_is_not_cut(name):
    axes, _ = rendered(name, "light")
    check_texts(axes[0].figure)


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("name", "theme"), [*((name, "light") for name in PICTURES), *((name, "dark") for name in DARK_TOO)]
)
def test_everything_stands_out_from_the_ground(name, theme):
    """Of the artists that are there, whatever colour they were meant to have."""
    axes, image = rendered(name, theme)
    ground = THEMES[theme].background
    for text in axes[0].figure.findobj(Text):
        assert not text.get_text().strip() or contrast(text.get_color(), ground) >= 4.5, text
    for ax in axes:
        for line in (*ax.get_lines(), *ax.spines.values()):
            colour = line.get_color() if hasattr(line, "get_color") else line.get_edgecolor()
            assert contrast(colour, ground) >= 3, line
    assert (np.abs(image[[0, 0, -1, -1], [0, -1, 0, -1]] - np.array(_rgb(ground))).max() <= 1).all(), "the corners"


def _rgb(colour):
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


@BOTH_THEMES
@pytest.mark.parametrize("vision", VISION)
def test_colours_are_told_apart(theme, vision):
    """10 by CIEDE2000 is plain to see; 1 is just seen."""
    for one, two in combinations(THEMES[theme].colours, 2):
        assert distance(lab(one, vision), lab(two, vision)) >= 10, (one, two)


@BOTH_THEMES
def test_contrast_of_the_themes(theme):
    found = THEMES[theme]
    assert contrast(found.text, found.background) >= 7
    assert min(contrast(colour, found.background) for colour in (found.faint, *found.colours)) >= 3


@pytest.mark.parametrize("vision", VISION)
def test_the_scale_of_heat_maps_rises_evenly(vision):
    """Lighter is more to everybody, and steps of equal size look it: none is three times the mean."""
    seen = [lab(colormaps[SCALE](i / 32)[:3], vision) for i in range(33)]
    steps = [distance(one, two) for one, two in pairwise(seen)]
    assert all(two[0] > one[0] for one, two in pairwise(seen))
    assert max(steps) < 3 * np.mean(steps)


def test_measures_of_colour_against_published_numbers():
    """Sharma, Wu and Dalal (2005), table 1: pairs 1, 7, 14 and 25; WCAG's own example of grey."""
    pairs = [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 0, 0), (50, -1, 2), 2.3669),
        ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ]
    for one, two, published in pairs:
        assert abs(distance(one, two) - published) < 1e-4
    assert abs(contrast("#777777", "#FFFFFF") - 4.48) < 0.005


def test_figure_3_averages_over_heads_then_layers():
    records = [record(0, 0, 0, 2.0), record(0, 0, 1, 4.0), record(0, 1, 0, 9.0), record(0, 1, 1, math.inf)]
    assert average_condition_number(records) == {0: (3.0 + 9.0) / 2}
    assert share_at_floor([*records, record(0, 1, 2, math.nan)]) == 0.25
    ax = plot_condition_numbers({"baseline": [records, [record(0, 0, 0, 8.0)]]})
    assert list(ax.get_lines()[0].get_ydata()) == [7.0]
    assert "20% at the floor" in ax.get_legend().get_texts()[0].get_text()


@BOTH_THEMES
def test_lines_go_through_the_data(theme):
    (ax,), image = rendered("curves", theme)
    for colour, seeds in zip(THEMES[theme].colours, RUNS.values()):
        curves = [average_condition_number(records) for records in seeds]
        for step in (10, 20):
            mean = (curves[0][step] + curves[1][step]) / 2
            assert differs(image, ax, step, mean, colour, around=1) < 60
            assert differs(image, ax, step, 1.25 * mean, colour, around=1) > 60, "a line, not a plane"


@BOTH_THEMES
@pytest.mark.parametrize("name", ["curves", "quantiles"])
def test_bands_cover_what_they_say(name, theme):
    (ax,), image = rendered(name, theme)
    curves = [average_condition_number(records) for records in RUNS["baseline"]]
    heads = sorted(found.kappa for records in RUNS["baseline"] for found in records if found.step == 20)
    low, high = (curves[0][20], curves[1][20]) if name == "curves" else (heads[3], heads[35])
    ground = THEMES[theme].background
    for inside in (1.1 * low, 0.93 * high):
        assert differs(image, ax, 20, inside, ground) > 15
    other = [average_condition_number(records)[20] for records in RUNS["a variant with a long name=0.25"]]
    assert max(other) < 0.8 * low or name == "quantiles"
    assert differs(image, ax, 20, 1.15 * high, ground) <= 1
    if name == "curves":
        assert differs(image, ax, 20, 0.88 * low, ground) <= 1


def test_a_quantile_among_heads_at_the_floor_reaches_it():
    records = [
        record(step, 0, head, [10.0, math.inf][head > 4], resolution=1000.0) for step in (0, 1) for head in range(8)
    ]
    ax = plot_condition_numbers({"run": [records]}, quantiles=(0.1, 0.9))
    image = render(ax.figure)
    assert differs(image, ax, 0.5, 900.0, LIGHT.background) > 15
    assert differs(image, ax, 0.5, 1060.0, LIGHT.background) <= 1
    ax = plot_condition_numbers({"run": [without_new_fields(records)]}, quantiles=(0.1, 0.9))
    assert ax.collections[0].get_paths()[0].vertices[:, 1].max() == 10.0, "the largest that is known"


@BOTH_THEMES
def test_the_floor_is_drawn_where_it_is(theme):
    (ax,), image = rendered("curves", theme)
    row, _ = pixel_at(image, ax, 0, FLOOR)
    left, right = (pixel_at(image, ax, x, FLOOR)[1] for x in (2, 28))
    faint = np.array(_rgb(THEMES[theme].faint))
    dashes = (np.abs(image[row - 1 : row + 2, left:right] - faint).max(-1).min(0) < 60).mean()
    assert 0.4 < dashes < 0.9, "dashes, and gaps between them"
    assert [text.get_text() for text in ax.texts] == ["limit of float32"]
    assert ax.texts[0].get_window_extent().y0 > image.shape[0] - row


def test_older_records_have_no_floor_to_draw():
    ax = plot_condition_numbers({"run": [without_new_fields(run())]})
    assert len(ax.get_lines()) == 1
    assert not ax.texts
    assert max(average_condition_number(run()).values()) < ax.get_ylim()[1] < FLOOR


@pytest.mark.parametrize("kappas", [[8.0], [math.inf, 8.0], [math.inf, 8.0, math.inf, 9.0]])
def test_a_step_without_finite_neighbours_is_seen(kappas):
    seeds = [[record(step, 0, 0, kappa * factor) for step, kappa in enumerate(kappas)] for factor in (1.0, 1.1)]
    ax = plot_condition_numbers({"baseline": [], "preconditioned": seeds})
    image = render(ax.figure)
    assert differs(image, ax, len(kappas) - 1 if len(kappas) < 4 else 1, 8.4, LIGHT.colours[1]) < 8


@pytest.mark.parametrize(
    ("records", "words"),
    [([record(0, 0, 0, math.inf)], "every head is at the numerical floor"), ([], "nothing was measured")],
)
def test_a_picture_of_no_number_says_why(records, words):
    ax = plot_condition_numbers({"baseline": [records]}, quantiles=(0.0, 1.0), theme="dark")
    check_texts_of(ax)
    assert ax.texts[0].get_text() == words


def check_texts_of(ax):
    render(ax.figure)
    check_texts(ax.figure)


def colour_of(value, low, high):
    return colormaps[SCALE]((value - low) / (high - low))[:3]


@BOTH_THEMES
def test_cells_have_the_colour_of_their_number(theme):
    (ax,), image = rendered("heads", theme)
    last = {(found.layer, found.head): math.log10(found.kappa) for found in run() if found.step == 30}
    finite = [value for value in last.values() if math.isfinite(value)]
    for (layer, head), value in last.items():
        if math.isfinite(value):
            assert differs(image, ax, head, layer, colour_of(value, min(finite), max(finite))) <= 2
    assert differs(image, ax, 4.4, 3.4, THEMES[theme].background) <= 1, "no κ, no colour"
    assert differs(image, ax, 4, 3, "white", around=2) <= 2, "a cross"
    assert differs(image, ax, 4, 3, "black", around=8) <= 40, "and its edge"
    assert "×: at the numerical floor" in ax.get_xlabel()


def test_other_numbers_of_heads_at_the_floor_have_both_colour_and_cross():
    ax = plot_heat_map(run(), field="effective_rank_before", step=0)
    image = render(ax.figure)
    assert differs(image, ax, 4.4, 3.4, colour_of(5.0, 1.0, 5.0)) <= 2
    assert differs(image, ax, 4, 3, "black", around=8) <= 40
    assert differs(image, ax, 4, 2, "black", around=8) > 40
    assert ax.images[0].colorbar.ax.get_ylabel() == "effective rank, before C"


def test_the_cross_is_of_the_matrix_that_is_shown():
    """Before C the last head is at the floor, after C it is not."""
    before, after = plot_before_after(run())
    assert before.get_xlabel() == "head\n×: at the numerical floor"
    assert after.get_xlabel() == "head"
    assert len(before.collections) - len(after.collections) == 1
    conditioned = [
        dataclasses.replace(found, conditioned=True) for found in run()
    ]  # κ is that after C, of which all is well
    crosses = [
        len(plot_heat_map(conditioned, field=f"effective_rank{when}").collections) for when in ("_before", "_after")
    ]
    assert [*crosses, len(plot_heat_map(conditioned).collections)] == [1, 0, 0]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("draw", [plot_heat_maps, plot_before_after])
def test_panels_share_their_colours(draw):
    axes = draw(run())
    image = render(axes[0].figure)
    assert len({ax.images[0].get_clim() for ax in axes}) == 1
    values = [math.log10(10.0)] if draw is plot_before_after else [1 + 30 / 60]
    for value in values:
        assert differs(image, axes[-1], 0, 0, colour_of(value, *axes[0].images[0].get_clim())) <= 2
    assert len(axes[0].figure.axes) == len(axes) + 1, "one bar"


def test_steps_that_are_shown():
    axes = plot_heat_maps(run(steps=range(0, 100, 10)))
    assert [ax.get_title() for ax in axes] == ["step 0", "step 30", "step 60", "step 90"]
    assert [ax.get_title() for ax in plot_heat_maps(run(), steps=[20, 0])] == ["step 20", "step 0"]


def test_layers_over_time_are_medians_over_heads():
    kappas = [[10.0, 100.0, 1e5, math.inf, math.inf], [10.0, 100.0, math.inf, math.inf, math.inf]]
    ax = plot_layers([record(7, layer, head, kappas[layer][head]) for layer in (0, 1) for head in range(5)])
    values = ax.images[0].get_array()
    assert values[0, 0] == 5.0
    assert values.mask[1, 0]
    assert ax.collections[0].get_offsets().tolist() == [[0, 1]]
    assert ax.images[0].colorbar.ax.get_ylabel() == "log₁₀ κ, median over heads"


@pytest.mark.parametrize("field", FIELDS)
def test_every_number_of_older_records_is_drawn_or_said_to_be_missing(field):
    """Their new fields are NaN; and in no file is there more than inf and NaN to cope with."""
    records = [dataclasses.replace(found, kappa_after=math.inf) for found in without_new_fields(run(2, 2))]
    ax = plot_heat_map(records, field=field)
    missing = not math.isfinite(getattr(records[0], field))
    assert ("no number to draw" in ax.get_title()) == missing


def test_heads_of_several_sizes_and_runs_of_several_seeds():
    """Swin has more heads in later layers; cells of several seeds are medians."""
    records = [record(0, 0, 0, 10.0), *(record(0, 1, head, 100.0) for head in range(3))]
    values = plot_heat_map([*records, record(0, 0, 0, 1000.0), record(0, 0, 0, 1.0)]).images[0].get_array()
    assert values.tolist() == [[1.0, None, None], [2.0, 2.0, 2.0]]


def test_spectra_are_those_of_the_matrices():
    before, after = both(outputs()[1])
    ax = plot_spectra(before, after, theme="dark")
    image = render(ax.figure)
    for line, matrices in zip(ax.get_lines(), (before, after)):
        values = np.linalg.svd(matrices.double().numpy(), compute_uv=False)
        expected = np.median(values / values[:, :1], axis=0)
        assert np.allclose(line.get_ydata(), expected)
        assert np.allclose(line.get_xdata(), np.arange(1, 9) / 8)
    assert differs(image, ax, 0.5, expected[3], DARK.colours[1], around=1) < 30, "after C, which is drawn last"
    low, high = np.quantile(values / values[:, :1], [0.1, 0.9], axis=0)
    band = ax.collections[1].get_paths()[0].vertices
    assert math.isclose(band[:, 1].min(), low[-1])
    assert any(np.allclose(point, (0.5, high[3]), atol=0) for point in band)


def test_the_floor_of_spectra_is_that_of_their_dtype_and_size():
    matrices = torch.randn(3, 17, 8)
    for dtype in (torch.float32, torch.bfloat16):
        ax = plot_spectra(matrices.to(dtype))
        floor = 17 * torch.finfo(dtype).eps
        assert math.isclose(ax.get_lines()[-1].get_ydata()[0], floor)
        assert differs(render(ax.figure), ax, 0.05, floor, LIGHT.faint, around=3) < 60
        assert ax.get_ylim()[0] < floor


def test_matrices_that_have_no_spectrum_are_left_out():
    good = torch.randn(1, 4, 3)
    bad = torch.stack([torch.zeros(4, 3), torch.full((4, 3), math.nan)])
    one, three = (plot_spectra(matrices).get_lines()[0].get_ydata() for matrices in (good, torch.cat([bad, good])))
    assert one.tolist() == three.tolist()
    with pytest.raises(ValueError, match="before C must have one that is finite and not zero"):
        plot_spectra(bad)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("picture", ["curves", "heads", "layers"])
def test_runs_side_by_side_have_common_scales(picture):
    runs = {"one": run(), "ten times": run(factor=10.0), "old": without_new_fields(run())}
    axes = side_by_side(runs, picture=picture)
    image = render(axes[0].figure)
    check_texts(axes[0].figure)
    if picture == "curves":
        assert len({ax.get_ylim() for ax in axes}) == 1
        for ax, colour, records in zip(axes, LIGHT.colours, runs.values()):
            assert differs(image, ax, 20, average_condition_number(records)[20], colour, around=1) < 60
    else:
        assert [ax.get_title().split(",")[0] for ax in axes] == list(runs)
        limits = axes[0].images[0].get_clim()
        assert len({ax.images[0].get_clim() for ax in axes}) == 1
        log_kappa = 1.5 if picture == "heads" else 1 + 2 / 3
        assert differs(image, axes[1], 0, 0, colour_of(log_kappa + 1, *limits)) <= 2


def test_layers_are_numbered_on_each_panel_where_they_are_not_the_same():
    few, many = side_by_side({"few": run(2, 3), "many": run(9, 3)})
    assert few.get_ylabel() == many.get_ylabel() == "layer"


def test_drawing_where_the_caller_says():
    axes = list(Figure(layout="constrained").subplots(1, 2))
    assert plot_condition_numbers(RUNS, axes[0], theme="dark") is axes[0]
    assert plot_heat_maps(run(), axes, steps=[0, 10])[1].get_title() == "step 10"
    assert axes[1].figure.get_size_inches().tolist() == [6.4, 4.8], "the caller's figure keeps its size"
    assert plot_head_spectra(outputs(), [(0, 0)], axes[:1])[0].get_legend() is not None


def test_wrong_arguments():
    with pytest.raises(ValueError, match="theme must be one of 'light', 'dark', got 'sepia'"):
        plot_condition_numbers(RUNS, theme="sepia")
    with pytest.raises(ValueError, match="quantiles must be two numbers"):
        plot_condition_numbers(RUNS, quantiles=(0.9, 0.1))
    with pytest.raises(ValueError, match=r"step must be one that was measured \(0, 10, 20, 30\), got 5"):
        plot_heat_map(run(), step=5)
    with pytest.raises(ValueError, match="records must be those of a run that was monitored"):
        plot_layers([])
    with pytest.raises(ValueError, match=r"field must be one of 'kappa', .*, got 'condition'"):
        plot_heat_map(run(), field="condition")
    with pytest.raises(ValueError, match=r"field must be one of .*, got 'largest_scale'"):
        plot_before_after(run(), field="largest_scale")
    with pytest.raises(ValueError, match="axes must be 4, one a panel, got 1"):
        plot_heat_maps(run(), [Figure().subplots()])
    with pytest.raises(ValueError, match=r"heads must be \(layer, head\) among layers of \[4, 4\] heads, got \(2, 0\)"):
        plot_head_spectra(outputs(), [(2, 0)])
    with pytest.raises(ValueError, match="heads must name at least one"):
        plot_head_spectra(outputs(), [])
    with pytest.raises(ValueError, match="picture must be one of 'curves', 'heads', 'layers', got 'bars'"):
        side_by_side({"a": run()}, picture="bars")
    with pytest.raises(ValueError, match=r"runs must have records each, got \{'a': 0\}"):
        side_by_side({"a": []})
