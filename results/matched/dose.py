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

from conditioned_attention.measure.plots.files import png

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
    baseline = defaultdict(list)
    for row in read("dose.csv"):
        if row["variant"] == "baseline":
            baseline[row["start"]].append(float(row["accuracy"]))
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), sharey="row", sharex="col", layout="constrained")
    for (ax, plain), axis in zip(axes.T, (0, 1), strict=True):
        for (variant, colour), shift in zip(COLOURS.items(), np.linspace(0.92, 1.08, len(COLOURS)), strict=True):
            found = {start: of for (start, name), of in gain.items() if name == variant}
            x = {start: place[start][axis] * shift for start in found}  # side by side
            whole = sorted((x[start], of.mean()) for start, of in found.items() if start.startswith("init"))
            ax.plot(*zip(*whole, strict=True), "-", color=colour, linewidth=1.2)
            for start, of in found.items():
                mark(ax, start, x[start], of, colour)
        for start, of in baseline.items():
            mark(plain, start, place[start][axis], np.array(of), "black")
        for each in (ax, plain):
            each.axvline(place["ViT-B"][axis], color="black", linestyle=":", linewidth=1)
            each.set_xscale("log")
        ax.axhline(0, color="black", linewidth=0.8)
        ax.text(place["ViT-B"][axis], 1, " ViT-B", transform=ax.get_xaxis_transform(), va="top")
    axes[0, 0].set_yscale("symlog", linthresh=3)
    points = [-30, -10, -3, -2, -1, 0, 1, 2, 3, 10, 30]
    axes[0, 0].set_yticks(points, labels=[f"{point}" for point in points])
    axes[0, 0].set_ylabel("accuracy minus plain attention's (points)")
    axes[1, 0].set_ylabel("plain attention (%)")
    axes[1, 0].set_xlabel("standard deviation of the first logits")
    axes[1, 1].set_xlabel("first attention branch over stream")
    ticks = [0.03, 0.05, 0.1, 0.2, 0.5]
    axes[1, 1].set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axes[1, 1].set_xticks([], minor=True)
    for variant, colour in COLOURS.items():
        axes[1, 1].plot([], [], "-", color=colour, label=variant)
    for name, marker in MARKERS.items():
        axes[1, 1].plot([], [], marker, color="black", label=name, markerfacecolor="none")
    axes[1, 1].legend(fontsize=8, loc="lower right")
    (HERE / "dose.png").write_bytes(png(figure, dpi=220))


MARKERS = {"all weights scaled": "o", "W_Q and W_K alone": "^", "W_V and W_O alone": "s"}


def mark(ax: plt.Axes, start: str, x: float, of: np.ndarray, colour: str) -> None:
    """Mean, lowest and highest of the seeds."""
    marker = dict(zip(("init", "qk", "vo"), MARKERS.values(), strict=True))[start.split("-")[0]]
    ax.plot([x, x], [of.min(), of.max()], color=colour, alpha=0.35, linewidth=2)
    ax.plot(x, of.mean(), marker, color=colour, markersize=5, markerfacecolor=colour if marker == "o" else "none")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        collect(Path(sys.argv[1]))
    draw()
