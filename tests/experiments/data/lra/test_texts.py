"""Folders of texts as bytes: classes, sets, and what is left out by name."""

import pytest

from conditioned_attention.experiments.data.lra.texts import read_labelled
from tests.experiments.data.lra.files import write_reviews


def texts_of(data):
    return [bytes(data.sequence(i) - 1) for i in range(len(data))]


def test_imdb_as_it_comes(tmp_path):
    write_reviews(tmp_path)
    data = read_labelled(tmp_path, 20, 32)
    assert data.classes == ["neg", "pos"]
    assert [len(data.train), len(data.test)] == [24, 24]
    for one in (data.train, data.test):
        assert [text[:1] for text in texts_of(one)] == [b"np"[label : label + 1] for label in one.labels]
        assert 0 < one.labels[:12].sum() < 12, "shuffled"
        assert max(map(len, texts_of(one))) == 20
    assert b"n test<br />\n" in texts_of(data.test)
    assert data.notes == [
        "left out, in no class's folder of train: urls_pos.txt",
        "left out, without a label: 12 texts in train/unsup",
        "trained on train, tested on test",
        "train: 20 texts of more than 20 bytes are cut",
        "test: 20 texts of more than 20 bytes are cut",
    ]
    ids, _ = data.train[0]
    assert ids.shape == (32,)
    assert ids[len(texts_of(data.train)[0]) :].sum() == 0
    again = read_labelled(tmp_path, 20, 32)
    assert again.train.fingerprint() == data.train.fingerprint() != read_labelled(tmp_path, 19, 32).train.fingerprint()


@pytest.mark.parametrize("name", ["val", "valid", "dev", "eval", "test", "testing"])
def test_what_is_said_of_the_training_set_comes_first(tmp_path, name):
    for part in ("train", name):
        for label in ("ham", "spam"):
            (tmp_path / part / label).mkdir(parents=True)
            (tmp_path / part / label / "0.txt").write_text("x")
        (tmp_path / part / "0.txt").write_text("x")
    notes = read_labelled(tmp_path, 100, 128).notes
    assert notes[:2] == [f"left out, in no class's folder of {part}: 0.txt" for part in ("train", name)]


def test_more_classes_than_a_byte_can_count(tmp_path):
    for label in range(300):
        for part in ("train", "test"):
            (tmp_path / part / f"{label:03}").mkdir(parents=True)
            (tmp_path / part / f"{label:03}" / "0.txt").write_text(f"{label}")
    data = read_labelled(tmp_path, 100, 128)
    assert [int(text) for text in texts_of(data.train)] == data.train.labels.tolist()


@pytest.mark.filterwarnings("ignore:left out")
def test_any_folder_and_its_broken_texts(tmp_path):
    for label in ("ham", "spam", "list"):
        (tmp_path / label).mkdir()
        for i in range(10):
            (tmp_path / label / f"{i}.txt").write_bytes(b"%s %d" % (label.encode(), i))
    (tmp_path / "ham" / "0.txt").write_bytes(b"")
    (tmp_path / "spam" / "1.txt").write_bytes(b"a\0b")
    (tmp_path / "spam" / "2.txt").write_bytes(b"spam \xff\xfe")
    data = read_labelled(tmp_path, 100, 128)
    assert data.classes == ["ham", "list", "spam"]
    assert len(data.train) + len(data.test) == 28
    assert 5 <= len(data.test) <= 6
    assert not set(texts_of(data.train)) & set(texts_of(data.test))
    assert "spam \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}".encode() in texts_of(data.train) + texts_of(
        data.test
    )
    assert data.notes[:3] == [
        "left out, unreadable: ham/0.txt (it is empty)",
        "left out, unreadable: spam/1.txt (it has NUL bytes: binary, or UTF-16)",
        "no test set: a fixed fifth of the texts is held out",
    ]
    assert data.notes[3].endswith(": 1 texts contain invalid UTF-8, which is read as U+FFFD")
    with pytest.raises(ValueError, match="At most max_unreadable=1 are left out"):
        read_labelled(tmp_path, 100, 128, max_unreadable=1)


def test_what_is_no_data_set_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere: texts go to"):
        read_labelled(tmp_path / "nowhere", 9, 9)
    write_reviews(tmp_path)
    (tmp_path / "test" / "neutral").mkdir()
    (tmp_path / "test" / "neutral" / "1.txt").write_text("x")
    with pytest.raises(ValueError, match="test has classes that are missing from the training set: neutral"):
        read_labelled(tmp_path, 9, 9)
    lonely = tmp_path / "test" / "neutral"
    with pytest.raises(ValueError, match="neutral has 0 classes of texts, nothing: nothing to tell apart"):
        read_labelled(lonely, 9, 9)
