"""The page of a report, by what a browser shows of it: real runs, real Chromium."""

import dataclasses
import io
import json
import os
import re
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from conditioned_attention.cli import main
from conditioned_attention.experiments.commands import compare_recipe
from conditioned_attention.experiments.evidence.comparison import Comparison
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.evidence.statistics import scores
from conditioned_attention.experiments.evidence.tables import conditioning_table, difference_table, table
from conditioned_attention.experiments.models.vision_transformer import VisionTransformer
from conditioned_attention.experiments.recipes.small_images import Digits
from conditioned_attention.experiments.report.charts import palette_of
from conditioned_attention.experiments.report.columns import Heads, average_kappa, read_heads
from conditioned_attention.experiments.report.curves import POINTS
from conditioned_attention.experiments.report.figures import charts_of, heads_of
from conditioned_attention.experiments.report.heat import kappa_chart
from conditioned_attention.experiments.report.page import Section, page
from conditioned_attention.experiments.report.subjects import Subject, comparison_subject
from conditioned_attention.experiments.report.write import read_subjects, write_report, write_reports
from conditioned_attention.experiments.runs.run import run_folder
from conditioned_attention.experiments.training.launch import Launch
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.measure.monitoring.records import HeadRecord
from conditioned_attention.measure.plots import average_condition_number
from tests.experiments.light import Light

BOTH = ["baseline", "preconditioned"]
BLUE = (0x00, 0x72, 0xB2)


def find_chromium():
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next((path for path in map(shutil.which, names) if path), None)


@pytest.fixture(scope="module")
def chromium():
    api = pytest.importorskip("playwright.sync_api")
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium: set CHROMIUM to its executable, or install chromium or google-chrome")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A comparison that was trained: two variants, two seeds, a vision transformer on digits."""
    folder = tmp_path_factory.mktemp("page") / "first"
    model = VisionTransformer(layers=2, hidden_size=32, heads=4)
    recipe = Digits(model, Training(epochs=2, lr=2e-3, evaluate_every=0.5, monitor_every=0.5))
    result = compare_recipe(recipe, BOTH, 2, folder, cost=False, progress=False, launch=Launch(log_every=2))
    write_report(result, folder)
    return folder, result


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    """The same of four steps, for what needs no browser."""
    folder = tmp_path_factory.mktemp("page") / "light"
    recipe = Light(Training(epochs=2, batch_size=16, evaluate_every=0.5, monitor_every=0.5))
    return folder, compare_recipe(recipe, BOTH, 2, folder, cost=False, progress=False, launch=Launch(log_every=1))


class Shown:
    """A page in a browser, with what it complained of and asked for."""

    def __init__(self, browser, file, *, width=1280, charts=True, script="", **context):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, **context)
        self.requests, self.complaints = [], []
        self.context.route("**/*", lambda route: route.continue_() if self.own(route.request) else route.abort())
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        if script:
            self.page.add_init_script(script)
        self.file = file.as_uri()
        begun = time.monotonic()
        self.page.goto(self.file)
        if charts:
            self.page.wait_for_selector("html[data-charts]", timeout=60_000)
        self.seconds = time.monotonic() - begun

    def own(self, request):
        return request.url == self.file

    def chart(self, title):
        return self.page.locator(".chart", has=self.page.locator("h3", has_text=title))

    def pixels(self, locator):
        return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB")).astype(int)

    def count(self, locator, colour, tolerance=20):
        return int((abs(self.pixels(locator) - colour) < tolerance).all(-1).sum())


@pytest.fixture(scope="module")
def shown(chromium, real):
    """The page of the real comparison on a light desktop; tests leave it as they found it."""
    return Shown(chromium, real[0] / "report.html", color_scheme="light")


