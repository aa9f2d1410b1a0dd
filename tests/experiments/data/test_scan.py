"""Reading everything once: who is unreadable, how many may be, and what the cache may and may not do."""

import json
import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from conditioned_attention.experiments.data.scan import default_cache_dir, read_once, stamp_of, tell_unreadable

NAMES = [f"item{i}" for i in range(200)]


class Reader:
    """Reads integers; those in ``broken`` raise.  Counts what it was asked for."""

    def __init__(self, *broken):
        self.broken, self.asked, self.lock = set(broken), [], threading.Lock()

    def __call__(self, i):
        with self.lock:
            self.asked.append(i)
        if i in self.broken:
            raise OSError(f"number {i} is bad\nand more lines")
        return 2**32 - 1 - i


def find_unreadable(*args, **options):
    return read_once(*args, **options).unreadable


def test_everything_is_read_once_and_the_second_time_nothing(tmp_path):
    reader = Reader(3, 150)
    found = find_unreadable(NAMES, reader, "a", cache_dir=tmp_path)
    assert found == {3: "OSError: number 3 is bad", 150: "OSError: number 150 is bad"}
    assert list(found) == [3, 150], "in order, whichever thread was first"
    assert sorted(reader.asked) == list(range(200))
    again = Reader(3, 150)
    assert find_unreadable(NAMES, again, "a", cache_dir=tmp_path) == found
    assert sorted(again.asked) == [3, 150], "what was bad is tried again"
    again = Reader()
    assert find_unreadable(NAMES, again, "b", cache_dir=tmp_path) == {}, "another stamp, another scan"
    assert len(again.asked) == 200


def test_too_many_are_an_error_that_names_the_first(tmp_path):
    reader = Reader(*range(0, 22, 2))
    words = r"11 of 200 items cannot be read: item0 \(OSError: number 0 is bad\), item2 .*item8 .*, …\. At most max_unr"
    with pytest.raises(ValueError, match=words):
        find_unreadable(NAMES, reader, "a", cache_dir=tmp_path)
    assert len(find_unreadable(NAMES, reader, "a", max_unreadable=11, cache_dir=tmp_path)) == 11
    repaired = Reader(4)
    assert list(find_unreadable(NAMES, repaired, "a", cache_dir=tmp_path)) == [4]
    assert sorted(repaired.asked) == list(range(0, 22, 2)), "only those that were bad are tried again"
    assert list(find_unreadable(NAMES, Reader(4), "a", cache_dir=tmp_path)) == [4]


def test_a_reason_that_is_gone_is_forgotten_and_one_that_stays_is_told_as_it_is_now(tmp_path):
    """No stamp knows of permissions, disks that were away and libraries that were missing."""
    assert list(find_unreadable(NAMES, Reader(3, 150), "a", cache_dir=tmp_path)) == [3, 150]
    assert find_unreadable(NAMES, Reader(), "a", cache_dir=tmp_path) == {}
    third = Reader(3)
    assert find_unreadable(NAMES, third, "a", cache_dir=tmp_path) == {}
    assert third.asked == [], "it is known as readable now"


def test_what_was_read_is_kept_with_it(tmp_path):
    expected = [0 if i == 7 else 2**32 - 1 - i for i in range(200)]
    for _ in range(2):
        assert read_once(NAMES, Reader(7), "a", cache_dir=tmp_path).contents == expected
    assert read_once(NAMES, Reader(), "a", cache_dir=tmp_path).contents[7] == 2**32 - 8


def test_the_bound_itself():
    with pytest.raises(ValueError, match="max_unreadable must not be negative, got -1"):
        find_unreadable(NAMES, Reader(), "a", max_unreadable=-1)


