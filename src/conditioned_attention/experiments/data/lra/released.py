"""Reads files of the Long Range Arena's release (lra_release.gz) line by line; broken lines are counted and named."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from conditioned_attention.experiments.data.lra.listops import TOKENS
from conditioned_attention.experiments.data.lra.sequences import TokenPairs, TokenSequences
from conditioned_attention.experiments.data.lra.texts import ByteSequences
from conditioned_attention.experiments.data.split import listed

_IDS = {token: number + 1 for number, token in enumerate(TOKENS)}
_IDS["X"] = _IDS["]"]  # as the original's reader calls it
_PARENTHESES = re.compile(r"[()]")


def read_listops(file: Path, padded: int) -> tuple[TokenSequences, list[str]]:
    """Reads the sequences of a file such as ``listops-1000/basic_train.tsv``, and what a report should say about it.

    A line holds an expression, a tab and its value; the first line is a header.  Parentheses are not tokens.

    Args:
        file: tab separated, without quotes.
        padded: length that the sequences are padded to; longer expressions are cut and noted.

    Raises:
        ValueError: no line of the file can be read.
        OSError: it cannot be opened.
    """
    tokens, lengths, labels, broken, cut = [], [], [], [], 0
    with file.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            text = line.rstrip("\r\n")
            if number == 1 and text.split("\t") == ["Source", "Target"]:
                continue
            found = _expression(text)
            if isinstance(found, str):
                broken.append(f"line {number} {found}")
                continue
            tokens.append(found[0])
            lengths.append(len(found[0]))
            labels.append(found[1])
            cut += len(found[0]) > padded
    if not labels:
        raise ValueError(f"{file} has no line that can be read: {listed(broken, '; ') if broken else 'it is empty'}")
    notes = [f"{file.name}: {len(broken)} broken lines are left out: {listed(broken, '; ')}"] if broken else []
    notes += [f"{file.name}: {cut} expressions of more than {padded} tokens are cut"] if cut else []
    arrays = np.concatenate(tokens), np.array(lengths, np.int32), np.array(labels, np.uint8)
    return TokenSequences(*arrays, padded, {"file": file.name, "broken": len(broken)}), notes


def _expression(line: str) -> tuple[np.ndarray, int] | str:
    """Ids and label of one line, or what is wrong with it."""
    columns = line.split("\t")
    if len(columns) != 2:
        return f"has {len(columns)} columns, not 2"
    words, label = _PARENTHESES.sub(" ", columns[0]).split(), columns[1].strip()
    if not re.fullmatch("[0-9]", label):
        return f"has the target {label[:20]!r}, no digit"
    unknown = next((word for word in words if word not in _IDS), None)
    if unknown is not None or not words:
        return f"has the unknown token {unknown[:20]!r}" if unknown else "has no tokens"
    return np.array([_IDS[word] for word in words], np.uint8), int(label)


def read_pairs(file: Path, cut: int, padded: int) -> tuple[TokenPairs, list[str]]:
    """Reads pairs of texts from a file such as ``new_aan_pairs.train.tsv``, and what a report should say about it.

    A line holds a label (0.0 or 1.0), the names of two papers and their texts, separated by tabs.  There is no header,
    and quotes are ordinary characters.

    Args:
        file: tab separated, without quotes, such as ``tsv_data/new_aan_pairs.train.tsv``.
        cut: number of bytes that are kept of each text.
        padded: length that the sequences are padded to.

    Raises:
        ValueError: no line of the file can be read.
        OSError: it cannot be opened.
    """
    first, second, labels, broken = ByteSequences(cut), ByteSequences(cut), bytearray(), []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            found = _pair(line.rstrip(b"\r\n"))
            if isinstance(found, str):
                broken.append(f"line {number} {found}")
                continue
            labels.append(found[0])
            first.add(found[1])
            second.add(found[2])
    if not labels:
        raise ValueError(f"{file} has no line that can be read: {listed(broken, '; ') if broken else 'it is empty'}")
    notes = [f"{file.name}: {len(broken)} broken lines are left out: {listed(broken, '; ')}"] if broken else []
    notes += [*first.notes(f"{file.name}, first texts"), *second.notes(f"{file.name}, second texts")]
    origin = {"file": file.name, "broken": len(broken)}
    return TokenPairs(*(texts.sequences(labels, padded, origin) for texts in (first, second))), notes


def _pair(line: bytes) -> tuple[int, bytes, bytes] | str:
    """Label and texts of one line, or what is wrong with it."""
    columns = line.split(b"\t")
    if len(columns) != 5:
        return f"has {len(columns)} columns, not 5"
    if not re.fullmatch(rb"[01](\.0*)?", columns[0].strip()):
        return f"has the label {columns[0][:20].decode(errors='replace')!r}, not 0 or 1"
    if not (columns[3].strip() and columns[4].strip()):
        return "has an empty text"
    return int(columns[0].strip()[:1]), columns[3], columns[4]