def test_the_answer_and_the_numbers_are_on_the_screen(shown, real):
    text = " ".join(shown.page.inner_text("main").split())
    result = real[1]
    assert shown.page.inner_text("h1") == "Did it help?"
    assert " ".join(result.verdicts()[0].split()) in text
    for heading, (header, rows) in (
        ("Scores", table(result.summary(), result.cost)),
        ("Tests", difference_table(result.summary())),
        ("Conditioning", conditioning_table(result.summary())),
    ):
        found = shown.page.locator(f'.scroll[aria-label^="{heading}"] table')
        cells = found.evaluate("table => [...table.rows].map(row => [...row.cells].map(cell => cell.innerText.trim()))")
        assert cells == [header, *rows]
    assert found.locator('th[scope="row"]').count() == 2
    assert "training.lr 0.002" in text
    assert result.environment["torch"] in shown.page.locator("details").last.text_content()


def test_on_top_is_what_was_run_and_where_to_find_it(shown, real):
    head = " ".join(shown.page.inner_text(".head").split())
    (call,) = real[1].calls
    for word in ("recipe digits", "model 2 layers, 4 heads, 32 wide", "1,437 to train", "seeds 0, 1", *call.values()):
        assert word in head
    links = shown.page.locator("nav a").evaluate_all("all => all.map(a => a.getAttribute('href').slice(1))")
    assert links == ["answer", "scores", "conditioning", "charts", "run"]
    assert all(shown.page.locator(f"[id={link}]").count() == 1 for link in links)


def test_table_and_chart_have_the_same_number(shown, real):
    """The largest C of all seeds, and of the heads' κ the median, at the end."""
    header, rows = conditioning_table(real[1].summary())
    chart = shown.chart("Scale and growth")
    chart.locator("select").first.select_option(label="largest C")
    data = chart.locator(".plot").evaluate("p => p.data.filter(t => t.meta === 'mean').map(t => t.y.at(-1))")
    assert [f"{value:.3g}" for value in data] == [row[header.index("largest C")] for row in rows]
    kappa = shown.chart("of the heads").locator(".plot")
    data = kappa.evaluate("p => p.data.filter(t => t.meta === 'mean').map(t => t.y.at(-1))")
    told = [float(row[header.index("log10 κ(heads)")]) for row in rows]
    np.testing.assert_allclose(np.log10(data), told, atol=0.006)


def test_ticks_of_logarithmic_axes_are_powers_or_plain_numbers(shown):
    for title, view in (("Training:", "gradient norm"), ("of the heads", "median"), ("projections", "query")):
        chart = shown.chart(title)
        chart.locator("select").first.select_option(label=view)
        ticks = chart.locator(".yaxislayer-above text").all_text_contents()
        assert ticks
        assert all(re.fullmatch(r"10[⁰¹²³⁴⁵⁶⁷⁸⁹\d]*|[\d,]+(\.\d+)?", tick) for tick in ticks), ticks
    shown.chart("Training:").locator("select").first.select_option(label="training loss")


def test_the_limit_is_drawn_and_explained_where_heads_are_beyond_it(light):
    heads = heads_of(comparison_subject(light[1], light[0]).folders)
    palette = palette_of(BOTH)
    below = {name: [dataclasses.replace(h, used=np.minimum(h.used, 1e3)) for h in runs] for name, runs in heads.items()}
    chart = kappa_chart(below, palette)
    assert "limit" not in chart.caption
    assert all("shapes" not in view.layout for view in chart.views)
    beyond = {"baseline": [dataclasses.replace(h, used=np.full_like(h.used, np.inf)) for h in heads["baseline"]]}
    chart = kappa_chart(below | beyond, palette)
    assert "The dashed line is the limit of float32: above it κ cannot be distinguished from infinity" in chart.caption
    assert {view.layout["annotations"][0]["text"] for view in chart.views} == {"limit of float32"}


def test_nothing_is_asked_of_a_network_and_nothing_complains(shown):
    assert shown.requests == [shown.file]
    assert shown.complaints == []


