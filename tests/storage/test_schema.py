"""Schemas of stored files: what fits, and the words for what does not."""

import errno
import os
from typing import Annotated, Any, TypedDict

import pytest

from conditioned_attention.storage.files import read_json, write_json, write_text
from conditioned_attention.storage.json_lines import JsonLines
from conditioned_attention.storage.schema import Count, Rule, check


class Inner(TypedDict):
    score: float | None


class Outer(Inner, total=False):
    seed: Count
    rows: Annotated[list[Inner], Rule(bool, "a list that is not empty")]
    told: dict[str, str] | None
    other: Any


GOOD = {"score": 1, "seed": 3, "rows": [{"score": None, "more": []}], "told": {"a": "b"}, "other": [None]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"score": None, "told": None}, None),
        ({"score": "x"}, "score is 'x'; valid is a finite number or null"),
        ({"score": True}, "score is true; valid is a finite number or null"),
        ({"score": float("inf")}, "score is inf; valid is a finite number or null"),
        ({"seed": 1.5}, "seed is 1.5; valid is a whole number from 0 on"),
        ({"seed": -1}, "seed is -1; valid is a whole number from 0 on"),
        ({"rows": []}, r"rows is a list, \[\]; valid is a list that is not empty"),
        ({"rows": [{"score": 1}, {}]}, r"rows\[1\]\.score is missing; valid is a finite number or null"),
        ({"rows": {"score": 1}}, r"rows is an object, .*; valid is a list that is not empty"),
        ({"told": {"a": 1}}, r"told\.a is 1; valid is text"),
        ({"told": 1}, "told is 1; valid is an object or null"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(change, words):
    data = {**GOOD, **change}
    if words is None:
        check(data, Outer, "a.json")
    else:
        with pytest.raises(ValueError, match=f"^a.json: {words}$"):
            check(data, Outer, "a.json")


def test_the_whole_may_be_wrong(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"a\.json: the content is a list, \[1\]; valid is an object$"):
        read_json(tmp_path / "a.json", Outer)
    (tmp_path / "a.jsonl").write_text('{"score": 1}\n{"seed": 2}\n')
    log = JsonLines(tmp_path / "a.jsonl", Outer)
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: score is missing"):
        log.read()
    with pytest.raises(ValueError, match=r"a\.jsonl, last line: score is missing"):
        log.last()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "is damaged: it holds no JSON"),
        (b"\xff", "is damaged: it holds no JSON"),
        (b"[" * 100_000, "is damaged: it holds no JSON"),
        (b'{"a": 1e999}', "valid is whole letters of Unicode and numbers below 1e308"),
        (b'{"a": 1' + b"0" * 400 + b"}", "valid is whole letters of Unicode and numbers below 1e308"),
        (rb'{"\ud800": 1}', "valid is whole letters of Unicode and numbers below 1e308"),
    ],
)
def test_what_could_not_be_written_again_is_not_read(tmp_path, text, words):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(ValueError, match=rf"a\.json.*{words}"):
        read_json(tmp_path / "a.json")


def test_numbers_that_json_does_not_have_are_null(tmp_path):
    (tmp_path / "a.json").write_text('[NaN, Infinity, -Infinity, 1e300, "\\ud83d\\ude00"]')
    assert read_json(tmp_path / "a.json") == [None, None, None, 1e300, "😀"]


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as the kernel says it: it knows no name

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*report\.html"):
        write_text(tmp_path / "report.html", "x")
    assert not list(tmp_path.iterdir())


def test_what_is_written_can_be_read(tmp_path):
    """Also a path that is not UTF-8, which JSON would hold as half a letter."""
    write_json(tmp_path / "a.json", {"start_from": "caf\udce9", "lr": float("inf")})
    assert read_json(tmp_path / "a.json") == {"start_from": r"caf\udce9", "lr": None}
