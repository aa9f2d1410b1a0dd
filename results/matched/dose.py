"""Dose and response: what each variant gains, by how large logits and attention are before training.

Writes dose.csv (final scores of every run of the comparisons init-…, qk-… and vo-… of run.sh) from the folders of runs
that are there, and dose.png from dose.csv and start.csv beside this file:

    python results/matched/dose.py [runs/matched]
"""

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

HERE = Path(__file__).parent
COLOURS = dict(
    zip(
        ("preconditioned", "preconditioned_power", "constant_gain", "spectral", "qk_norm", "conditioned_init"),
        ("#0072B2", "#56B4E9", "#999999", "#D55E00", "#009E73", "#CC79A7"),
        strict=True,
    )
)


def collect(runs: Path) -> None:
    rows = []
    for file in sorted(runs.glob("*/results.json")):
        if file.parent.name.split("-")[0] in ("init", "qk", "vo"):
            found = json.loads(file.read_text())
            rates = found["tuning"]["chosen"]
            rows += [
                [file.parent.name, run["variant"], rates[run["variant"]], run["seed"], run["history"][-1]["score"]]
                for run in found["runs"]
            ]
    with (HERE / "dose.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["start", "variant", "lr", "seed", "accuracy"])
        writer.writerows([*row[:4], f"{row[4]:.4f}"] for row in rows)


def read(name: str) -> list[dict[str, str]]:
    with (HERE / name).open() as file:
        return list(csv.DictReader(file))


def starts() -> dict[str, tuple[float, float]]:
    """Of each start the standard deviation of its logits and branch over stream, geometric means over layers."""
    layers = defaultdict(list)
    for row in read("start.csv"):
        layers[row["start"]].append([float(row["logits"]), float(row["branch"])])
    return {name: tuple(np.exp(np.log(rows).mean(0))) for name, rows in layers.items()}


def gains() -> dict[tuple[str, str], np.ndarray]:
    """Of each start and variant the score minus the baseline's, seed by seed."""
    scores = defaultdict(dict)
    for row in read("dose.csv"):
        scores[row["start"], row["variant"]][row["seed"]] = float(row["accuracy"])
    return {
        (start, variant): np.array([score - scores[start, "baseline"][seed] for seed, score in of.items()])
        for (start, variant), of in scores.items()
    }


def draw() -> None:
    place, gain = starts(), gains()
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), sharey="row", layout="constrained")
    for (ax, plain), axis in zip(axes.T, (0, 1), strict=True):
        what = ("standard deviation of the first logits", "first attention branch over stream")[axis]
        for variant, colour in COLOURS.items():
            points = sorted((place[s][axis], of.mean(), of.min(), of.max()) for (s, v), of in gain.items()
                            if v == variant and s.startswith("init"))  # fmt: skip
            x, y, low, high = np.array(points).T
            ax.plot(x, y, "o-", color=colour, label=variant, markersize=4)
            ax.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
            for prefix, marker in (("qk", "^"), ("vo", "s")):
                found = [
                    (place[s][axis], of.mean()) for (s, v), of in gain.items() if v == variant and s.startswith(prefix)
                ]
                ax.scatter(*zip(*found, strict=True), color=colour, marker=marker, facecolors="none", zorder=3)
        ax.axhline(0, color="black", linewidth=0.8)
        baseline = defaultdict(list)
        for row in read("dose.csv"):
            if row["variant"] == "baseline":
                baseline[row["start"]].append(float(row["accuracy"]))
        points = sorted((place[s][axis], np.mean(of)) for s, of in baseline.items() if s.startswith("init"))
        plain.plot(*zip(*points, strict=True), "o-", color="black", markersize=4)
        for each in (ax, plain):
            each.axvline(place["ViT-B"][axis], color="black", linestyle=":", linewidth=1)
            each.set_xscale("log")
        ax.text(place["ViT-B"][axis], 1, " ViT-B", transform=ax.get_xaxis_transform(), va="top")
        plain.set_xlabel(what)
    axes[0, 0].set_ylabel("accuracy minus plain attention's (points)")
    axes[1, 0].set_ylabel("plain attention (%)")
    axes[0, 0].legend(fontsize=8, loc="upper right")
    figure.savefig(HERE / "dose.png", dpi=110)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        collect(Path(sys.argv[1]))
    draw()