def test_every_chart_is_drawn_with_its_axes(shown, real):
    titles = shown.page.locator(".chart h3").all_inner_texts()
    reached = real[1].summary()[1].reached.epoch is not None
    assert titles == [
        "Difference to baseline in accuracy (%)",
        "Accuracy (%) by epoch",
        *["Epochs to the final score of baseline"] * reached,
        "Training: loss, learning rate, gradient norm",
        "Condition numbers of the heads",
        "Every head: log10 κ by layer and head",
        "Complexity measure log μ",
        "Scale and growth during training",
        "Condition numbers of the projections",
    ]
    axes = {
        title: [shown.chart(title).locator(f"svg .{axis}title").text_content() for axis in "xy"]
        for title in ("by epoch", "Training:", "of the heads", "Every head")
    }
    assert list(axes.values()) == [
        ["epoch", "accuracy (%)"],
        ["optimizer step", "training loss"],
        ["optimizer step", "κ of head outputs"],
        ["head", "layer"],
    ]
    data = shown.chart("by epoch").locator(".plot").evaluate("plot => plot.data")
    assert [trace["meta"] for trace in data] == ["band"] * 2 + ["mean"] * 2 + ["seed"] * 4
    means = [np.mean([scores(h) for h in by_seed.values()], 0) for by_seed in real[1].runs.values()]
    np.testing.assert_allclose([trace["y"] for trace in data if trace["meta"] == "mean"], means, rtol=1e-4)
    assert all(label for label in shown.page.locator(".plot").evaluate_all("all => all.map(p => p.ariaLabel)"))


def test_titles_of_axes_do_not_touch_their_numbers(shown):
    boxes = """plot => {
        const box = element => element.getBoundingClientRect();
        const title = plot.querySelector(".xtitle"), ticks = [...plot.querySelectorAll(".xaxislayer-above text")];
        return [box(title).top, Math.max(...ticks.map(tick => box(tick).bottom))];
    }"""
    for plot in shown.page.locator(".plot:has(.xtitle)").all():
        top, bottom = plot.evaluate(boxes)
        assert top >= bottom - 1, plot.get_attribute("aria-label")


def test_pointing_at_a_point_shows_its_number(shown, real):
    chart = shown.chart("by epoch")
    chart.scroll_into_view_if_needed()
    box = chart.locator(".scatterlayer .points path").last.bounding_box()
    shown.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    label = chart.locator(".hoverlayer .hovertext")
    label.wait_for()
    final = np.mean([scores(history)[-1] for history in real[1].runs["preconditioned"].values()])
    assert label.text_content().replace(" ", "") == f"preconditionedepoch2accuracy(%){final:.4g}"
    shown.page.mouse.move(0, 0)


def test_a_click_on_the_legend_hides_a_curve(shown):
    chart = shown.chart("by epoch")
    plot, button = chart.locator(".plot"), chart.locator(".legend button", has_text="preconditioned")
    drawn = shown.count(plot, BLUE)
    assert drawn > 200
    button.click()
    assert shown.count(plot, BLUE) == 0
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    assert shown.count(plot, BLUE) == drawn
    button.dblclick()
    assert chart.locator(".scatterlayer .points path").count() == 4, "one curve alone"
    button.dblclick()
    assert shown.count(plot, BLUE) == drawn


def test_views_and_single_seeds_on_demand(shown):
    chart = shown.chart("Training:")
    lines = chart.locator(".scatterlayer path.js-line")
    before = lines.count()
    show, spread = chart.locator("select").all()
    show.select_option(label="learning rate")
    assert chart.locator("svg .ytitle").text_content() == "learning rate"
    show.select_option(label="training loss")
    spread.select_option(label="single seeds")
    assert lines.count() == before - 2 + 4, "four seeds in place of two bands"
    spread.select_option(label="line alone")
    assert lines.count() == 2
    spread.select_option(label="band")


def test_the_heat_map_moves_with_its_slider(shown, real):
    chart = shown.chart("Every head")
    plot, slider = chart.locator(".plot"), chart.locator('input[type="range"]')
    last = shown.pixels(plot)
    assert chart.locator("output").inner_text() == "step 44"
    slider.press("Home")
    assert chart.locator("output").inner_text() == "step 0"
    first = shown.pixels(plot)
    assert (first != last).any(-1).sum() > 500
    heads = [read_heads(run_folder(real[0], "baseline", seed) / "conditions.jsonl") for seed in (0, 1)]
    median = np.min([h.used[0] for h in heads], 0)  # of two, the lower one
    z = np.array(plot.evaluate("plot => plot.data[0].z"), float)
    np.testing.assert_allclose(z, np.log10(np.where(np.isinf(median), np.nan, median)), atol=0.006)
    slider.press("End")  # at the start C changes no κ by a hundredth
    chart.locator("select").select_option(label="preconditioned")
    assert chart.locator("label", has_text="with C (used)").locator("input").is_checked()
    after = shown.pixels(plot)
    chart.locator("label", has_text="without C").locator("input").check()
    assert (shown.pixels(plot) != after).any()


