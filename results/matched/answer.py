"""One table of all comparisons: each variant's difference to plain attention, from the results.json files beside this.

    python results/matched/answer.py digits fashion bytes
    python results/matched/answer.py --all     # every folder here that has a results.json

A cell is the mean of the paired differences with the 95 % interval that holds for all variants of the comparison at
once (Dunnett's, seeds as blocks); with a dagger it is the interval of the paired t test alone, because the variant
scatters unlike the others.  **Bold**: told from plain attention, by that test or, with a dagger, after Holm's
correction.  The last rows say how plain attention did and which difference the design would have shown in four of
five repetitions.
"""

import json
import sys
from pathlib import Path

from conditioned_attention.experiments.evidence.blocks import LEVEL, blocked_test
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.evidence.statistics import decimals, final_score, holm_of, summarise

HERE = Path(__file__).parent


def column(name: str) -> dict[str, str]:
    """The cells of one comparison, by variant; two more rows are about the comparison itself."""
    found = json.loads((HERE / name / "results.json").read_text())
    runs: dict[str, dict[int, list[dict[str, float]]]] = {}
    for run in found["runs"]:
        runs.setdefault(run["variant"], {})[run["seed"]] = run["history"]
    rows = summarise(runs, Metric(**found["metric"]))
    test = blocked_test({name: {seed: final_score(h) for seed, h in of.items()} for name, of in runs.items()})
    blocked = test if test is not None and test.trusted else None
    places, alone = decimals(rows[0].final.mean), holm_of(rows)
    cells = {}
    for row in rows[1:]:
        if row.difference is None:
            cells[row.variant] = "–"
            continue
        together = blocked is not None and row.variant in blocked.p_values
        p = blocked.p_values[row.variant] if together else alone.get(row.variant, 1.0)
        mean = row.difference.mean
        low, high = row.difference.low, row.difference.high
        if together:
            low, high = mean - blocked.half_width, mean + blocked.half_width
        cell = f"{mean:+.{places}f} [{low:+.{places}f}, {high:+.{places}f}]" + "†" * (not together)
        cells[row.variant] = f"**{cell}**" if p < LEVEL else cell
    plain = rows[0].final
    cells["*plain attention*"] = f"{plain.mean:.{places}f} ± {plain.sd:.{places}f} (n = {len(runs[rows[0].variant])})"
    cells["*could have seen*"] = "–" if blocked is None else f"{blocked.detectable:.{places}f}"
    return cells


def main() -> None:
    names = sys.argv[1:]
    if names == ["--all"]:
        names = sorted(file.parent.name for file in HERE.glob("*/results.json"))
    columns = {name: column(name) for name in names}
    variants = list(dict.fromkeys(variant for cells in columns.values() for variant in cells))
    variants.sort(key=lambda name: name.startswith("*"))
    print(f"| | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    for variant in variants:
        print(f"| {variant} | {' | '.join(cells.get(variant, '') for cells in columns.values())} |")


if __name__ == "__main__":
    main()
