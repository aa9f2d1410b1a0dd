"""Splits that never change."""

import pytest

from conditioned_attention.experiments.data.split import hold_out
from conditioned_attention.experiments.recipes.small_images import Digits, FashionMNIST


def test_every_item_is_in_one_part_and_every_class_in_both():
    labels = [0] * 50 + [1] * 23 + [2] * 7
    rest, held = hold_out(labels, 5)
    assert sorted([*rest, *held]) == list(range(80))
    assert len(held) == 16
    for label, share in ((0, 10), (1, 4.6), (2, 1.4)):
        assert sum(labels[i] == label for i in held) == pytest.approx(share, abs=1)
    assert [labels[i] for i in held] != sorted(labels[i] for i in held), "shuffled"


def test_the_split_is_this_one():
    """A run of last year must train on the same items as one of today."""
    assert hold_out([0, 1, 0, 1, 0, 1, 0, 1, 0, 1], 5) == ([2, 8, 9, 1, 6, 3, 0, 5], [4, 7])


def test_the_only_item_of_a_class_stays():
    rest, held = hold_out(list(range(40)), 5)
    assert (len(rest), held) == (40, [])
    for twice in range(3):
        labels = [0] * 20 + [1] * (1 + twice)
        assert 1 in {labels[i] for i in hold_out(labels, 5)[0]}


def test_whole_groups_are_held_out():
    groups = [i // 3 for i in range(90)]
    labels = [group % 2 for group in groups]
    rest, held = hold_out(labels, 5, groups)
    assert sorted([*rest, *held]) == list(range(90))
    assert {groups[i] for i in rest}.isdisjoint({groups[i] for i in held})
    assert [sum(labels[i] == label for i in held) for label in (0, 1)] == [9, 9]
    assert hold_out(labels, 5, [f"{i:02}" for i in range(90)]) == hold_out(labels, 5), "each is one of its own"
    with pytest.raises(ValueError, match="2 groups are too few to hold out one in 5"):
        hold_out([0] * 90, 5, [0, 1] * 45)


def test_too_few():
    with pytest.raises(ValueError, match="3 items are too few to hold out one in 5"):
        hold_out([0, 0, 1], 5)


@pytest.mark.parametrize("recipe", [Digits(), FashionMNIST(train_limit=300)])
def test_recipes_tune_on_nine_tenths(recipe):
    if isinstance(recipe, FashionMNIST) and not recipe.data_dir.exists():
        pytest.skip("dataset-fashion-mnist is not installed")
    full, tuning = recipe.task(), recipe.task(tuning=True)
    train, held = tuning.train_data(), tuning.eval_data()
    whole = full.train_data()
    assert len(held) == pytest.approx(len(whole) / 10, abs=1)
    assert len(train) + len(held) == len(whole)
    rows = {tuple(image.flatten().tolist()) for image in whole.images}
    assert {tuple(i.flatten().tolist()) for data in (train, held) for i in data.images} == rows, "none of the test set"
    assert recipe.task(tuning=True).eval_data().labels.equal(held.labels)
    assert set(held.labels.tolist()) == set(range(10))
