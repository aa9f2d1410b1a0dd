"""The examples run as they stand, and say what they should."""

import re
from pathlib import Path

import pytest

from tests.pages import run_alone

EXAMPLES = Path(__file__).parents[1] / "examples"
SAYS = {
    "accelerate_loop": ["on 1 process(es)", "step 10: median log10 κ "],
    "lightning_loop": ["step 20: "],
    "lora": ["the same output: True"],
    "nano_gpt": ["step 30, loss "],
    "nn_transformer": ["transformer.decoder.layers.0.multihead_attn", "step 100: median log10 κ "],
    "own_attention": ["rows have length 1: True", "the plain model again: True"],
    "timm_loop": ["refused by a plain model: True", "the same output: True"],
    "torchtitan_style": ["step 15, loss "],
    "trainer": ["conditioning/log10_kappa", "step 20: ", "the same output: True"],
}


def test_all_of_them_are_run_and_short():
    assert {file.stem for file in EXAMPLES.glob("*.py")} == set(SAYS)
    page = (EXAMPLES / "README.md").read_text()
    for file in EXAMPLES.glob("*.py"):
        assert len(file.read_text().splitlines()) <= 60
        assert f"[{file.name}]({file.name})" in page


@pytest.mark.one_in(9)
@pytest.mark.parametrize("name", SAYS)
def test_example(name, tmp_path):
    (said,) = run_alone([(EXAMPLES / f"{name}.py").read_text()], tmp_path)
    for words in SAYS[name]:
        assert words in said
    losses = [float(loss) for loss in re.findall(r"^step \d+, loss (\S+)$", said, re.MULTILINE)]
    assert not losses or losses[-1] < losses[0], "it learns"
