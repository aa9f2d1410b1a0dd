"""Pairs of texts of the release: columns, quotes and broken lines."""

import pytest

from conditioned_attention.experiments.data.lra.released import read_pairs


def test_columns_quotes_and_broken_lines(tmp_path):
    lines = [
        b'1.0\tA\tB\t"one\ttwo "words"', b"0.0\tA\tC\tone\tthree\r", b"1.0\tA\tB\tone", b"yes\tA\tB\tone\ttwo",
        b"0\tA\tB\tone\ttwo\tthree", b"0\tA\tB\tone\t", b"", b'1\tD\tE\t"f\xc3\xa9\tg\xff',
    ]  # fmt: skip
    file = tmp_path / "new_aan_pairs.eval.tsv"
    file.write_bytes(b"\n".join(lines))
    data, notes = read_pairs(file, 5, 8)
    assert len(data) == 3
    texts = [[bytes(one.sequence(i) - 1) for one in (data.first, data.second)] for i in range(3)]
    assert texts == [
        [b'"one', b'two "'],
        [b"one", b"three"],
        ['"f\N{LATIN SMALL LETTER E WITH ACUTE}'.encode(), b"g\xef\xbf\xbd"],
    ]
    ids, labels = data.__getitems__([0, 1, 2])
    assert (ids.shape, labels.tolist()) == ((3, 2, 8), [1, 0, 1])
    assert ids[0, 0].tolist() == [35, 112, 111, 102, 0, 0, 0, 0]
    assert notes == [
        "new_aan_pairs.eval.tsv: 5 broken lines are left out: line 3 has 4 columns, not 5; line 4 has the label 'yes', "
        "not 0 or 1; line 5 has 6 columns, not 5; line 6 has an empty text; line 7 has 1 columns, not 5",
        "new_aan_pairs.eval.tsv, second texts: 1 texts of more than 5 bytes are cut",
        "new_aan_pairs.eval.tsv, second texts: 1 texts contain invalid UTF-8, which is read as U+FFFD",
    ]
    assert data.part(1, 2).fingerprint()["items"] == 2
    assert data.part(0, 1).fingerprint() != data.part(1, 1).fingerprint()
    file.write_bytes(b"a\tb\n")
    with pytest.raises(ValueError, match=r"eval\.tsv has no line that can be read: line 1 has 2 columns, not 5"):
        read_pairs(file, 5, 8)
