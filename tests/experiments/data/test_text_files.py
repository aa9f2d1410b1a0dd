"""Text from files, folders and saved data sets; this repository's own pages are the text."""

import os
from pathlib import Path

import pytest

from conditioned_attention.experiments.data.text.files import read_text_sets, read_texts

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "texts"
    (root / "b" / "deeper").mkdir(parents=True)
    (root / "a.md").write_bytes((ROOT / "README.md").read_bytes())
    (root / "b" / "deeper" / "LICENSE.TXT").write_bytes((ROOT / "LICENSE").read_bytes())
    (root / "b" / "code.py").write_bytes(Path(__file__).read_bytes())
    (root / "c.rst").write_bytes("Grüße\r\n".encode("latin-1"))
    (root / ".hidden.txt").write_text("x")
    (root / ".git").mkdir()
    (root / ".git" / "notes.txt").write_text("x")
    return root


def test_a_folder(folder):
    texts = dict(read_texts(folder))
    assert list(texts) == ["a.md", "b/deeper/LICENSE.TXT", "c.rst"]
    assert texts["a.md"] == (ROOT / "README.md").read_bytes()
    assert texts["c.rst"] == b"Gr\xfc\xdfe\r\n", "raw bytes, whatever their encoding"
    assert [name for name, _ in read_texts(folder, suffixes=[".py"])] == ["b/code.py"]


def test_a_file_of_any_suffix():
    assert read_texts(str(ROOT / "Makefile")) == [("Makefile", (ROOT / "Makefile").read_bytes())]


def test_what_is_no_text_is_left_out_by_name(folder):
    (folder / "binary.txt").write_bytes(b"abc\0def")
    (folder / "wide.txt").write_text("abc", encoding="utf-16")
    (folder / "empty.txt").touch()
    (folder / "gone.txt").symlink_to(folder / "nowhere")
    (folder / "later.txt").write_text("kept")
    notes = []
    with pytest.warns(UserWarning, match=r"left out: 4 of 8 items cannot be read: binary.txt \(it has NUL bytes"):
        texts = read_texts(folder, notes=notes)
    assert [name for name, _ in texts] == ["a.md", "b/deeper/LICENSE.TXT", "c.rst", "later.txt"]
    assert notes.pop(0) == "left out, other files by suffix: 1 .py"
    assert [note.split("unreadable: ")[1].split(" (")[0] for note in notes] == [
        "binary.txt", "empty.txt", "gone.txt", "wide.txt",
    ]  # fmt: skip
    assert "FileNotFoundError" in notes[2]
    with pytest.raises(ValueError, match=r"4 of 8 items cannot be read: .*max_unreadable=3"):
        read_texts(folder, 3)


def test_links_and_thumbnails(folder, tmp_path):
    before = read_texts(folder)
    (folder / "b" / "up").symlink_to(folder)
    (folder / "@eaDir").mkdir()
    (folder / "@eaDir" / "a.md").write_text("x")
    notes = []
    assert read_texts(folder, notes=notes) == before
    assert notes[:2] == [
        "left out, links to folders that are already part of the data or contain them: b/up",
        "left out, folders that systems make: @eaDir",
    ]


def write(folder, **texts):
    for name, text in texts.items():
        file = folder / name.replace("_", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{file}.txt").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("names", "held"),
    [
        (("train", "test"), "test"),
        (("Training", "dev"), "dev"),
        (("train_a", "valid_b"), "valid"),
        (("TRAIN_a", "eval"), "eval"),
        (("wiki.train", "wiki.test"), "test"),
    ],
)
def test_a_folder_with_an_evaluation_set_does_not_train_on_it(tmp_path, names, held):
    notes = []
    write(tmp_path, **dict(zip(names, ("one", "two"))))
    assert read_text_sets(tmp_path, notes=notes) == (b"one", b"two")
    assert notes == [f"trained on {names[0].removeprefix('wiki.').partition('_')[0]}, evaluated on {held}"]