@pytest.mark.slow
def test_on_a_phone_nothing_leaves_the_screen(chromium, real):
    phone = Shown(chromium, real[0] / "report.html", width=390, color_scheme="dark", has_touch=True, is_mobile=True)
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390
    for plot in phone.page.locator(".plot svg.main-svg").all():
        box = plot.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        assert box["width"] > 300
    for title in phone.page.locator("svg .xtitle, svg .ytitle").all():
        box = title.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    text, back = phone.page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert min(map(int, re.findall(r"\d+", text))) > 200
    assert max(map(int, re.findall(r"\d+", back))) < 50
    plot = phone.chart("by epoch").locator(".plot")
    pixels = phone.pixels(plot)
    assert (pixels < 60).all(-1).mean() > 0.5, "a light chart on a dark page"
    assert phone.count(plot, (0xF2, 0xF2, 0xF2)) > 100, "the baseline is not to be seen"
    assert phone.count(plot, (0x06, 0x7E, 0xDA)) > 100, "nor the other, in its colour for dark pages"
    phone.page.emulate_media(color_scheme="light")
    phone.page.wait_for_timeout(300)
    assert (phone.pixels(plot) > 200).all(-1).mean() > 0.5, "a dark chart on a page that has become light"
    assert not phone.complaints


def test_without_scripts_words_and_tables_are_there(chromium, real):
    plain = Shown(chromium, real[0] / "report.html", charts=False, java_script_enabled=False)
    text = " ".join(plain.page.inner_text("body").split())
    assert "The charts need JavaScript" in text
    assert " ".join(real[1].verdicts()[0].split()) in text
    assert "Accuracy (%) by epoch: baseline ends at" in text


def test_a_browser_that_cannot_unpack_says_so(chromium, real):
    old = Shown(chromium, real[0] / "report.html", charts=False, script="delete window.DecompressionStream")
    state = old.page.locator("#state", has_text="could not be drawn")
    state.wait_for()
    assert "no DecompressionStream" in state.inner_text()
    assert "Accuracy (%) by epoch: baseline ends at" in old.page.inner_text("main")


EVIL = '<b>b</b><script>window.evil = 1</script><img src=x onerror="window.evil = 1">%{x}'


def test_what_comes_from_users_is_text(chromium, tmp_path):
    histories = {seed: [{"epoch": e, "score": 50.0 + e + seed} for e in (1, 2, 3)] for seed in (0, 1, 2)}
    other = {
        seed: [{**row, "score": row["score"] + 1 + seed * 0.1} for row in rows] for seed, rows in histories.items()
    }
    settings, why = {EVIL: {"deep": [EVIL]}}, {f"{EVIL}, seed 9": EVIL}
    result = Comparison({"baseline": histories, EVIL: other}, Metric(EVIL), why, settings)
    file = tmp_path / "page.html"
    write_reports([comparison_subject(result, tmp_path / EVIL.replace("/", ""))], [tmp_path], file)
    found = Shown(chromium, file)
    assert found.page.evaluate("window.evil") is None
    assert found.requests == [found.file]
    assert not found.complaints
    text = found.page.inner_text("main")
    for sentence in (f"{EVIL}, seed 9 has no result: {EVIL}", f"{EVIL}: better than baseline", f"{EVIL}.deep"):
        assert sentence in text
    assert EVIL in found.page.locator(".legend").all_inner_texts()[1]
    assert EVIL in found.chart("Difference").locator("svg").first.text_content()


