"""A few combinations of options in which each option meets each other one."""

from itertools import combinations, product


def pairwise(*axes):
    """Combinations, one entry of each axis, so that every two entries of different axes are together in one of them.

    What breaks only where two options meet is met, with far fewer cases than the full product; what would break only
    where three meet is not.  Always the same combinations in the same order.
    """
    rows = list(product(*(range(len(axis)) for axis in axes)))
    places = list(combinations(range(len(axes)), 2))

    def pairs(row):
        return {(i, row[i], j, row[j]) for i, j in places}

    missing, chosen = set().union(*map(pairs, rows)), []
    while missing:
        best = max(rows, key=lambda row: len(pairs(row) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return [tuple(axis[i] for axis, i in zip(axes, row, strict=True)) for row in sorted(chosen)]