def test_a_folder_without_an_evaluation_set_is_one_text(tmp_path):
    write(tmp_path, training="one", chapter="two")
    (tmp_path / "pictures").mkdir()
    assert read_text_sets(tmp_path, notes=[]) == (b"two\n\none", None)
    assert read_text_sets(tmp_path / "chapter.txt", notes=[]) == (b"two", None)


def test_a_folder_whose_sets_are_not_clear(tmp_path, monkeypatch):
    write(tmp_path, test="two", chapter="three")
    with pytest.raises(ValueError, match="has no training set, named train or training, only chapter, test"):
        read_text_sets(tmp_path, notes=[])
    write(tmp_path, train="one")
    with pytest.raises(ValueError, match="has train, test, but also chapter, whose names do not say what they are for"):
        read_text_sets(tmp_path, notes=[])
    notes = []
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert read_text_sets(f"~/{tmp_path.name}", eval_split="test", notes=notes) == (b"one", b"two")
    assert notes == ["left out, beside these sets: chapter", "trained on train, evaluated on test"]
    write(tmp_path, train_a="one")
    with pytest.raises(ValueError, match=r"has train and train\.txt: one of them can be the set train"):
        read_text_sets(tmp_path, notes=[])
    with pytest.raises(ValueError, match="eval_split='test' needs a training set beside it"):
        read_text_sets(tmp_path / "chapter.txt", eval_split="test", notes=[])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(folder):
    (folder / "a.md").chmod(0)
    with pytest.warns(UserWarning, match=r"a.md \(PermissionError"):
        assert len(read_texts(folder)) == 2


def test_nothing_to_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        read_texts(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"holds no text: no file that ends in .txt, .text, .md, .rst"):
        read_texts(tmp_path)
    (tmp_path / "only").touch()
    with pytest.raises(ValueError, match=r"nothing can be read: 1 of 1 items cannot be read: only \(it is empty\)"):
        read_texts(tmp_path / "only")
    with pytest.raises(ValueError, match="split='train' is for saved data sets"):
        read_texts(ROOT / "LICENSE", split="train")
    with pytest.raises(ValueError, match="max_unreadable must not be negative"):
        read_texts(ROOT / "LICENSE", -1)


def test_a_saved_data_set(tmp_path):
    datasets = pytest.importorskip("datasets")
    lines = (ROOT / "README.md").read_text().splitlines(keepends=True)
    data = datasets.DatasetDict(
        train=datasets.Dataset.from_dict({"text": [*lines[:20], "", None], "n": range(22)}),
        test=datasets.Dataset.from_dict({"text": lines[20:30], "n": range(10)}),
    )
    data.save_to_disk(str(tmp_path / "d"))
    with pytest.warns(UserWarning, match=r"left out: 1 of 31 items cannot be read: train\[21\] \(it has no text\)"):
        texts = read_texts(tmp_path / "d")
    assert b"".join(data for _, data in texts).decode() == "".join(lines[:30]), "empty rows are no matter"
    assert texts[-1][0] == "test[9]"
    assert len(read_texts(tmp_path / "d", split="test")) == 10
    with pytest.warns(UserWarning, match="left out: 1 of 21"):
        train, held = read_text_sets(tmp_path / "d", notes=[])
    assert train.decode() == "\n\n".join(lines[:20])
    assert held.decode() == "\n\n".join(lines[20:30]), "the test split is not trained on"
    datasets.DatasetDict(a=data["train"], b=data["test"]).save_to_disk(str(tmp_path / "unclear"))
    with pytest.raises(ValueError, match="has no training set, only the splits a, b"):
        read_text_sets(tmp_path / "unclear", notes=[])
    with pytest.raises(ValueError, match=r"split='dev' is not in .*; valid are train, test"):
        read_texts(tmp_path / "d", split="dev")
    data.remove_columns("text").save_to_disk(str(tmp_path / "without"))
    with pytest.raises(ValueError, match="has no column 'text', only n"):
        read_texts(tmp_path / "without")
    data["test"].map(lambda row: {"text": ""}).save_to_disk(str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"there is nothing to read in .*none"):
        read_texts(tmp_path / "none")
