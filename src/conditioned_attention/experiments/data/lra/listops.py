"""ListOps of the Long Range Arena (Tay et al. 2021, arXiv 2011.04006): nested lists of digits, and their values.

Trees are drawn independently of each other, as in google-research/long-range-arena
(``lra_benchmarks/data/listops.py``), but many at a time: level by level, in arrays with one entry per node.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from conditioned_attention.experiments.data.lra.sequences import TokenSequences
from conditioned_attention.experiments.data.made import kept_or_made, parts_of

# A token's id is its index here plus 1; 0 is padding.  (The original's ids differ from run to run.)
TOKENS = ("[MIN", "[MAX", "[MED", "[SM", "]", *"0123456789")
OPERATORS = 4
VOCABULARY = 32  # of the authors' model; 16 ids are used

_CLOSE, _ZERO = TOKENS.index("]") + 1, TOKENS.index("0") + 1
_OPERATOR = 0.25  # probability of an operator; the others are digits
_TREES = 2**14  # begun at a time; most are too short
_VERSION = 1  # of the numbers: raise it with every change that alters them


@dataclass(frozen=True)
class ListOpsTrees:
    """Which trees are drawn: the published ones by default.

    A node is a digit with probability 3/4, and always at depth ``max_depth``; otherwise it is an operator (minimum,
    maximum, median, sum modulo 10) over 2 to ``max_args`` nodes.  The median of an even number of values is rounded
    down.  A digit counts as one token, an operator as two: itself and its closing bracket.

    Attributes:
        shorter_than: all trees have fewer tokens than this.
        longer_than: all trees have more tokens than this.
        max_depth: largest depth of a digit; the root is at depth 1.
        max_args: largest number of arguments of an operator.
        stream: number of the random stream; its trees are the same whatever the number of processes.
    """

    longer_than: int = 500
    shorter_than: int = 2000
    max_depth: int = 10
    max_args: int = 10
    stream: int = 0

    def __post_init__(self) -> None:
        if self.max_depth < 2 or self.max_args < 2 or self.stream < 0:
            raise ValueError(
                "max_depth and max_args must be at least 2 and stream not negative, got "
                f"{self.max_depth}, {self.max_args} and {self.stream}"
            )
        if not 1 <= self.longer_than < self.shorter_than - 1:
            raise ValueError(
                "longer_than must be at least 1, and shorter_than at least longer_than + 2, got "
                f"{self.longer_than} and {self.shorter_than}"
            )


def listops(
    count: int,
    padded: int,
    trees: ListOpsTrees | None = None,
    cache_dir: Path | None = None,
    processes: int = 1,
) -> TokenSequences:
    """``count`` different trees as tokens, labelled with their values; the first trees are the same for every count.

    They are made at the first call and kept in a file; 100,000 published ones take about half a minute on one core.

    Args:
        count: number of trees.
        padded: length that the sequences are padded to.
        trees: which trees; default the published ones.
        cache_dir: folder for the file, which may be deleted at any time; default
            `conditioned_attention.experiments.data.scan.default_cache_dir`.
        processes: how many processes make the trees; they are spawned, so with more than one a script needs a
            ``__main__`` guard.

    Raises:
        ValueError: ``count`` or ``processes`` is below 1.
        OSError: ``cache_dir`` cannot be written.
    """
    trees = trees or ListOpsTrees()
    made = {"version": _VERSION, **asdict(trees)}
    kept = kept_or_made(
        "listops", _Sequences, made, count, processes, cache_dir, lambda: _made(count, trees, processes)
    )
    return TokenSequences(*kept, padded, made)


class _Sequences(NamedTuple):
    tokens: np.ndarray  # uint8, one sequence behind the other
    lengths: np.ndarray  # int32
    labels: np.ndarray  # uint8


def _made(count: int, trees: ListOpsTrees, processes: int) -> _Sequences:
    """The first ``count`` different trees, in the order of the parts that they are drawn in."""
    seen: set[bytes] = set()
    found: list[bytes] = []
    labels: list[int] = []
    with parts_of(partial(drawn, trees), processes) as parts:
        for part in parts:
            begin = 0
            for length, label in zip(part.lengths, part.labels):
                tree = part.tokens[begin : begin + length].tobytes()
                begin += length
                if tree not in seen:
                    seen.add(tree)
                    found.append(tree)
                    labels.append(label)
                if len(found) == count:
                    lengths = np.array([len(tree) for tree in found], np.int32)
                    return _Sequences(np.frombuffer(b"".join(found), np.uint8), lengths, np.array(labels, np.uint8))
    raise AssertionError("parts have no end")


class _Level(NamedTuple):
    """All nodes of one depth, with the children of one node side by side."""

    tree: np.ndarray  # which tree each belongs to
    parent: np.ndarray  # its place in the level above
    operator: np.ndarray  # True for operators
    symbol: np.ndarray  # which operator, or which digit


def drawn(trees: ListOpsTrees, part: int) -> _Sequences:
    """Draws `_TREES` trees and returns those of the right length; they depend on ``part`` and the stream."""
    random = np.random.Generator(np.random.Philox(key=[trees.stream, part]))
    levels, lengths = _grown(random, trees)
    levels = _kept(levels, (lengths > trees.longer_than) & (lengths < trees.shorter_than))
    sizes, values = _summed_up(levels)
    return _written(levels, sizes, values)


def _grown(random: np.random.Generator, trees: ListOpsTrees) -> tuple[list[_Level], np.ndarray]:
    """Grows trees from the roots down, as long as they are not too long; returns levels and the trees' token counts."""
    levels, lengths = [], np.zeros(_TREES, np.int64)
    tree, parent = np.arange(_TREES), np.zeros(_TREES, np.int64)
    for depth in range(1, trees.max_depth + 1):
        operator = random.random(len(tree)) <= _OPERATOR
        if depth == trees.max_depth:
            operator[:] = False
        lengths += np.bincount(tree, 1 + operator, _TREES).astype(np.int64)
        operator &= lengths[tree] < trees.shorter_than
        symbol = np.where(operator, random.integers(OPERATORS, size=len(tree)), random.integers(10, size=len(tree)))
        levels.append(_Level(tree, parent, operator, symbol))
        above = np.flatnonzero(operator)
        parent = np.repeat(above, random.integers(2, trees.max_args + 1, size=len(above)))
        tree = tree[parent]
        if not len(tree):
            break
    return levels, lengths


