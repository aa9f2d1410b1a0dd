"""The gallery's page runs as written, and its pictures are those that it makes."""

import re

import numpy as np
import pytest
from PIL import Image

from conditioned_attention.experiments.commands import compare_recipe
from conditioned_attention.experiments.recipes.small_images import Digits
from conditioned_attention.experiments.report.write import write_report
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.measure.plots import THEMES
from tests.gallery import DOCS, run_page

PAGE = (DOCS / "gallery.md").read_text()
NAMES = re.findall(r'src="pictures/(.*?)-light\.png"', PAGE)


@pytest.mark.slow
def test_the_page_runs(tmp_path):
    """On a comparison of the same variants that has hardly begun to train."""
    recipe = Digits(training=Training(epochs=1, tokens=64))
    variants = re.search(r"--variants (.*?) --", PAGE).group(1).split()
    write_report(compare_recipe(recipe, variants, 1, tmp_path, progress=False, cost=False), tmp_path)
    pictures = run_page(PAGE, tmp_path, "dark")
    assert list(pictures) == NAMES
    assert len({axes[0].figure for axes in pictures.values()}) == len(NAMES)
    for axes in pictures.values():
        assert axes[0].figure.get_facecolor()[:3] == pytest.approx([int(c, 16) / 255 for c in ("0D", "11", "17")])
    assert len(pictures["kappa"][0].get_legend().get_texts()) == len(pictures["runs_heads"]) == len(variants)


def test_pictures_are_those_of_the_page_and_small():
    files = {file.name for file in (DOCS / "pictures").iterdir()}
    assert files == {f"{name}-{theme}.png" for name in NAMES for theme in THEMES}
    assert max((DOCS / "pictures" / file).stat().st_size for file in files) < 100_000


def test_a_picture_has_two_pixels_for_one_of_the_page():
    for width, name in re.findall(r'<img width="(\d+)" .*?src="pictures/(.*?)\.png"', PAGE):
        assert Image.open(DOCS / "pictures" / f"{name}.png").width // 2 == int(width), name
    assert PAGE.count("<img ") == PAGE.count('<img width="') == len(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("theme", THEMES)
def test_pictures_are_light_and_dark(theme):
    ground = [int(THEMES[theme].background[i : i + 2], 16) for i in (1, 3, 5)]
    for name in NAMES:
        pixels = np.asarray(Image.open(DOCS / "pictures" / f"{name}-{theme}.png").convert("RGB"))
        assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == ground).all(), name
        assert 0.01 < (pixels != ground).any(-1).mean() < 0.9, name


def test_the_page_says_what_makes_it():
    """The command on the page is the Makefile's."""
    rule = (DOCS.parent / "Makefile").read_text().partition("gallery: ")[2].partition("\n\n")[0]
    command = re.search(r"^conditioned-attention compare .*$", PAGE, re.MULTILINE).group()
    assert command in re.sub(r"\s*\\\n\s*", " ", rule)