def test_nothing_readable_is_an_error_whatever_the_bound(tmp_path):
    with pytest.raises(ValueError, match="nothing can be read: 2 of 2 items"):
        find_unreadable(NAMES[:2], Reader(0, 1), "a", cache_dir=tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"unreadable": {}}',
        b'{"items": 200, "unreadable": {}}',
        b'{"contents": "%s", "unreadable": []}' % (b"0" * 1600),
        b'{"contents": "%s", "unreadable": {}}' % (b"0" * 1592),
        b'{"contents": "%s", "unreadable": {}}' % (b"x" * 1600),
        b'{"contents": "%s", "unreadable": {"200": "beyond"}}' % (b"0" * 1600),
        b'{"contents": "%s", "unreadable": {"x": "no number"}}' % (b"0" * 1600),
    ],
)
def test_a_damaged_cache_file_is_made_anew(tmp_path, damage):
    file = tmp_path / "scan-a.json"
    file.write_bytes(damage)
    reader = Reader(7)
    assert list(find_unreadable(NAMES, reader, "a", cache_dir=tmp_path)) == [7]
    assert len(reader.asked) == 200
    assert json.loads(file.read_text())["unreadable"] == {"7": "OSError: number 7 is bad"}
    find_unreadable(NAMES, Reader(), "a", cache_dir=tmp_path)
    assert len(reader.asked) == 200


def test_the_cache_may_be_deleted_and_has_a_default(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "conditioned-attention"
    for _ in range(2):
        reader = Reader()
        find_unreadable(NAMES, reader, "a")
        assert len(reader.asked) == 200
        for file in default_cache_dir().iterdir():
            file.unlink()
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache" / "conditioned-attention"


def test_a_cache_that_cannot_be_written_is_an_error_before_the_reading(tmp_path):
    (tmp_path / "file").touch()
    reader = Reader()
    with pytest.raises(OSError, match=r"cache_dir=.*file/cache cannot be written .*; name another"):
        find_unreadable(NAMES, reader, "a", cache_dir=tmp_path / "file" / "cache")
    assert reader.asked == []


def _append(path, i):
    with open(path, "a") as file:
        return file.write(f"{i}\n")


def _scan_in_a_process(folder):
    find_unreadable(NAMES, lambda i: _append(folder / f"read-{os.getpid()}", i), "a", cache_dir=folder)


def test_of_processes_that_start_together_one_reads(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_scan_in_a_process, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    (log,) = tmp_path.glob("read-*")
    assert sorted(map(int, log.read_text().split())) == list(range(200))
    assert not list(tmp_path.glob("*.tmp"))


def test_ctrl_c_does_not_wait_for_the_rest(tmp_path, monkeypatch):
    """It comes while the main thread waits for the first results."""
    reader = Reader()

    def interrupt(done, **options):
        next(done)
        raise KeyboardInterrupt

    monkeypatch.setattr("rich.progress.track", interrupt)
    names = [str(i) for i in range(64 * 1000)]
    with pytest.raises(KeyboardInterrupt):
        find_unreadable(names, lambda i: time.sleep(0.0005) or reader(i), "a", cache_dir=tmp_path)
    assert len(reader.asked) < 64 * 200, "what the threads had begun, and no more"
    assert not list(tmp_path.glob("*.json")), "half a scan is no result"


def test_they_are_named_once_and_only_by_the_first_process(monkeypatch, recwarn):
    with pytest.warns(UserWarning, match=r"left out: 1 of 9 items cannot be read: a \(b\)"):
        assert tell_unreadable({"a": "b"}, 9) == ["left out, unreadable: a (b)"]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert tell_unreadable({"a": "b"}, 9) == ["left out, unreadable: a (b)"]
    assert tell_unreadable({}, 9) == []
    assert len(recwarn) == 0


def test_stamps():
    parts = [("a.png", 10, 1), ("b.png", 10, 1)]
    changed = [[("a.png", 11, 1), parts[1]], [("a.png", 10, 2), parts[1]], parts[:1], [("c.png", 10, 1), parts[1]]]
    stamps = {stamp_of(p) for p in [parts, *changed]}
    assert len(stamps) == 5
    assert stamp_of(list(parts)) in stamps
