"""Associative recall: sequences whose queries have one answer, a loss of nothing else, a model that learns."""

import dataclasses

import numpy as np
import pytest
import torch

from conditioned_attention.experiments.data.recall import IGNORED, RecallSequences
from conditioned_attention.experiments.models.gpt import GPT
from conditioned_attention.experiments.planning.estimate import estimate
from conditioned_attention.experiments.recipes.recall import RecallRecipe
from conditioned_attention.experiments.training.loop import train
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from tests.experiments.tiny import OFTEN, SELDOM
from tests.test_cli import call

SIZES = {"samples": 50, "vocabulary": 40, "pairs": 6, "length": 30}
SMALL = RecallRecipe(
    vocabulary=8,
    pairs=2,
    length=8,
    samples=8_000,
    eval_samples=64,
    model=GPT(context=8, hidden_size=32, layers=2, heads=2),
    training=Training(epochs=1, batch_size=32, lr=3e-3, warmup=0.4, evaluate_every=0.5, monitor_every=0),
)


def rows_of(folder, recipe, variant="baseline", launch=SELDOM):
    return train(recipe.task(), recipe.training, VARIANTS[variant], 0, folder, launch)


def without_time(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


# The sequences


@pytest.mark.parametrize("index", range(20))
def test_every_key_is_asked_for_once_and_has_one_answer(index):
    tokens, targets = (t.tolist() for t in RecallSequences(**SIZES)[index])
    keys, values = tokens[0:12:2], tokens[1:12:2]
    assert len(set(keys)) == len(set(values)) == 6
    assert max(keys) < 20 <= min(values)
    assert max(values) < 40
    asked = [i for i, target in enumerate(targets) if target != IGNORED]
    assert min(asked) >= 12
    assert sorted(tokens[i] for i in asked) == sorted(keys)
    assert {tokens[i]: targets[i] for i in asked} == dict(zip(keys, values))
    others = [token for i, token in enumerate(tokens[12:], 12) if i not in asked]
    assert not set(others) & {*keys, *values}, "a token in between would contradict a pair, or hide a query"


def test_queries_are_anywhere_but_rather_near_the_pairs():
    asked = torch.stack([t != IGNORED for _, t in map(RecallSequences(**{**SIZES, "pairs": 2}).__getitem__, range(50))])
    assert (asked.sum(1) == 2).all()
    places = asked.sum(0)[4:]
    assert not places[1::2].any(), "every second token"
    assert places[0] > places[2:].max()
    assert (places[::2] > 0).sum() > 6


def test_a_sequence_is_set_by_its_number_and_stream():
    one, two = RecallSequences(**SIZES), RecallSequences(**SIZES, stream=1)
    tokens, targets = one.__getitems__([7, 3])
    assert tokens.shape == targets.shape == (2, 30)
    assert tokens.dtype == targets.dtype == torch.int64
    np.random.seed(5)  # noqa: NPY002 - the loop sets it for every item
    for row, index in enumerate((7, 3)):
        again = RecallSequences(**{**SIZES, "samples": 10**12})[index]
        assert torch.equal(again[0], tokens[row])
        assert torch.equal(again[1], targets[row])
    seen = [{tuple(data[i][0].tolist()) for i in range(50)} for data in (one, two)]
    assert len(seen[0]) == len(seen[1]) == 50
    assert not seen[0] & seen[1]
    with pytest.raises(IndexError, match="there are 50 sequences, and none with the index 50"):
        one[50]


def test_the_evaluation_set_is_not_touched_by_tuning():
    usual, tuning = SMALL.task(), SMALL.task(tuning=True)
    streams = [task.eval_data().stream for task in (usual, tuning)] + [usual.train_data().stream]
    assert len(set(streams)) == 3
    assert tuning.train_data() == usual.train_data()


# Loss and score


class Answers(torch.nn.Module):
    """Finds the key in the pairs and says what stands behind it, at every place; ``wrong`` of them are one too high."""

    def __init__(self, pairs, vocabulary, wrong=None):
        super().__init__()
        self.pairs, self.vocabulary, self.wrong = pairs, vocabulary, wrong

    def forward(self, input_ids, use_cache):
        keys, values = input_ids[:, : 2 * self.pairs : 2], input_ids[:, 1 : 2 * self.pairs : 2]
        found = (input_ids[:, :, None] == keys[:, None]).long()
        said = (found * values[:, None]).sum(-1)
        if self.wrong is not None:
            said = torch.where(input_ids == keys[:, self.wrong, None], (said + 1) % self.vocabulary, said)
        logits = torch.zeros(*input_ids.shape, self.vocabulary).scatter(-1, said[..., None], 30.0)
        return type("Output", (), {"logits": logits})


def test_queries_alone_count():
    task = dataclasses.replace(SMALL, vocabulary=64, pairs=3, length=12, model=GPT(context=12)).task()
    batch = task.eval_data().__getitems__(range(8))
    for wrong, score, loss in ((None, 100.0, 0.0), (1, 200 / 3, 10.0)):
        model, evaluator = Answers(3, 64, wrong), task.evaluator()
        assert float(task.loss(model, batch)) == pytest.approx(loss, abs=1e-3)
        evaluator.update(model, batch, lambda found: found)
        assert evaluator.compute() == {"score": pytest.approx(score), "eval_loss": pytest.approx(loss, abs=1e-3)}


# Runs


@pytest.mark.slow
def test_it_learns(tmp_path):
    """Whoever answers with some value of the sequence has one half."""
    rows = list(rows_of(tmp_path, SMALL))
    assert rows[-1]["step"] == 250
    assert rows[-1]["seen"] == 8_000 * 8
    assert rows[-1]["score"] > 95
    assert rows[-1]["eval_loss"] < 0.1


@pytest.mark.slow
def test_an_interrupted_run_ends_as_the_unbroken_one(tmp_path):
    short = dataclasses.replace(SMALL, samples=640)
    expected = list(rows_of(tmp_path / "whole", short, "preconditioned"))
    rows = rows_of(tmp_path / "broken", short, "preconditioned", OFTEN)
    next(rows)
    del rows
    assert without_time(rows_of(tmp_path / "broken", short, "preconditioned")) == without_time(expected)


@pytest.mark.slow
def test_from_the_command_line(tmp_path, capsys):
    sizes = ["--vocabulary", "12", "--pairs", "2", "--length", "12", "--samples", "64", "--eval-samples", "16"]
    model = ["--context", "12", "--hidden-size", "16", "--layers", "1", "--heads", "1"]
    assert call("train", "recall", *sizes, *model, "--batch-size", "32", "--folder", str(tmp_path)) == 0
    assert "step 2  seen 768" in capsys.readouterr().out
    assert call("compare", "recall", *sizes, *model, "--dry-run") == 0


@pytest.mark.slow
def test_its_cost_is_estimated():
    rows = estimate(RecallRecipe().task(), RecallRecipe().training, ["baseline", "preconditioned"])
    assert {row.variant: (row.steps, row.tokens) for row in rows} == dict.fromkeys(
        ("baseline", "preconditioned"), (1500, 48_000 * 64)
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pairs": 0}, "samples and pairs must be at least 1, got 8000 and 0"),
        ({"samples": 0}, "samples and pairs must be at least 1, got 0 and 2"),
        ({"eval_samples": 0}, "samples and pairs must be at least 1, got 0 and 2"),
        ({"length": 7}, r"length must be even and at least 4 · pairs .* here 8, got 7"),
        ({"length": 6}, r"length must be even and at least 4 · pairs .* here 8, got 6"),
        ({"vocabulary": 4}, r"vocabulary must be even and at least 2 · pairs \+ 2 .* here 6, got 4"),
        ({"vocabulary": 13}, r"vocabulary must be even and .* got 13"),
        ({"length": 10}, "length=10 is more than the model sees, context=8"),
    ],
)
def test_wrong_settings(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(SMALL, **changes).task()
