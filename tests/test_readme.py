"""README and docs do what they say: their Python runs as written, in one go a page, and training for less long."""

import csv
import re
import statistics
from pathlib import Path

import pytest
import torch

from conditioned_attention.bench.monitor import MonitorRow
from conditioned_attention.bench.results import read_rows
from conditioned_attention.bench.spectra import SpectraRow
from conditioned_attention.bench.tables import readme_text, split_at_marks
from conditioned_attention.experiments.evidence.statistics import paired_interval
from conditioned_attention.experiments.report.write import read_report
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from conditioned_attention.sites import registered
from conditioned_attention.sites.versions import SUPPORTED
from conditioned_attention.storage.files import read_json

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONVERSION = (ROOT / "docs" / "conversion.md").read_text()
SPECTRAL = (ROOT / "docs" / "spectral.md").read_text()
MONITORING = (ROOT / "docs" / "monitoring.md").read_text()
MATHEMATICS = (ROOT / "docs" / "mathematics.md").read_text()


def run_page(text, number, shorter=()):
    """All Python blocks of a page, one after the other; the names they leave behind.

    ``shorter``: pairs of words there, and words instead.
    """
    for words, instead in shorter:
        assert text.count(words) == 1, words
        text = text.replace(words, instead)
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == number
    names = {}
    for block in blocks:
        exec(compile(block, "page.md", "exec"), names)
    return names


def test_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run_page(README, 4, [("range(1, 6)", "range(1, 3)"), ("seeds=3", "seeds=2")])
    assert names["y"] is not None
    assert len(names["monitor"].records) == 8
    printed = capsys.readouterr().out
    assert "encoder.layer.1.attention.self" in printed
    assert "head_rmsnorm: " in printed


def test_python_of_the_page_on_conversion_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registered, "_registered", {})
    names = run_page(CONVERSION, 6)
    assert len(names["report"].converted) == 12
    printed = capsys.readouterr().out
    assert "Unexpected key(s)" in printed
    assert re.search(r"^2 +MyAttention +hook +converted", printed, re.MULTILINE)


def test_python_of_the_page_on_spectral_conditioning_runs(monkeypatch, capsys):
    for name in ("_registered", "_projections"):
        monkeypatch.setattr(registered, name, {})
    names = run_page(SPECTRAL, 4)
    assert not torch.equal(names["corrected"], names["plain"])
    assert "W + C" in capsys.readouterr().out


def test_python_of_the_page_on_monitoring_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run_page(MONITORING, 4)
    assert len(names["records"]) == 3 * 2 * 4
    assert {path.name for path in tmp_path.iterdir()} == {"conditions.jsonl", "kappa.png", "heads.png"}
    assert capsys.readouterr().out.startswith("vit.")


def test_costs_of_the_page_on_monitoring_are_those_measured():
    for row in read_rows(ROOT / "results" / "bench" / "monitor.csv", MonitorRow):
        share = f"**{100 * row.share:.2f} %** ({100 * row.p20:.2f}–{100 * row.p80:.2f})"
        times = f"{row.step_milliseconds:.0f} ms | {row.measurement_milliseconds:.0f} ms | {share}"
        peaks = f"{row.step_peak_bytes / 2**20:.0f} MiB, {row.measurement_peak_bytes / 2**20:.0f} MiB"
        assert f"{times} | {peaks} |" in MONITORING
    rows = {(r.shape, r.kappa, r.route): r for r in read_rows(ROOT / "results" / "bench" / "spectra.csv", SpectraRow)}
    table = re.findall(r"^\| (\d+) × (\d+) \| (1e\d) \| (.*?) \| (\S+).*? \| (\S+), (\S+) \|$", MONITORING, re.M)
    assert len(table) == 9
    for n, d, kappa, milliseconds, ratio, *errors in table:
        svd, gram = (
            next(r for key, r in rows.items() if key[0].endswith(f"×{n}×{d}") and key[1:] == (float(kappa), route))
            for route in ("svd", "gram")
        )
        assert float(milliseconds) == pytest.approx(svd.milliseconds, rel=0.01)
        assert ratio == f"{gram.ratio:.2f}"
        assert errors == [f"{svd.error:.1e}", f"{gram.error:.1e}"]