def _kept(levels: list[_Level], wanted: np.ndarray) -> list[_Level]:
    """The levels without the trees that are not wanted; the others are renumbered."""
    number = np.cumsum(wanted) - 1
    place, found = np.zeros(len(levels[0].tree), np.int64), []
    for level in levels:
        keep = wanted[level.tree]
        found.append(
            _Level(number[level.tree[keep]], place[level.parent[keep]], level.operator[keep], level.symbol[keep])
        )
        place = np.cumsum(keep) - 1
    return [level for level in found if len(level.tree)]


def _summed_up(levels: list[_Level]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """From the digits up, the number of tokens and the value of each node."""
    sizes = [np.ones(len(level.tree), np.int64) for level in levels]
    values = [level.symbol.copy() for level in levels]
    for i in range(len(levels) - 2, -1, -1):
        operators, below = np.flatnonzero(levels[i].operator), levels[i + 1]
        if not len(operators):
            continue
        counts = np.bincount(below.parent, minlength=len(sizes[i]))[operators]
        begins = np.cumsum(counts) - counts
        sizes[i][operators] = 2 + np.add.reduceat(sizes[i + 1], begins)
        values[i][operators] = _applied(levels[i].symbol[operators], values[i + 1], begins, counts, below.parent)
    return sizes, values


def _applied(
    which: np.ndarray, values: np.ndarray, begins: np.ndarray, counts: np.ndarray, parent: np.ndarray
) -> np.ndarray:
    """Applies each operator to its own stretch of values, given by its begin and its count."""
    ordered = values[np.lexsort((values, parent))]
    middle = ordered[begins + (counts - 1) // 2] + ordered[begins + counts // 2]
    results = (ordered[begins], ordered[begins + counts - 1], middle // 2, np.add.reduceat(values, begins) % 10)
    return np.choose(which, results)


def _written(levels: list[_Level], sizes: list[np.ndarray], values: list[np.ndarray]) -> _Sequences:
    """Writes the tokens of all nodes into sequences, from the roots down."""
    if not levels:
        return _Sequences(np.zeros(0, np.uint8), np.zeros(0, np.int32), np.zeros(0, np.uint8))
    tokens = np.zeros(sizes[0].sum(), np.uint8)
    begins = np.cumsum(sizes[0]) - sizes[0]
    for i, (level, size) in enumerate(zip(levels, sizes)):
        if i > 0:
            before = np.cumsum(size) - size
            first = np.flatnonzero(np.diff(level.parent, prepend=-1))
            brothers = np.diff([*first, len(size)])
            begins = begins[level.parent] + 1 + before - np.repeat(before[first], brothers)
        tokens[begins] = level.symbol + np.where(level.operator, 1, _ZERO)
        tokens[(begins + size - 1)[level.operator]] = _CLOSE
    return _Sequences(tokens, sizes[0].astype(np.int32), values[0].astype(np.uint8))
