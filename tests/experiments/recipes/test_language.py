"""Next-byte language modelling: real text, a split that leaks nothing, a model that learns and goes on."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from conditioned_attention.experiments.data.text.windows import (
    WORDNET_FILES,
    split_windows,
    standard_library_text,
    wordnet_glosses,
)
from conditioned_attention.experiments.models.gpt import GPT
from conditioned_attention.experiments.recipes.next_byte import NextByteRecipe
from conditioned_attention.experiments.tasks.next_token import spread
from conditioned_attention.experiments.training.launch import Launch
from conditioned_attention.experiments.training.loop import train
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from conditioned_attention.storage.json_lines import JsonLines
from conditioned_attention.storage.ownership import checkpoints_in

SMALL = NextByteRecipe(
    eval_windows=16,
    model=GPT(context=64, hidden_size=32, layers=2, heads=2, dropout=0.1),
    training=Training(epochs=1, tokens=30_000, batch_size=16, lr=4e-3, evaluate_every=0.03, monitor_every=0),
)
SELDOM = Launch(log_every=1)
OFTEN = Launch(checkpoint_seconds=0.0, log_every=1)


def rows_of(folder, recipe=SMALL, variant="preconditioned", launch=SELDOM):
    return train(recipe.task(), recipe.training, VARIANTS[variant], 0, folder, launch)


def without_time(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_it_learns_and_says_something(tmp_path):
    rows = list(rows_of(tmp_path))
    assert rows[-1]["step"] == math.ceil(30_000 / (16 * 64)) == 30
    assert rows[-1]["seen"] == 30 * 16 * 64
    assert rows[-1]["score"] < 3.6 < rows[0]["score"] < math.log(256) + 0.1
    assert rows[-1]["bits_per_byte"] == pytest.approx(rows[-1]["score"] / math.log(2))
    prompt, _, told = (tmp_path / "sample.txt").read_text().partition("|")
    assert prompt.encode() == SMALL.task().eval_data()[0][: len(prompt)].to(torch.uint8).numpy().tobytes()
    assert len(told) > 20


@pytest.mark.slow
def test_an_interrupted_run_ends_as_the_unbroken_one(tmp_path):
    """The weights of the first and the last layer are one tensor, and the checkpoint holds it once."""
    expected = list(rows_of(tmp_path / "whole"))
    rows = rows_of(tmp_path / "broken", launch=OFTEN)
    next(rows)
    del rows
    assert without_time(rows_of(tmp_path / "broken")) == without_time(expected)
    logs = [without_time(JsonLines(tmp_path / name / "train.jsonl").read()) for name in ("whole", "broken")]
    assert logs[0] == logs[1]
    samples = [(tmp_path / name / "sample.txt").read_bytes() for name in ("whole", "broken")]
    assert samples[0] == samples[1]


@pytest.mark.slow  # that C changes what a model computes is held for GPT-2 in tests/conversion
def test_c_changes_what_is_learned(tmp_path):
    plain, ours = (list(rows_of(tmp_path / name, variant=name)) for name in ("baseline", "preconditioned"))
    assert plain[-1]["score"] != ours[-1]["score"]


def test_the_loss_is_of_the_next_byte():
    """A model that knows the rule of a text has no loss; one that looks at the present byte alone has."""
    task = SMALL.task()

    class Knows(torch.nn.Module):
        def forward(self, input_ids, use_cache):
            logits = torch.full((*input_ids.shape, 256), -30.0).scatter(-1, (input_ids + 1)[..., None] % 256, 30.0)
            return type("Output", (), {"logits": logits})

    counting = torch.arange(65)[None].repeat(2, 1)
    assert task.loss(Knows(), counting) < 1e-6
    assert task.loss(Knows(), torch.zeros(2, 65, dtype=torch.long)) > 50


def test_places_spread_over_more_than_float32_can_count():
    for available in (2**24, 2**24 + 4, 2**30 + 33):
        places = spread(available, 2048, "eval_blocks")
        assert (places[0], places[-1], len(np.unique(places))) == (0, available - 1, 2048)
    before = torch.linspace(0, 99_999, 2048).round().long()
    assert spread(100_000, 2048, "eval_blocks").tolist() == before.tolist(), "what runs were scored on"


def test_the_split_leaks_nothing_and_covers_the_text():
    context = 8
    text = bytes((i * i // 7 + i // 251) % 256 for i in range(100_001))
    train, held = split_windows(text, context)
    smaller, validation = split_windows(text, context, tuning=True)
    numbered = torch.arange(12_500)  # of the windows, by their place
    blocks = numbered // 32 % 10
    whole = torch.frombuffer(bytearray(text), dtype=torch.uint8).unfold(0, context + 1, context)
    assert torch.equal(train.windows, whole[blocks != 9])
    assert torch.equal(held.windows, whole[blocks == 9])
    assert torch.equal(validation.windows, whole[blocks == 5])
    assert torch.equal(smaller.windows, whole[(blocks != 9) & (blocks != 5)])


def test_the_standard_library_is_english_enough():
    text = standard_library_text()
    assert len(text) > 400_000
    assert text.count(b" the ") > 2_000


def test_wordnet(tmp_path):
    header = "  1 This software and database is being provided to you, the LICENSEE, by Princeton University\n"
    for i, name in enumerate(WORDNET_FILES):
        line = f'0000174{i} 03 n 01 thing 0 001 ~ 00001930 n 0000 | gloss number {i}; "an example"  \n'
        (tmp_path / name).write_text(header + line)
    expected = "\n".join(f'gloss number {i}; "an example"' for i in range(4))
    assert wordnet_glosses(tmp_path) == expected.encode()
    (tmp_path / "data.adv").write_text("no definition here\n")
    with pytest.raises(ValueError, match=r"data\.adv has lines without a definition"):
        wordnet_glosses(tmp_path)
    (tmp_path / "data.adv").unlink()
    with pytest.raises(FileNotFoundError, match=r"data.adv is missing.*apt-get install wordnet-base.*--path"):
        wordnet_glosses(tmp_path)


def test_any_text_files(tmp_path):
    for name in ("a.txt", "b.md"):
        (tmp_path / name).write_bytes(standard_library_text()[:60_000])
    (tmp_path / "c.txt").write_bytes(b"\0\0")
    with pytest.warns(UserWarning, match=r"c\.txt"):
        task = dataclasses.replace(SMALL, text="files", path=tmp_path).task()
    assert len(task.train_data()) == pytest.approx(120_000 / 64 * 0.9, rel=0.05)
    assert "c.txt" in task.notes[0]
    assert task.notes[1] == "no evaluation set: every tenth block of 32 windows is held out"
    with pytest.raises(ValueError, match=r"c\.txt"):
        dataclasses.replace(SMALL, text="files", path=tmp_path, max_unreadable=0).task()


def test_an_evaluation_set_is_scored_on_and_never_trained_on(tmp_path, monkeypatch):
    """Nor is it touched while settings are chosen."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "train.txt").write_bytes(b"a" * 64 * 320 + b"b")
    (tmp_path / "Valid.txt").write_bytes(b"c" * 64 * 20 + b"d")
    recipe = dataclasses.replace(SMALL, text="files", path="~", eval_windows=None)
    task, tuning = recipe.task(), recipe.task(tuning=True)
    assert [len(data) for data in (task.train_data(), task.eval_data())] == [320, 20]
    assert [len(data) for data in (tuning.train_data(), tuning.eval_data())] == [288, 32]
    assert task.train_data().windows.unique().tolist() == [ord("a"), ord("b")]
    assert task.eval_data().windows.unique().tolist() == [ord("c"), ord("d")]
    assert tuning.eval_data().windows.unique().tolist() == [ord("a"), ord("b")]
    assert task.notes == ["trained on train, evaluated on Valid"]
    assert task.data_in_words()[0] == "windows of 64 bytes; 320 to train, 20 to evaluate"
    (tmp_path / "Valid.txt").write_bytes(b"c" * 64)
    with pytest.raises(ValueError, match="the text has 64 bytes, and a window with context=64 needs 65"):
        recipe.task()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eval_split": "test"}, "eval_split='test' needs text='files'"),
        ({"text": "files"}, "text='files' needs a path"),
        ({"path": "novel.txt"}, "path='novel.txt' is not for text='topics'"),
        ({"eval_windows": 0}, "eval_windows must be at least 1"),
        ({"model": GPT(context=1)}, "context must be at least 2"),
        ({"model": GPT(context=100_000)}, "with context=100000 it needs 32000000"),
    ],
)
def test_wrong_settings(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(SMALL, **changes).task()


@pytest.mark.parametrize(
    ("model", "words"),
    [({"heads": 3}, "heads divide hidden_size, got 128, 128, 4 and 3"), ({"dropout": 1.0}, "dropout must be in")],
)
def test_wrong_models(model, words):
    with pytest.raises(ValueError, match=words):
        GPT(**model)


# Budgets, which this task is the first to need


@pytest.mark.slow
def test_a_budget_of_seconds_ends_in_time_with_the_schedule_at_its_end(tmp_path):
    training = dataclasses.replace(SMALL.training, epochs=1000, tokens=None, seconds=1.2, final_lr=0.1, clip=None)
    rows = list(rows_of(tmp_path, dataclasses.replace(SMALL, training=training)))
    assert 1.2 <= rows[-1]["seconds"] < 2.2
    log = JsonLines(tmp_path / "train.jsonl").read()
    assert max(row["lr"] for row in log) == pytest.approx(4e-3, rel=0.05)
    end = torch.load(checkpoints_in(tmp_path)[-1] / "optimizer.bin", weights_only=True)
    assert end["param_groups"][0]["lr"] == pytest.approx(4e-4, rel=1e-3)
    assert list(rows_of(tmp_path, dataclasses.replace(SMALL, training=training))) == rows


@pytest.mark.slow
def test_a_budget_of_seconds_goes_on_with_what_is_left(tmp_path):
    training = dataclasses.replace(SMALL.training, epochs=1000, tokens=None, seconds=1.5)
    recipe = dataclasses.replace(SMALL, training=training)
    rows = rows_of(tmp_path, recipe, launch=OFTEN)
    first = next(rows)
    del rows
    rest = list(rows_of(tmp_path, recipe))
    assert rest[0] == first
    assert 1.5 <= rest[-1]["seconds"] < 2.5


def test_the_first_budget_that_is_used_up_ends_the_run():
    training = Training(epochs=3, batch_size=10, tokens=1_001)
    assert training.steps(100) == 30
    assert training.steps(100, tokens_per_sample=20) == 6, "rounded up: a budget is used up, not missed"
    assert training.evaluations(100, 20) == 1
    assert dataclasses.replace(training, seconds=1.0).evaluations(100) is None