@pytest.mark.slow
def test_two_side_by_side(chromium, real, tmp_path, monkeypatch, capsys):
    folder, _ = real
    other = tmp_path / "second"
    shutil.copytree(folder / "runs", other / "runs")
    for file in other.glob("runs/*/*/result.json"):
        data = json.loads(file.read_text())
        data["settings"]["training"]["lr"] = 0.1
        data["history"] = [{**row, "score": row["score"] / 2} for row in data["history"]]
        file.write_text(json.dumps(data))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["report", str(folder), str(other)])
    assert ended.value.code == 0
    assert capsys.readouterr().out.endswith("\nreport.html\n")
    assert (other / "report.html").exists()
    wide = Shown(chromium, tmp_path / "report.html")
    assert " ".join(wide.page.inner_text('[aria-label="Settings that differ"]').split()) == (
        "setting first second training.lr 0.002 0.1"
    )
    left, right = wide.page.locator(".chart", has_text="Accuracy (%) by epoch").all()
    assert left.bounding_box()["y"] == right.bounding_box()["y"]
    assert left.bounding_box()["x"] + 400 < right.bounding_box()["x"]
    ranges = [c.locator(".plot").evaluate("p => [p.layout.xaxis.range, p.layout.yaxis.range]") for c in (left, right)]
    assert ranges[0] == ranges[1]
    highest = max(max(scores(history)) for by_seed in real[1].runs.values() for history in by_seed.values())
    assert ranges[0][1][1] > highest
    wide.page.set_viewport_size({"width": 390, "height": 900})
    assert left.bounding_box()["x"] == right.bounding_box()["x"]
    wide.page.wait_for_function("document.documentElement.scrollWidth <= 390")
    assert not wide.complaints


@pytest.mark.slow
def test_a_single_run_finished_or_under_way(chromium, real, tmp_path, capsys):
    finished, running = tmp_path / "finished", tmp_path / "running"
    for folder in (finished, running):
        shutil.copytree(run_folder(real[0], "preconditioned", 1), folder)
    (running / "result.json").unlink()
    for name, lines in (("metrics.jsonl", 2), ("train.jsonl", 8)):
        kept = (running / name).read_text().splitlines()[:lines]
        (running / name).write_text("\n".join(kept) + '\n{"step": 99, "lo')
    with pytest.raises(SystemExit):
        main(["report", str(finished)])
    said = capsys.readouterr().out
    final = scores(real[1].runs["preconditioned"][1])[-1]
    assert f"Accuracy (%): {final:.2f} at the end" in said
    found = Shown(chromium, finished / "report.html")
    text = " ".join(found.page.inner_text("main").split())
    assert found.page.inner_text("h1") == "What was trained"
    assert "preconditioned (each head's rows to unit length" in text
    assert "2 epochs, 44 optimizer steps on digits." in text
    assert "this does not show whether it helps" in text
    assert re.search(r"Median κ of the heads: .* at step 0, .* at step 44; then \d+% of the heads", text)
    assert found.page.evaluate("Number(document.documentElement.dataset.charts)") == 7
    write_reports(read_subjects([running]), [running])
    text = " ".join(Shown(chromium, running / "report.html").page.inner_text("main").split())
    assert "preconditioned, seed 1 not finished: evaluated 2 times, last at epoch 1 of 2; logged up to step 16;" in text
    assert "at the latest evaluation" in text


def test_a_comparison_under_way(light, tmp_path):
    shutil.copytree(light[0] / "runs", tmp_path / "runs")
    (run_folder(tmp_path, "preconditioned", 1) / "result.json").unlink()
    failed = run_folder(tmp_path, "baseline", 1)
    (failed / "result.json").unlink()
    (failed / "error.txt").write_text("ArithmeticError: odd\n\nTraceback")
    (subject,) = read_subjects([tmp_path])
    assert subject.failures == {"baseline, seed 1": "ArithmeticError: odd"}
    (far,) = subject.unfinished.values()
    assert far.startswith("not finished: evaluated 4 times, last at epoch 2 of 2; logged up to step 4; last written 2")
    write_reports([subject], [tmp_path])
    text = (tmp_path / "report.html").read_text()
    assert f"<strong>preconditioned, seed 1</strong> {far}." in text
    assert "<strong>baseline, seed 1</strong> has no result: ArithmeticError: odd" in text


