"""Labelled texts that come with packages: sentiment, rated by people, and pairs of WordNet's definitions."""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from conditioned_attention.experiments.data.split import EVALUATION
from conditioned_attention.experiments.data.text.labelled import LabelledTexts, TextSets, count_broken
from conditioned_attention.experiments.data.text.windows import HOW_TO_GET_WORDNET

Rated = Literal["movies", "tweets", "news", "products"]
Target = Literal["sign", "mean"]

_RATED = {
    "movies": "movieReviewSnippets",
    "tweets": "tweets",
    "news": "nytEditorialSnippets",
    "products": "amazonReviewSnippets",
}
_INNER = "hutto_ICWSM_2014.tar.gz"  # in the source distribution
HOW_TO_GET_RATED = (
    "The texts are in the source distribution of vaderSentiment (Hutto and Gilbert 2014): 'pip download --no-deps "
    "--no-binary :all: vaderSentiment==3.3.2' writes it, and --path names it, or its folder."
)


def read_rated(path: Path, name: Rated, target: Target, max_unreadable: int = 10) -> TextSets:
    """Short texts with the mean of twenty people's ratings from -4 to 4; a fixed fifth is held out.

    Sentences of the same article or review are always in the same set.

    Args:
        path: ``vaderSentiment-3.3.2.tar.gz``, ``hutto_ICWSM_2014.tar.gz``, or a folder with one of them or their files.
        name: ``"movies"`` (10,605 texts), ``"tweets"`` (4,200), ``"news"`` (5,190) or ``"products"`` (3,708).
        target: ``"sign"`` asks whether the rating is above 0, and leaves out texts rated 0; ``"mean"`` is the rating.
        max_unreadable: more broken lines than this are an error.

    Raises:
        FileNotFoundError: the file is not there; the message says how to get it.
        ValueError: too many lines are broken.
    """
    file = f"{_RATED[name]}_GroundTruth.txt"
    train, held, broken, neutral = LabelledTexts(), LabelledTexts(), dict[str, str](), 0
    for number, line in enumerate(_content(path, file).split(b"\n"), 1):
        if not line.strip():
            continue
        cells = line.decode("utf-8-sig", errors="replace").rstrip("\r").split("\t")
        rating = _rating(cells)
        if isinstance(rating, str):
            broken[f"line {number}"] = rating
        elif target == "sign" and rating == 0:
            neutral += 1
        else:
            document = cells[0].rpartition("_")[0] or cells[0]
            part = held if zlib.crc32(document.encode()) % EVALUATION == 0 else train
            part.add([cells[2].strip()], rating if target == "mean" else float(rating > 0), document)
    notes = [f"{name}: {neutral} texts with a mean of 0 are left out"] * bool(neutral)
    count_broken(file, broken, len(train) + len(held), max_unreadable, notes)
    notes.append("held out: a fixed fifth of the documents")
    classes = ("negative", "positive") if target == "sign" else ()
    return TextSets(train, {"held_out": held}, classes, notes)


def _rating(cells: list[str]) -> float | str:
    if len(cells) != 3:
        return f"it has {len(cells)} columns, not 3"
    if not cells[2].strip():
        return "it has an empty text"
    try:
        rating = float(cells[1])
    except ValueError:
        rating = np.nan
    return rating if -4 <= rating <= 4 else f"its rating is {cells[1][:20]!r}, no number from -4 to 4"


def _content(path: Path, file: str) -> bytes:
    """The bytes of a file in a folder, in an archive, or in an archive within an archive."""
    if path.is_dir():
        inside = [path / file, path / _INNER, *sorted(path.glob("vaderSentiment-*.tar.gz"))]
        path = next((one for one in inside if one.is_file()), path / file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}. {HOW_TO_GET_RATED}")
    data = path.read_bytes()
    while path.name.endswith(".tar.gz"):
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            names = [name for name in archive.getnames() if name.rpartition("/")[2] in (file, _INNER)]
            found = archive.extractfile(names[0]) if names else None
            if found is None:
                raise FileNotFoundError(f"{path} holds no {file}. {HOW_TO_GET_RATED}")
            data, path = found.read(), Path(names[0])
    return data


def read_hypernyms(folder: Path) -> TextSets:
    """Pairs of WordNet's nouns with their definitions: is the first a kind of the second?

    Each noun occurs once as the first: half of the nouns with their own hypernym (the noun that they are a kind of),
    the others with another noun's, or with their own if that is the noun itself or any of its hypernyms, however far
    above it.  A fixed fifth of the nouns is held out; hypernyms are in both sets.

    Args:
        folder: with WordNet's ``data.noun``.

    Raises:
        FileNotFoundError: it is not there; the message says how to get it.
    """
    file = folder / "data.noun"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing. {HOW_TO_GET_WORDNET}")
    text, kinds_of = dict[str, str](), dict[str, list[str]]()
    for offset, said, kinds in _nouns(file.read_bytes().decode("latin-1")):
        text[offset] = said
        if kinds:
            kinds_of[offset] = kinds
    nouns = sorted(kinds_of)
    order = np.random.RandomState(0).permutation(len(nouns))
    train, held = LabelledTexts(), LabelledTexts()
    for place, number in enumerate(order):
        noun, other = nouns[number], nouns[order[place - 1]]
        right = place % 2 == 0 or kinds_of[other][0] in _with_all_above(noun, kinds_of)
        above = kinds_of[noun if right else other][0]
        part = held if zlib.crc32(noun.encode()) % EVALUATION == 0 else train
        part.add([text[noun], text[above]], float(right))
    notes = ["held out: a fixed fifth of the nouns"]
    return TextSets(train, {"held_out": held}, ("another's", "hypernym"), notes)


def _with_all_above(noun: str, kinds_of: Mapping[str, list[str]]) -> set[str]:
    found, waiting = {noun}, [noun]
    while waiting:
        new = [above for above in kinds_of.get(waiting.pop(), []) if above not in found]
        found.update(new)
        waiting += new
    return found


def _nouns(data: str) -> Iterator[tuple[str, str, list[str]]]:
    """For every noun its offset, ``word: definition``, and the offsets of its hypernyms."""
    for line in data.split("\n"):
        if line.startswith(" ") or "|" not in line:
            continue
        fields, gloss = line.split("|", 1)
        cells = fields.split()
        pointers = cells[4 + 2 * int(cells[3], 16) + 1 :]
        above = [pointers[i + 1] for i in range(0, len(pointers), 4) if pointers[i] in ("@", "@i")]
        yield cells[0], f"{cells[4].replace('_', ' ')}: {gloss.split(';')[0].strip()}", above
