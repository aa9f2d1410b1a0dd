"""One table of all comparisons: what each method did to plain attention, from the results.json files beside this.

    python results/matched/answer.py        # writes docs/answer.md and docs/evidence.md, between their marks
    python results/matched/answer.py --all  # prints the table of every variant

A cell is the mean of the paired differences and half the width of the 95 % interval that holds for all variants of the
comparison at once (Dunnett's, seeds as blocks); with a dagger it is that of the paired t test alone, because the
variant scatters unlike the others.  **Bold**: significantly different from plain attention, by that test or, with a
dagger, after Holm's correction.  The last column is the difference that the design would have shown in four of five
repetitions.
"""

import json
import sys
from pathlib import Path

from conditioned_attention.bench.tables import put_between_marks
from conditioned_attention.experiments.evidence.blocks import LEVEL, blocked_test
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.evidence.outcomes import other_outcomes
from conditioned_attention.experiments.evidence.statistics import decimals, final_score, holm_of, summarise

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
METHODS = {
    "preconditioned": "C",
    "preconditioned_power": "C^½",
    "spectral": "λ I",
    "qk_norm": "`qk_norm`",
    "conditioned_init": "`conditioned_init`",
}
COMPARISONS = {
    "digits": "digits, accuracy (%)",
    "fashion": "Fashion-MNIST, 10,000 images, accuracy (%)",
    "bytes": "bytes, loss (lower is better)",
    "recall": "recall, accuracy (%)",
    "in-context-regression": "linear regression in context, error (lower is better)",
    "burgers": "Burgers' equation, relative error (lower is better)",
    "sgd": "digits, SGD, decay 5e-4",
    "sgd-decay-0.05": "digits, SGD, decay 0.05",
    "muon": "digits, Muon",
    "depth-4": "digits, 4 layers in place of 6",
    "depth-12": "digits, 12 layers",
    "wide-heads": "digits, 2 heads of 64",
    "n-over-d-0.53": "digits, 17 tokens, heads of 32",
    "n-over-d-3.1": "digits, 65 tokens, heads of 21",
    "post-norm": "digits, LayerNorm after each branch",
    "depth-scaled": "digits, branches started smaller with depth",
    "no-warmup": "digits, no warm-up",
    "mean-pooling": "digits, mean of all tokens in place of a class token",
    "batch-16": "digits, batches of 16 in place of 64",
    "batch-16-tuned": "the same, rates chosen by three seeds in place of one",
    "no-decay": "digits, no weight decay",
    "decay-0.3": "digits, weight decay 0.3",
}


def row_of(name: str, on_the_way: bool) -> dict[str, str]:
    """The cells of one comparison: by variant, and ``plain``, ``seeds`` and ``seen`` of the comparison itself."""
    found = json.loads((HERE / name / "results.json").read_text())
    metric, runs = Metric(**found["metric"]), {}
    for run in found["runs"]:
        runs.setdefault(run["variant"], {})[run["seed"]] = run["history"]
    if on_the_way:
        metric, runs = other_outcomes(runs, metric)[0]  # the mean over the run stands first
    rows = summarise(runs, metric)
    test = blocked_test({name: {seed: final_score(h) for seed, h in of.items()} for name, of in runs.items()})
    blocked = test if test is not None and test.trusted else None
    plain, alone = rows[0].final, holm_of(rows)
    places = decimals(plain.mean)
    cells = {
        "plain": f"{plain.mean:.{places}f} ± {plain.sd:.{places}f}",
        "seeds": str(len(runs[rows[0].variant])),
        "seen": "–" if blocked is None else f"{blocked.detectable:.{places}f}",
    }
    for row in rows[1:]:
        if row.difference is None:
            continue
        together = blocked is not None and row.variant in blocked.p_values
        p = blocked.p_values[row.variant] if together else alone.get(row.variant, 1.0)
        half = blocked.half_width if together else (row.difference.high - row.difference.low) / 2
        cell = f"{row.difference.mean:+.{places}f} ± {half:.{places}f}{'' if together else '†'}".replace("-", "−")
        cells[row.variant] = f"**{cell}**" if p < LEVEL else cell
    return cells


def table(every_variant: bool = False, on_the_way: bool = False) -> str:
    rows = {words: row_of(name, on_the_way) for name, words in COMPARISONS.items() if (HERE / name).is_dir()}
    names = dict.fromkeys(name for cells in rows.values() for name in cells if name not in ("plain", "seeds", "seen"))
    methods = {name: name for name in names} if every_variant else METHODS
    lines = [
        f"| | seeds | plain | {' | '.join(methods.values())} | could have seen |",
        "|---" * (len(methods) + 4) + "|",
    ]
    for words, cells in rows.items():
        told = " | ".join(cells.get(method, "") for method in methods)
        lines.append(f"| {words} | {cells['seeds']} | {cells['plain']} | {told} | {cells['seen']} |")
    return "\n".join(lines)


def rates() -> str:
    """The learning rate that each variant was given, with a star at an end of its comparison's grid."""
    methods = {"baseline": "plain", **METHODS}
    lines = [f"| | grid | {' | '.join(methods.values())} |", "|---" * (len(methods) + 2) + "|"]
    for name, words in COMPARISONS.items():
        if (HERE / name).is_dir():
            tuning = json.loads((HERE / name / "results.json").read_text())["tuning"]
            grid = sorted({trial["lr"] for trial in tuning["trials"]})
            chosen = [tuning["chosen"].get(method) for method in methods]
            cells = ["" if lr is None else f"{lr:g}{'*' if lr in (grid[0], grid[-1]) else ''}" for lr in chosen]
            lines.append(f"| {words} | {', '.join(f'{lr:g}' for lr in grid)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def both_outcomes() -> str:
    return f"**At the end**\n\n{table()}\n\n**On the way**, by the mean over the run\n\n{table(on_the_way=True)}"


PAGES = {DOCS / "answer.md": both_outcomes, DOCS / "evidence.md": rates}


def main(*arguments: str) -> None:
    if arguments == ("--all",):
        print(table(every_variant=True))
    elif arguments:
        sys.exit(__doc__)
    else:
        for page, text in PAGES.items():
            put_between_marks(page, text())


if __name__ == "__main__":
    main(*sys.argv[1:])