def test_python_of_the_page_on_mathematics_runs_and_prints_its_table(capsys):
    names = run_page(MATHEMATICS, 11)
    assert len(names["table"]) == 10
    assert set(capsys.readouterr().out.splitlines()[1:]) <= set(MATHEMATICS.splitlines())


@pytest.mark.parametrize(
    "folder", ["digits_d_optimal", "digits_d_optimal_one_rate", "digits_d_optimal_ten_seeds", "fashion_d_optimal"]
)
def test_scores_of_the_page_on_mathematics_are_those_measured(folder):
    for row in read_json(ROOT / "results" / folder / "results.json")["table"]:
        difference = row["difference [95 %]"].replace("-", "−")
        assert f"| {row['variant']} " in MATHEMATICS
        assert f"| {row['final']} | {difference} |" in MATHEMATICS


def test_the_refinement_against_c_on_fashion_mnist_is_as_measured():
    runs = read_report(ROOT / "results" / "fashion_d_optimal").runs
    final = {variant: [h[-1]["score"] for _, h in sorted(by_seed.items())] for variant, by_seed in runs.items()}
    for variant in ("d_optimal", "d_optimal=10"):
        found = paired_interval([a - b for a, b in zip(final[variant], final["preconditioned"])])
        words = f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]".replace("-", "−")
        assert re.search(rf"^\| {variant} \| .* \| {re.escape(words)} \|$", MATHEMATICS, re.M)


def test_condition_numbers_of_the_page_on_mathematics_are_those_measured():
    """Means over seeds of the medians over heads and images."""
    with (ROOT / "results" / "digits_d_optimal" / "heads.csv").open() as file:
        rows = list(csv.DictReader(file))
    for variant, when in {(row["variant"], row["when"]): None for row in rows}:
        seeds = [row for row in rows if (row["variant"], row["when"]) == (variant, when)]
        mean = {name: statistics.mean(float(row[name]) for row in seeds) for name in seeds[0] if "_" in name}
        kappas = " | ".join(f"{mean[f'log10_kappa_{what}']:.2f}" for what in ("A", "0_steps", "1_steps", "10_steps"))
        rises = f"{mean['mu_rises_0_steps']:.0%} | {mean['kappa_rises_0_steps']:.0%}".replace("%", " %")
        assert f"| {variant}, {when} | {rises} | {kappas} |" in MATHEMATICS


def test_the_page_on_experiments_has_every_variant():
    """In the tables' first column."""
    text = (ROOT / "docs" / "experiments.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    assert set(VARIANTS) <= {name for row in rows for name in re.findall(r"`(.*?)`", row)}


def test_versions_of_the_page_on_conversion_are_those_supported():
    for package, (first, end) in SUPPORTED.items():
        assert f"| {package} ≥ {first}, < {end} |" in CONVERSION


COMMANDS = (README + CONVERSION + SPECTRAL + MATHEMATICS + MONITORING).replace("\\\n", " ")


@pytest.mark.parametrize("line", re.findall(r"^conditioned-attention .*$", COMMANDS, re.MULTILINE))
def test_command_lines_of_the_readme_parse(line):
    import tyro

    from conditioned_attention.cli import CONFIG, commands

    arguments = line.split()[1:]
    assert tyro.cli(commands(arguments), args=arguments, config=CONFIG) is not None


def test_the_costs_in_the_readme_are_those_measured():
    """If this fails: ``conditioned-attention bench table results/bench --into README.md``."""
    _, between, _ = split_at_marks(ROOT / "README.md")
    assert between == readme_text(ROOT / "results" / "bench")
