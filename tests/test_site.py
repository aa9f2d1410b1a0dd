"""The pages hang together, and the site that is made of them is whole in a browser, on a desk and on a phone."""

import dataclasses
import re
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

import conditioned_attention
from conditioned_attention import experiments, measure
from conditioned_attention.experiments.recipes.registry import RECIPES, recipe_class
from conditioned_attention.experiments.training.settings import Training
from tests.experiments.report.test_page import chromium  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[1]
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "examples/README.md", ROOT / "results/README.md"})


def without_code(page):
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """Of its headings, as the repository's host and the site make them."""
    titles = re.findall(r"^#+ (.*)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_to_a_heading_of_it(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", without_code(page)):
        if "://" not in target:
            file = page.parent / target if target else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("material", reason='needs pip install -e ".[site]"')
    folder = tmp_path_factory.mktemp("site")
    command = ["-m", "mkdocs", "build", "--strict", "-f", ROOT / "website/mkdocs.yml", "--site-dir", folder]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def address(site):
    """Where a server shows it."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 800, 390])
def test_pages_fit_the_screen_show_their_pictures_and_fetch_nothing(site, address, chromium, width):  # noqa: F811
    view = chromium.new_page(viewport={"width": width, "height": 900})
    fetched, errors, pictures = [], [], 0
    view.on("request", lambda request: fetched.append(request.url))
    view.on("pageerror", lambda error: errors.append(error))  # playwright wants a function of Python
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(list(ROOT.glob("docs/*.md"))) + 4
    for page in pages:
        view.goto(f"{address}/{page.relative_to(site)}")
        assert view.evaluate("document.documentElement.scrollWidth") <= width, page
        view.evaluate("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
        view.evaluate("Promise.all([...document.images].map(image => image.decode()))")  # raises where one is broken
        pictures += view.evaluate("document.images.length")
    assert pictures > 5
    assert errors == []
    assert [url for url in fetched if not url.startswith((address, "data:", f"blob:{address}"))] == []
    view.close()


@pytest.mark.slow
def test_every_public_name_has_its_docstring_in_the_reference(site, chromium):  # noqa: F811
    view = chromium.new_page()
    view.goto((site / "reference.html").as_uri())
    for package in (conditioned_attention, measure, experiments):
        for name in package.__all__:
            first = (getattr(package, name).__doc__ or "").strip().partition("\n")[0]
            if not name.startswith("_") and name != "VARIANTS":
                told = view.locator(f".doc-object:has(> [id$='.{name}'])").first.inner_text()
                assert re.sub(r"\W", "", first) in re.sub(r"\W", "", told), name
    assert view.locator("pre:has-text('>>> ')").count() > 10
    view.close()


@pytest.mark.slow
def test_every_recipe_and_every_setting_is_on_the_page_of_settings(site, chromium):  # noqa: F811
    view = chromium.new_page()
    view.goto((site / "settings.html").as_uri())
    assert {name.strip("¶\n ") for name in view.locator("h2").all_inner_texts()} == set(RECIPES)
    texts = view.locator(".doc-section-item .doc-name, li b").all_inner_texts()
    told = {name for text in texts for name in re.split(r",\s", text)}  # some are told together
    for name in RECIPES:
        for field in dataclasses.fields(recipe_class(name)):
            assert field.name in told, (name, field.name)
    assert told >= {field.name for field in dataclasses.fields(Training)}
    view.close()
