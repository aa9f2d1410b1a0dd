"""ListOps beside a generator and a calculator of the plainest kind, and files of the release."""

import dataclasses
import random

import numpy as np
import pytest
from scipy.stats import chi2_contingency, ks_2samp

from conditioned_attention.experiments.data.lra import listops as module
from conditioned_attention.experiments.data.lra.listops import TOKENS, ListOpsTrees, drawn, listops
from conditioned_attention.experiments.data.lra.released import read_listops

SHORT = ListOpsTrees(longer_than=3, shorter_than=80, max_depth=5, max_args=6)


def words(sequence):
    return [TOKENS[number - 1] for number in sequence]


def grow(chance, trees, depth=1):
    """The published recursion: a digit with probability 3/4."""
    if depth == trees.max_depth or chance.random() > 0.25:
        return chance.randrange(10)
    children = [grow(chance, trees, depth + 1) for _ in range(chance.randint(2, trees.max_args))]
    return (chance.choice(["MIN", "MAX", "MED", "SM"]), children)


def size(tree):
    return 1 if isinstance(tree, int) else 2 + sum(map(size, tree[1]))


def parse(tokens):
    """A tree, and what is left of the tokens."""
    first, *rest = tokens
    if not first.startswith("["):
        return int(first), rest
    children = []
    while rest[0] != "]":
        child, rest = parse(rest)
        children.append(child)
    return (first[1:], children), rest[1:]


def value(tree):
    if isinstance(tree, int):
        return tree
    values = [value(child) for child in tree[1]]
    return {"MIN": min, "MAX": max, "MED": lambda v: int(np.median(v)), "SM": lambda v: sum(v) % 10}[tree[0]](values)


def depth(tree):
    return 1 if isinstance(tree, int) else 1 + max(map(depth, tree[1]))


def operators(tree):
    """(name, number of arguments) of each."""
    return [] if isinstance(tree, int) else [(tree[0], len(tree[1])), *(o for c in tree[1] for o in operators(c))]


def test_every_list_comes_to_its_label_and_is_as_published():
    found = drawn(ListOpsTrees(stream=3), 0)
    assert len(found.labels) > 1000
    assert (found.lengths > 500).all()
    assert (found.lengths < 2000).all()
    ends = np.cumsum(found.lengths)
    for end, length, label in zip(ends[:150], found.lengths, found.labels):
        tree, rest = parse(words(found.tokens[end - length : end]))
        assert rest == []
        assert value(tree) == label
        assert depth(tree) <= 10
        assert {count for _, count in operators(tree)} <= set(range(2, 11))


def test_trees_are_drawn_like_those_of_the_recursion():
    """Lengths, names and arguments of operators, and results, at a size where the recursion is quick."""
    chance, slow = random.Random(0), []
    while len(slow) < 1500:
        tree = grow(chance, SHORT)
        if SHORT.longer_than < size(tree) < SHORT.shorter_than:
            slow.append(tree)
    made = drawn(SHORT, 0)
    ends = np.cumsum(made.lengths)
    fast = [parse(words(made.tokens[end - n : end]))[0] for end, n in zip(ends[:1500], made.lengths)]
    assert len(fast) == 1500
    assert ks_2samp([size(t) for t in slow], [size(t) for t in fast]).pvalue > 0.01
    for what in (lambda t: [n for n, _ in operators(t)], lambda t: [c for _, c in operators(t)], lambda t: [value(t)]):
        both = [[x for t in trees for x in what(t)] for trees in (slow, fast)]
        kinds = sorted(set(both[0]) | set(both[1]))
        assert chi2_contingency([[some.count(kind) for kind in kinds] for some in both]).pvalue > 0.001, kinds


def test_the_same_for_every_count(tmp_path, monkeypatch):
    many = listops(2000, 80, SHORT, tmp_path)
    assert len({many.sequence(i).tobytes() for i in range(2000)}) == 2000, "none twice"
    few = listops(50, 80, SHORT, tmp_path)
    assert (few.tokens == many.part(0, 50).tokens).all()
    assert few.fingerprint() == many.part(0, 50).fingerprint() != many.part(1, 50).fingerprint()
    ids, labels = many.part(30, 20).__getitems__([19, 0])
    assert (ids[0][: many.lengths[49]].numpy() == many.sequence(49)).all()
    assert (ids[0][many.lengths[49] :] == 0).all()
    assert labels.tolist() == many.labels[[49, 30]].tolist()
    monkeypatch.setattr(module, "_made", None)
    again = listops(50, 64, SHORT, tmp_path)
    assert (again.tokens == few.tokens).all()
    monkeypatch.undo()
    (file,) = [path for path in tmp_path.iterdir() if path.stat().st_size < 20_000]
    file.write_bytes(file.read_bytes()[:-300])
    assert (listops(50, 80, SHORT, tmp_path).tokens == few.tokens).all(), "a damaged file is made anew"
    other = listops(50, 80, dataclasses.replace(SHORT, stream=1), tmp_path)
    assert other.fingerprint() != few.fingerprint()


@pytest.mark.slow
def test_the_same_for_every_number_of_processes(tmp_path):
    alone, two = (listops(30_000, 80, SHORT, tmp_path / str(n), processes=n) for n in (1, 2))
    assert len(drawn(SHORT, 0).labels) < 30_000, "one part is not enough"
    assert alone.fingerprint() == two.fingerprint()


def test_wrong_sizes_are_named(tmp_path):
    for changes in ({"longer_than": 79}, {"max_depth": 1}, {"max_args": 1}, {"stream": -1}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            dataclasses.replace(SHORT, **changes)
    with pytest.raises(ValueError, match="count and processes must be at least 1"):
        listops(0, 80, SHORT, tmp_path)


def test_broken_lines_of_the_release_are_named(tmp_path):
    lines = [
        "Source\tTarget", "( ( ( [MAX 2 ) 9 ) ] )\t9", "( ( ( [SM 7 ) 8 ) ] )", '( ( ( [MED "3 ) 4 ) ] )\t3', "\t4",
        "( ( ( [MED 3 ) 4 ) ] )\t3\r", "( ( ( [MIN 3 ) 4 ) ] )\t12", "5\t5\t5",
    ]  # fmt: skip
    file = tmp_path / "basic_val.tsv"
    file.write_text("\n".join(lines))
    data, notes = read_listops(file, 3)
    assert [words(data.sequence(i)) for i in range(2)] == [["[MAX", "2", "9", "]"], ["[MED", "3", "4", "]"]]
    assert data.labels.tolist() == [9, 3]
    assert notes == [
        "basic_val.tsv: 5 broken lines are left out: line 3 has 1 columns, not 2; line 4 has the unknown token '\"3'; "
        "line 5 has no tokens; line 7 has the target '12', no digit; line 8 has 3 columns, not 2",
        "basic_val.tsv: 2 expressions of more than 3 tokens are cut",
    ]
    assert data.fingerprint()["broken"] == 5
    file.write_text("Source\tTarget\n")
    with pytest.raises(ValueError, match=r"basic_val\.tsv has no line that can be read: it is empty"):
        read_listops(file, 3)
