"""Masked language modelling: text as blocks, as many tokens hidden in each of them, runs that go on."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from conditioned_attention.experiments.data.text import packing
from conditioned_attention.experiments.data.text.packing import Blocks, about_blocks, packed
from conditioned_attention.experiments.data.text.wordpiece import MASK, SPECIAL, train_wordpiece
from conditioned_attention.experiments.models.crammed_bert import CrammedBert
from conditioned_attention.experiments.recipes.masked_language import CrammedBertRecipe, SmallBert
from conditioned_attention.experiments.tasks.masked_tokens import AlwaysMasked, mask_tokens
from conditioned_attention.experiments.training.loop import train
from conditioned_attention.experiments.training.schedule import build_schedule
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from conditioned_attention.storage.files import UNFINISHED
from tests.experiments.tiny import OFTEN

TEXT = "\n\n".join(f"The {i % 9} cat {('sat', 'lay')[i % 2]} on the {i * 5 % 9} mat." for i in range(324))
SMALL = SmallBert(
    text="files",
    vocabulary=300,
    model=CrammedBert(context=8, hidden_size=32, layers=1, heads=2, mlp_size=32, init="width"),
    training=Training(
        epochs=2, batch_size=32, accumulation=2, ramp=0.5, order="stored", lr=5e-3, evaluate_every=1, monitor_every=0
    ),
)


def recipe(folder):
    (folder / "text.txt").write_text(TEXT)
    return dataclasses.replace(SMALL, path=folder / "text.txt", cache_dir=folder / "cache")


def test_a_quarter_of_every_block_is_hidden():
    ids = torch.arange(100, 228).repeat(300, 1)
    found = mask_tokens(ids, MASK, 50)
    x, positions, labels = (found[name] for name in ("input_ids", "masked_positions", "labels"))
    assert torch.equal(ids.gather(1, positions), labels)
    chosen = torch.zeros_like(ids).scatter(1, positions, 1).bool()
    assert (chosen.sum(1) == 32).all()  # 32 different ones
    assert torch.equal(x[~chosen], ids[~chosen])
    assert ((x == MASK).sum(1) >= 26).all()
    assert ((x[chosen] == ids[chosen]).reshape(300, 32).sum(1) == 3).all()
    others = (x < 50).sum() - 26 * 300
    assert others == 3 * 300
    share = chosen.float().mean(0)  # of each place: none is preferred
    assert (share - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / 300)
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\] and a token at least of 128, got 0.001"):
        mask_tokens(ids, MASK, 50, share=0.001)


def test_wordpiece_is_the_sources_and_the_same_every_time():
    texts = [TEXT[:999], "``Naïve''  words"]
    tokenizer = train_wordpiece(texts, 300)
    assert tokenizer.to_str() == train_wordpiece(texts, 300).to_str()
    assert [tokenizer.token_to_id(token) for token in SPECIAL] == list(range(7))
    assert tokenizer.get_vocab_size() <= 300
    assert tokenizer.encode("``NAÏVE''   cat").tokens == tokenizer.encode('"naive" cat').tokens
    assert tokenizer.encode("The cat", "").tokens == ["<cls>", "the", "cat", "<sep>", "<sep>"]
    assert tokenizer.decode(tokenizer.encode("the naive mat").ids) == "the naive mat"
    with pytest.raises(ValueError, match="vocabulary must be at least 195"):
        train_wordpiece(texts, 100)


@pytest.mark.parametrize("few", [1, 1024])
def test_blocks_are_the_documents_one_behind_the_other(tmp_path, monkeypatch, few):
    monkeypatch.setattr(packing, "_DOCUMENTS", few)
    documents = TEXT.split("\n\n")
    blocks, tokenizer = packed(tmp_path / "a", lambda: documents, lambda d: train_wordpiece(d, 300), 8)
    ids = [i for document in documents for i in tokenizer.encode(document).ids]
    assert blocks.__getitems__(range(len(blocks))).flatten().tolist() == ids[: len(ids) // 8 * 8]
    assert len(ids) - len(blocks) * 8 < 8
    again, _ = packed(tmp_path / "a", lambda: 1 / 0, lambda d: 1 / 0, 8)  # nothing is read or trained anew
    assert again.fingerprint() == blocks.fingerprint()
    train, held = blocks.split()
    smaller, validation = blocks.split(tuning=True)
    assert sorted([*train.rows, *held.rows]) == list(range(len(blocks)))
    assert sorted([*smaller.rows, *validation.rows]) == sorted(train.rows)
    assert {*held.rows // 32} == {9}
    assert torch.equal(held[1], blocks[int(held.rows[1])])
    assert held.fingerprint() != validation.fingerprint()


def test_blocks_appear_whole_or_not_at_all(tmp_path):
    def broken(documents):
        raise RuntimeError("no power")

    with pytest.raises(RuntimeError, match="no power"):
        packed(tmp_path / "a", lambda: ["x"], broken, 8)
    with pytest.raises(ValueError, match="shorter than one block of 8 tokens"):
        packed(tmp_path / "a", lambda: ["x"], train_wordpiece, 8)
    with pytest.raises(ValueError, match="length must be at least 2"):
        packed(tmp_path / "a", lambda: ["x"], train_wordpiece, 1)
    assert not list(tmp_path.iterdir())

    def slower(documents):  # another process is done first
        packed(tmp_path / "a", lambda: ["x y z"] * 3, train_wordpiece, 2)
        return train_wordpiece(documents)

    blocks, _ = packed(tmp_path / "a", lambda: ["a b"] * 9, slower, 2)
    assert len(blocks) == 6
    assert not list(tmp_path.glob(f".*{UNFINISHED}"))


def test_a_long_packing_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_DOCUMENTS", 3)
    monkeypatch.setattr(packing, "_SAVED", 2)
    documents = TEXT.split("\n\n")

    def broken(at):
        def read():
            for i, document in enumerate(documents):
                if i == at:
                    raise OSError("no network")
                yield document

        return read

    for at in (0, 50, 50, 200):
        with pytest.raises(OSError, match="no network"):
            packed(tmp_path / "a", broken(at), lambda _: train_wordpiece(documents, 300), 8, resumable=True)
    (unfinished,) = tmp_path.glob(f".*{UNFINISHED}")
    assert json.loads((unfinished / "progress.json").read_text())["documents"] == 198
    with (unfinished / "tokens.bin").open("ab") as file:
        file.write(b"what came after the last note")
    blocks, _ = packed(tmp_path / "a", lambda: documents, lambda _: 1 / 0, 8, resumable=True)
    whole, _ = packed(tmp_path / "b", lambda: documents, lambda _: train_wordpiece(documents, 300), 8)
    assert blocks.fingerprint() == whole.fingerprint()
    assert about_blocks(tmp_path / "a") == about_blocks(tmp_path / "b")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"tokens.bin", "tokenizer.json", "about.json"}


def test_documents_that_are_streamed_and_each_only_once(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    documents = [f"{text} Number {i}." for i, text in enumerate(TEXT.split("\n\n"))]
    rows = [{"text": text, "n": 1} for text in [*documents, " ", *documents[:9]]]
    (folder / "part.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = dataclasses.replace(SMALL, dataset=str(folder), cache_dir=tmp_path / "cache")
    plain, once, few = (
        dataclasses.replace(asked, **changes).task() for changes in ({}, {"unique": True}, {"documents": 310})
    )
    files = recipe(tmp_path)
    files.path.write_text("\n\n".join(documents))
    assert once.fingerprint() == files.task().fingerprint()
    assert "9 documents that were there before are left out, 324 stay" in once.notes
    assert plain.fingerprint() != once.fingerprint()
    assert len(few.train_data()) < len(plain.train_data())
    with pytest.raises(ValueError, match="cannot be streamed"):
        dataclasses.replace(asked, dataset_split="valid").task()
    (folder / "part.jsonl").write_text('{"body": "x"}')
    with pytest.raises(ValueError, match="has no column 'text' with strings, only body"):
        dataclasses.replace(asked).task()
    for changes, words in (
        ({"path": folder}, "goes with text='files', in place of path"),
        ({"documents": 0}, "documents must be at least 1"),
        ({"dataset": None, "documents": 3}, "documents must be at least 1, and goes with dataset"),
    ):
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(asked, **changes)


def test_documents_end_at_empty_lines_whatever_ends_a_line(tmp_path):
    found = recipe(tmp_path).task()
    (tmp_path / "text.txt").write_bytes(TEXT.replace("\n", "\r\n").encode())
    windows = dataclasses.replace(SMALL, path=tmp_path / "text.txt", cache_dir=tmp_path / "another").task()
    assert windows.fingerprint() == found.fingerprint()


def test_short_sentences_come_first(tmp_path):
    asked = recipe(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT.replace("mat.\n\nThe 7", "mat and. on. the. sea.\n\nThe 7"))
    plain, sorted_ = asked.task(), dataclasses.replace(asked, curriculum="sentences").task()
    tokenizer = Tokenizer.from_str(plain.finish(None)["tokenizer.json"])
    stop = tokenizer.token_to_id(".")
    stops = [int((sorted_.train_data()[i] == stop).sum()) for i in range(len(sorted_.train_data()))]
    assert stops == sorted(stops, reverse=True)
    assert stops[0] > stops[-1]
    assert sorted(sorted_.train_data().rows) == sorted(plain.train_data().rows)
    first = [row for row, count in zip(sorted_.train_data().rows, stops) if count == stops[0]]
    assert first == sorted(first), "of as many, as they lie"
    assert sorted_.eval_data().fingerprint() == plain.eval_data().fingerprint()
    assert any("of a vocabulary of 300" in note for note in plain.notes)
    with pytest.raises(ValueError, match="curriculum='sentences' needs order='stored'"):
        dataclasses.replace(asked, curriculum="sentences", training=Training(order="shuffled"))


def test_large_vocabularies_need_more_bits(tmp_path):
    for vocabulary, dtype in ((2**16, "<u2"), (2**16 + 1, "<u4")):
        np.array([[vocabulary - 1, 0]], dtype).tofile(tmp_path / "tokens")
        assert Blocks(tmp_path / "tokens", 2, vocabulary)[0].tolist() == [vocabulary - 1, 0]


def test_it_learns_and_goes_on_as_if_unbroken(tmp_path):
    task = recipe(tmp_path).task()
    expected = list(train(task, SMALL.training, VARIANTS["preconditioned"], 0, tmp_path / "whole"))
    assert expected[-1]["score"] < 0.7 * math.log(task.train_data().vocabulary)
    assert expected[-1]["accuracy"] > 5
    rows = train(task, SMALL.training, VARIANTS["preconditioned"], 0, tmp_path / "broken", OFTEN)
    next(rows)
    del rows
    resumed = list(train(task, SMALL.training, VARIANTS["preconditioned"], 0, tmp_path / "broken"))
    assert [row["score"] for row in resumed] == [row["score"] for row in expected]
    tokenizer = Tokenizer.from_file(str(tmp_path / "whole" / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == task.train_data().vocabulary


def test_evaluations_hide_always_the_same_tokens(tmp_path):
    task = recipe(tmp_path).task()
    held = task.eval_data()
    first, again = held.__getitems__([0, 3, 5]), held.__getitems__([5, 0])
    for name, values in first.items():
        assert torch.equal(values[[2, 0]], again[name])
    assert not torch.equal(first["masked_positions"][0], first["masked_positions"][1])
    torch.manual_seed(0)
    batch = torch.stack([task.train_data()[i] for i in range(4)])
    one, other = task.collate_train(batch), task.collate_train(batch)
    assert not torch.equal(one["masked_positions"], other["masked_positions"])
    assert isinstance(held, AlwaysMasked)


def test_an_evaluation_set_of_its_own_has_the_tokens_of_the_other(tmp_path):
    for name, text in (("train.txt", TEXT), ("test.txt", "Matcat sat on the cat. " * 9)):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / name).write_text(text)
    task = dataclasses.replace(SMALL, path=tmp_path / "texts", cache_dir=tmp_path / "cache").task()
    tokenizer = Tokenizer.from_str(task.finish(None)["tokenizer.json"])
    assert tokenizer.decode(task.eval_data().blocks[0].tolist()).startswith("matcat sat on")
    assert "matcat" not in tokenizer.get_vocab()
    assert len(task.train_data()) > 300


def test_the_published_schedule_and_batches():
    """min(1/4 + t, 4 - 4 t) times the rate after a share t of the run; 8,192 blocks after 60 % of it."""
    settings = CrammedBertRecipe().training
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], settings.lr)
    schedule = build_schedule(optimizer, settings, 200)
    for tick in range(200):
        t = tick / 200
        assert schedule.get_last_lr()[0] == pytest.approx(1e-3 * min(0.25 + t, 4 - 4 * t))
        optimizer.step()
        schedule.step()
    assert [settings.micro_batches(t) * settings.micro_batch for t in (0, 0.3, 0.6, 1)] == [128, 4096, 8192, 8192]
    with pytest.raises(ValueError, match="text='files' needs a path"):
        CrammedBertRecipe().task()
