"""Texts as sequences of bytes, also read from folders with one folder per class, such as IMDb's reviews."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from conditioned_attention.experiments.data.lra.sequences import TokenSequences
from conditioned_attention.experiments.data.split import EVALUATION, Sets, hold_out, listed, names_a_set
from conditioned_attention.experiments.data.text.files import SUFFIXES, read_texts
from conditioned_attention.experiments.data.walk import Walk, same_letters, sets_at_top

VOCABULARY = 512  # of the authors' model; 257 ids are used
UNLABELLED = "unsup"  # the folder of IMDb's reviews without a label


class ByteSequences:
    """Texts as sequences of ids, added one by one; byte b has the id b + 1.

    Invalid UTF-8 is replaced by U+FFFD, so that no byte is above 244 and ids fit in a byte.

    Args:
        cut: number of bytes that are kept of each text.

    >>> texts = ByteSequences(cut=3)
    >>> texts.add("aé!".encode()), texts.add(b"\\xff")
    (None, None)
    >>> texts.sequences([0, 1], 4, {})[0][0]
    tensor([ 98, 196, 170,   0])
    >>> texts.notes("two")
    ['two: 1 texts of more than 3 bytes are cut', 'two: 1 texts contain invalid UTF-8, which is read as U+FFFD']
    """

    def __init__(self, cut: int) -> None:
        self.cut, self._longer, self._odd = cut, 0, 0
        self._bytes, self._lengths = bytearray(), list[int]()

    def add(self, text: bytes) -> None:
        """Adds one text."""
        try:
            text.decode()
        except UnicodeDecodeError:
            text = text.decode(errors="replace").encode()
            self._odd += 1
        self._longer += len(text) > self.cut
        self._bytes += text[: self.cut]
        self._lengths.append(min(len(text), self.cut))

    def sequences(self, labels: Iterable[int], padded: int, origin: Mapping[str, Any]) -> TokenSequences:
        """All texts as sequences, with a label each.  Call it once: it counts up the bytes themselves."""
        tokens = np.frombuffer(self._bytes, np.uint8)
        tokens += 1  # in place: Retrieval has a gigabyte of them
        numbers = np.fromiter(labels, np.int64)
        return TokenSequences(tokens, np.array(self._lengths, np.int32), numbers, padded, {**origin, "cut": self.cut})

    def notes(self, name: str) -> list[str]:
        """What a report should say about the texts."""
        cut = [f"{name}: {self._longer} texts of more than {self.cut} bytes are cut"] * bool(self._longer)
        return cut + [f"{name}: {self._odd} texts contain invalid UTF-8, which is read as U+FFFD"] * bool(self._odd)


class LabelledTexts(NamedTuple):
    """Training and test set, the names of the classes, and what a report should say."""

    train: TokenSequences
    test: TokenSequences
    classes: list[str]
    notes: list[str]


def read_labelled(
    folder: Path, cut: int, padded: int, max_unreadable: int = 10, eval_split: str | None = None
) -> LabelledTexts:
    """Reads texts from ``train/CLASS/`` and ``test/CLASS/``, or from ``CLASS/`` with a fixed fifth as the test set.

    Texts are shuffled, always in the same way.  Those that cannot be read, are empty or have NUL bytes are named and
    left out; so are files outside the folders of classes, and IMDb's reviews without a label (``unsup``).

    Args:
        folder: with texts (.txt, .text, .md or .rst).
        cut: number of bytes that are kept of each text.
        padded: length that the sequences are padded to.
        max_unreadable: in each set, more unreadable texts than this are an error.
        eval_split: the folder of the test set, needed if there are several beside the training set.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no classes, only one, other classes in the test set, or it is not clear which set is which.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}: texts go to {folder}/train/CLASS/ and {folder}/test/CLASS/"
        )
    walk, sets, notes = Walk(folder, SUFFIXES), Sets(None, None, []), list[str]()
    places = walk.folders()
    if eval_split is not None or any(map(names_a_set, places)):
        sets, notes = sets_at_top(walk, places, eval_split)
    read = {}
    for name in dict.fromkeys((sets.train, sets.evaluation)):
        read[name] = _by_class(folder / places.get(name or "", ""), max_unreadable, notes)
    classes = sorted({label for _, label in read[sets.train]})
    if len(classes) < 2:
        raise ValueError(f"{folder} has {len(classes)} classes of texts, {listed(classes)}: nothing to tell apart")
    if other := sorted({label for texts in read.values() for _, label in texts} ^ set(classes)):
        raise ValueError(
            f"{folder / str(sets.evaluation)} has classes that are missing from the training set: {listed(other)}"
        )
    train = test = read[sets.train]
    if sets.evaluation is None:
        rest, held = hold_out([classes.index(label) for _, label in train], EVALUATION)
        notes.append("no test set: a fixed fifth of the texts is held out")
        train, test = [train[i] for i in rest], [train[i] for i in held]
    else:
        test = read[sets.evaluation]
        notes.append(f"trained on {sets.train}, tested on {sets.evaluation}")
    made = {"train": train, "test": test}
    sequences = {name: _sequences(texts, classes, cut, padded, name, notes) for name, texts in made.items()}
    return LabelledTexts(sequences["train"], sequences["test"], classes, notes)


_Texts = list[tuple[bytes, str]]  # with their classes


def _by_class(folder: Path, max_unreadable: int, notes: list[str]) -> _Texts:
    """The texts of one set; the class of a text is the first folder in its path."""
    found, beside, unlabelled = [], [], 0
    for name, text in read_texts(folder, max_unreadable, notes=notes):
        label, _, inside = same_letters(name).partition(os.sep)
        if not inside:
            beside.append(name)
        elif label == UNLABELLED:
            unlabelled += 1
        else:
            found.append((text, label))
    where = f"of {folder.name}: " if beside else ""
    notes += [f"left out, in no class's folder {where}{listed(beside)}"] * bool(beside)
    notes += [f"left out, without a label: {unlabelled} texts in {folder.name}/{UNLABELLED}"] * bool(unlabelled)
    order = np.random.RandomState(0).permutation(len(found))
    return [found[i] for i in order]


def _sequences(texts: _Texts, classes: list[str], cut: int, padded: int, name: str, notes: list[str]) -> TokenSequences:
    sequences = ByteSequences(cut)
    for text, _ in texts:
        sequences.add(text)
    notes += sequences.notes(name)
    return sequences.sequences((classes.index(label) for _, label in texts), padded, {})
