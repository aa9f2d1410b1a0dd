"""The first column of the tables on timm and transformers."""

import pytest

from tests.conversion.answers import answer, by_letter, by_reason


@pytest.mark.parametrize(
    ("ways", "word"),
    [
        (["hook", "class swap", "no attention"], "yes"),
        (["interface", "refused"], "partly"),
        (["hook, on request"], "partly"),
        (["refused", "no attention"], "no"),
        (["no attention"], "none"),
        ([], "none"),
    ],
)
def test_the_answer_is_that_of_all_classes_together(ways, word):
    assert answer(ways) == word


def test_every_name_stands_below_its_letter():
    found = {"xcit": {"XCA": "hook", "ClassAttn": "hook"}, "EvollaModel": {}, "edgenext": {"A": "refused"}}
    assert by_letter(found, "family") == [
        "## E", "", "| converts | family | how |", "| --- | --- | --- |",
        "| no | edgenext | refused: `A` |", "| none | EvollaModel |  |", "",
        "## X", "", "| converts | family | how |", "| --- | --- | --- |",
        "| yes | xcit | hook: `ClassAttn`, `XCA` |", "",
    ]  # fmt: skip


def test_one_reason_is_one_line():
    reasons = {"a.Second": "Second is a convolution", "First": "First is a convolution", "Third": "mixes"}
    assert by_reason(reasons) == ["- `First`, `a.Second`: is a convolution", "- `Third`: mixes"]
