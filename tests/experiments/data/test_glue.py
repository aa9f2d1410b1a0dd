"""GLUE's files: quotes, tabs and empty cells; broken lines are counted and named."""

import datasets
import pytest

from conditioned_attention.experiments.data.text.glue import GLUE, read_glue
from conditioned_attention.experiments.data.text.labelled import LabelledTexts, TextSets
from tests.experiments.labelled_texts import HEADERS, sentence, write_glue


@pytest.mark.parametrize("name", GLUE)
def test_every_task_as_released(tmp_path, name):
    write_glue(tmp_path, [name], train=9, dev=6)
    found, task = read_glue(tmp_path, name), GLUE[name]
    labels = len(task.classes) or 3
    expected = [i % labels * (1.0 if task.classes else 2.5) for i in range(9)]
    assert found.train.labels == expected
    texts = found.train.seconds or found.train.firsts
    assert texts == [sentence(i, i % labels) for i in range(9)]
    assert found.train.firsts == (['"the first'] * 9 if len(task.texts) == 2 else texts)
    assert list(found.held) == (["matched", "mismatched"] if name == "mnli" else ["dev"])
    assert all(len(one) == 6 for one in found.held.values())
    assert len(found.classes) == len(task.classes)
    assert found.notes == []


def lines_of(name, file, change, folder):
    path = folder / GLUE[name].folder / file
    lines = path.read_bytes().split(b"\n")
    change(lines)
    path.write_bytes(b"\n".join(lines))


@pytest.mark.filterwarnings("ignore:left out")
def test_broken_lines_are_counted_and_named(tmp_path):
    write_glue(tmp_path, ["qqp", "cola"])

    def breaks(lines):
        lines[1] = b"1\t2\t3\twhat is"  # a question with a line feed in it
        lines[2] = b"this\tone more\t1"
        lines[3] = b"1\t2\t3\t \tone\t1"
        lines[4] = b"1\t2\t3\tone\ttwo\t2"
        lines[5] = b"1\t2\t3\tone\t\xff\t1"
        lines[6] = '1\t2\t3\tfar\u2028off\x85 \'it"\tend "of\t1\r'.encode()

    lines_of("qqp", "train.tsv", breaks, tmp_path)
    found = read_glue(tmp_path, "qqp")
    assert len(found.train) == 35
    assert (found.train.firsts[0], found.train.seconds[0]) == ("far\u2028off\x85 'it\"", 'end "of')
    assert found.notes == [
        "left out, unreadable: QQP/train.tsv, line 2 (it has 4 columns, not 6)",
        "left out, unreadable: QQP/train.tsv, line 3 (it has 3 columns, not 6)",
        "left out, unreadable: QQP/train.tsv, line 4 (it has an empty text)",
        "left out, unreadable: QQP/train.tsv, line 5 (its label is '2')",
        "left out, unreadable: QQP/train.tsv, line 6 (it is no UTF-8)",
    ]
    with pytest.raises(ValueError, match=r"5 of 40 items .*At most max_unreadable=4 are left out"):
        read_glue(tmp_path, "qqp", max_unreadable=4)
    lines_of("cola", "dev.tsv", lambda lines: lines.__setitem__(0, b"gj04\t1\t\tA first line."), tmp_path)
    assert read_glue(tmp_path, "cola").held["dev"].firsts[0] == "A first line.", "it has no header"


def test_what_is_no_task_is_said(tmp_path):
    write_glue(tmp_path, ["rte", "stsb", "sst2"])
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*QNLI: qnli is read from"):
        read_glue(tmp_path, "qnli")
    (tmp_path / "RTE" / "dev.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"dev\.tsv is missing"):
        read_glue(tmp_path, "rte")
    lines_of("sst2", "train.tsv", lambda lines: lines.__setitem__(0, b"text\tlabel"), tmp_path)
    with pytest.raises(ValueError, match="has no column 'sentence', only text, label"):
        read_glue(tmp_path, "sst2")
    lines_of("stsb", "dev.tsv", lambda lines: lines.__setitem__(1, lines[1].replace(b"2.500", b"5.1")), tmp_path)
    with pytest.warns(UserWarning, match="no number from 0 to 5"):
        assert len(read_glue(tmp_path, "stsb").held["dev"]) == 19
    (tmp_path / "STS-B" / "dev.tsv").write_text("\t".join(HEADERS["stsb"]))
    with pytest.raises(ValueError, match=r"there is nothing to read in STS-B/dev\.tsv"):
        read_glue(tmp_path, "stsb")


@pytest.mark.filterwarnings("ignore:left out")
def test_saved_data_sets(tmp_path):
    """As the hub has them: other columns, numbers for classes, by whatever names, and -1 for no label."""
    names = datasets.ClassLabel(names=["not_entailment", "entailment"])
    features = datasets.Features(
        {"premise": datasets.Value("string"), "hypothesis": datasets.Value("string"), "label": names}
    )
    rows = {"premise": ["a", "b", "c", ""], "hypothesis": ["d", "e", None, "g"], "label": [0, 1, 1, 1]}
    part = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": part, "validation": part}).save_to_disk(tmp_path / "rte")
    found = read_glue(tmp_path, "rte")
    assert (found.train.firsts, found.train.seconds, found.train.labels) == (["a", "b"], ["d", "e"], [1, 0])
    assert found.notes[:2] == [f"left out, unreadable: rte/train, row {i} (it has an empty text)" for i in (2, 3)]
    stsb = datasets.Dataset.from_dict({"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [0.5, -1.0]})
    datasets.DatasetDict({"train": stsb, "validation": stsb}).save_to_disk(tmp_path / "STS-B")
    assert read_glue(tmp_path, "stsb").held["dev"].labels == [0.5]
    datasets.DatasetDict({"train": stsb, "validation": stsb}).save_to_disk(tmp_path / "MRPC")
    with pytest.raises(ValueError, match="nothing can be read"):  # numbers with a fraction are no classes
        read_glue(tmp_path, "mrpc")
    pairs = datasets.Dataset.from_dict({"question": ["a"], "sentence": ["b"], "label": [0]})
    datasets.DatasetDict({"train": pairs}).save_to_disk(tmp_path / "qnli")
    with pytest.raises(ValueError, match="has no split 'validation', only train"):
        read_glue(tmp_path, "qnli")


def test_a_tenth_of_the_training_set_for_tuning():
    texts = LabelledTexts()
    for i in range(40):
        texts.add([f"a{i}", f"b{i}"], i % 2)
    found = TextSets(texts, {"dev": LabelledTexts(["never"], ["seen"], [0])}, ("no", "yes"), []).for_tuning()
    held = found.held["dev"]
    assert (len(found.train), len(held), sum(held.labels)) == (36, 4, 2)
    pairs = {*zip(found.train.firsts, found.train.seconds), *zip(held.firsts, held.seconds)}
    assert pairs == {(f"a{i}", f"b{i}") for i in range(40)}
    assert found._replace(classes=()).for_tuning().train.labels


def test_the_headers_are_the_released_ones():
    assert set(HEADERS) | {"cola"} == set(GLUE)