def test_bars_say_who_never_got_there(chromium, tmp_path):
    finals = {"baseline": 60, "b": 50, "c": 70}
    runs = {name: {0: [{"epoch": 1, "score": 40}, {"epoch": 2, "score": final}]} for name, final in finals.items()}
    write_report(Comparison(runs, Metric("points")), tmp_path)
    found = Shown(chromium, tmp_path / "report.html")
    labels = found.chart("Epochs to").locator(".barlayer text").all_text_contents()
    assert labels == ["2", "never", "2"]
    text = found.page.inner_text("main")
    assert "One pair says nothing about the spread" in text
    assert found.page.locator(".chart").count() == 2, "no interval, no picture of intervals"


def test_plotly_accepts_every_picture(light):
    go = pytest.importorskip("plotly.graph_objects")
    subject = comparison_subject(light[1], light[0])
    charts = charts_of(subject, heads_of(subject.folders), palette_of(subject.variants))
    views = [view for chart in charts for view in chart.views]
    assert len(views) > 12
    for view in views:
        go.Figure(view.traces, view.layout)


def test_heads_are_read_as_the_monitor_wrote_them(light):
    for variant in BOTH:
        path = run_folder(light[0], variant, 0) / "conditions.jsonl"
        records = [HeadRecord.from_json(json.loads(line)) for line in path.read_text().splitlines()]
        heads = read_heads(path)
        np.testing.assert_allclose(average_kappa(heads), list(average_condition_number(records).values()), rtol=1e-5)
        assert heads.conditioned == (variant == "preconditioned")
        assert heads.modules == list(dict.fromkeys(record.module for record in records))


def large(tmp_path):
    """10 variants × 5 seeds × 200 evaluations; 24 layers × 16 heads × 200 measurements; 100,000 lines of losses."""
    rng, names = np.random.default_rng(0), [f"variant_{i}" for i in range(10)]
    columns = {"score": 80, "largest_scale": 30, "value_growth": 1, "floor_share": 0.1, "log10_kappa_weights": 2}
    runs, heads, folders = {}, {}, {}
    for name in names:
        for seed in range(5):
            rows = rng.normal(1, 0.1, (200, len(columns))) * list(columns.values())
            history = [{"epoch": i + 1, **dict(zip(columns, row))} for i, row in enumerate(rows.tolist())]
            runs.setdefault(name, {})[seed] = history
            before, after, mu = (10 ** rng.normal(3, 1, (200, 24, 16)).astype(np.float32) for _ in range(3))
            one = Heads(np.arange(200.0) * 50, [f"blocks.{i}.attn" for i in range(24)], before, after, after, mu, 2e6)
            heads.setdefault(name, []).append(one)
            path = folders.setdefault(name, {})[seed] = run_folder(tmp_path, name, seed)
            path.mkdir(parents=True)
            losses = enumerate(rng.normal(2, 0.1, 2000).tolist())
            lines = [
                f'{{"step": {i}, "loss": {loss}, "lr": {1 / (1 + i)}, "grad_norm": {loss}}}\n' for i, loss in losses
            ]
            (path / "train.jsonl").write_text("".join(lines))
    return Subject("large", Comparison(runs, Metric("points")), folders), heads


@pytest.mark.slow
def test_a_large_comparison_is_a_small_page(chromium, tmp_path):
    subject, heads = large(tmp_path)
    charts = charts_of(subject, heads, palette_of(subject.variants))
    file = tmp_path / "page.html"
    file.write_text(page([Section(subject, charts, heads)]))
    assert file.stat().st_size < 5_000_000
    found = Shown(chromium, file)
    print(f"{file.stat().st_size / 1e6:.2f} MB, interactive after {found.seconds:.1f} s")
    chart = found.chart("Every head")
    before = found.pixels(chart.locator(".plot"))
    chart.locator('input[type="range"]').press("Home")
    assert (found.pixels(chart.locator(".plot")) != before).any(-1).sum() > 5000
    longest = found.chart("Training:").locator(".plot").evaluate("p => Math.max(...p.data.map(t => t.x.length))")
    assert 100 < longest <= 2 * POINTS, "a closed band goes there and back"
    assert dataclasses.asdict(charts[-1])["views"]
