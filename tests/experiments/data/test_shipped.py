"""Labelled texts of packages: ratings in archives within archives, and WordNet's nouns."""

import io
import tarfile

import pytest

from conditioned_attention.experiments.data.text.shipped import read_hypernyms, read_rated
from tests.experiments.labelled_texts import sentence, write_nouns, write_rated


def test_ratings_by_their_sign_and_as_they_are(tmp_path):
    folder = write_rated(tmp_path / "rated")
    found, rated = (read_rated(folder, "news", target) for target in ("sign", "mean"))
    train, held = found.train, found.held["held_out"]
    assert len(train) + len(held) == 60
    assert 6 <= len(held) <= 20
    numbers = [int(text.split()[3]) for text in (*train.firsts, *held.firsts)]
    assert sorted(numbers) == list(range(60))
    assert train.labels == [float(i % 3 - 1 + 0.5 > 0) for i in numbers[: len(train)]]
    assert {i // 2 for i in numbers[: len(train)]}.isdisjoint({i // 2 for i in numbers[len(train) :]}), "an article"
    assert rated.train.labels == [float(f"{i % 3 - 1}.5") for i in numbers[: len(train)]]
    assert (found.classes, rated.classes) == (("negative", "positive"), ())
    tuned = found.for_tuning()
    sides = [{int(text.split()[3]) // 2 for text in part.firsts} for part in (tuned.train, tuned.held["held_out"])]
    assert sides[0].isdisjoint(sides[1]), "while settings are chosen too"
    few = train.drawn(7)
    assert len(few) == 7
    assert set(few.firsts) < set(train.firsts)
    assert few == train.drawn(7)


def packed(name, data):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return content.getvalue()


@pytest.mark.filterwarnings("ignore:left out")
def test_archives_and_broken_lines(tmp_path):
    lines = f"1\t1.5\t{sentence(0, 0)}\n2\t0\tneutral\n3\tmuch\tx\n4\t1\n5\t-1\t \n6\t-1.5\tso\tso\n7\t-2\té\n".encode()
    inner = packed("hutto_ICWSM_2014/tweets_GroundTruth.txt", lines)
    archive = tmp_path / "vaderSentiment-3.3.2.tar.gz"
    archive.write_bytes(packed("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz", inner))
    found = read_rated(archive, "tweets", "sign")
    assert sorted(found.train.firsts + found.held["held_out"].firsts) == [sentence(0, 0), "é"]
    assert found.notes == [
        "tweets: 1 texts with a mean of 0 are left out",
        "left out, unreadable: tweets_GroundTruth.txt, line 3 (its rating is 'much', no number from -4 to 4)",
        "left out, unreadable: tweets_GroundTruth.txt, line 4 (it has 2 columns, not 3)",
        "left out, unreadable: tweets_GroundTruth.txt, line 5 (it has an empty text)",
        "left out, unreadable: tweets_GroundTruth.txt, line 6 (it has 4 columns, not 3)",
        "held out: a fixed fifth of the documents",
    ]
    assert read_rated(tmp_path, "tweets", "mean").train.labels
    with pytest.raises(FileNotFoundError, match=r"holds no movieReviewSnippets_GroundTruth\.txt. The texts are in"):
        read_rated(archive, "movies", "sign")
    with pytest.raises(FileNotFoundError, match="pip download"):
        read_rated(tmp_path / "nowhere", "movies", "sign")


def test_pairs_of_nouns(tmp_path):
    found = read_hypernyms(write_nouns(tmp_path / "wordnet"))
    held = found.held["held_out"]
    pairs = {
        first: (second, label)
        for part in (found.train, held)
        for first, second, label in zip(part.firsts, part.seconds, part.labels)
    }
    right = {
        "living thing: a living entity": "entity: that which is",
        "dog: barks": "living thing: a living entity",
        "cat: purrs": "living thing: a living entity",
        "Tom: a famous cat": "cat: purrs",
        "stone: it lies there": "entity: that which is",
        "granite: a hard stone": "stone: it lies there",
        "marble: a white stone": "stone: it lies there",
    }
    assert pairs.keys() == right.keys()
    assert all((second == right[first]) == (label == 1) for first, (second, label) in pairs.items())
    assert {label for _, label in pairs.values()} == {0, 1}
    for first, (second, label) in pairs.items():
        above = [first]
        while above[-1] in right:
            above.append(right[above[-1]])
        assert label or second not in above, "a cat is an entity too, if not by the next step"
    with pytest.raises(FileNotFoundError, match="apt-get install wordnet-base"):
        read_hypernyms(tmp_path)
