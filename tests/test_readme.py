"""README and docs do what they say: their Python runs as written, each block by itself, and training for less long."""

import csv
import re
import runpy
import shlex
import statistics
import tomllib
from pathlib import Path

import pytest

from conditioned_attention import __version__
from conditioned_attention.bench.monitor import MonitorRow
from conditioned_attention.bench.results import read_rows
from conditioned_attention.bench.spectra import SpectraRow
from conditioned_attention.bench.tables import readme_text, split_at_marks
from conditioned_attention.experiments.evidence.statistics import paired_interval
from conditioned_attention.experiments.report.write import read_report
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from conditioned_attention.measure import read_records
from conditioned_attention.sites.versions import SUPPORTED
from conditioned_attention.storage.files import read_json
from tests.pages import blocks_of, run_alone

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONVERSION = (ROOT / "docs" / "conversion.md").read_text()
SPECTRAL = (ROOT / "docs" / "spectral.md").read_text()
MONITORING = (ROOT / "docs" / "monitoring.md").read_text()
EXPERIMENTS = (ROOT / "docs" / "experiments.md").read_text()
MATHEMATICS = (ROOT / "docs" / "mathematics.md").read_text()


def shorter(text, *pairs):
    """The page with other words in the place of some, each of which is there once."""
    for words, instead in pairs:
        assert text.count(words) == 1, words
        text = text.replace(words, instead)
    return text


def test_python_of_the_readme_runs(tmp_path):
    text = shorter(README, ("range(1, 6)", "range(1, 2)"), (".split(50)", ".split(350)"), ("seeds=3", "seeds=2"))
    converted, watched, compared = run_alone(blocks_of(text), tmp_path)
    assert "encoder.layer.1.attention.self" in converted
    assert watched.startswith("step 200: median log10 κ ")
    assert len(read_records(tmp_path / "1/conditions.jsonl")) == 3 * 8
    assert "head_rmsnorm: " in compared


@pytest.mark.slow
def test_python_of_the_page_on_conversion_runs(tmp_path):
    first, mine, *_, guarded, _ = run_alone(blocks_of(CONVERSION), tmp_path)
    assert first.count("converted") == 12
    assert "Unexpected key(s)" in guarded
    assert re.search(r"^2 +MyAttention +hook +converted", mine, re.MULTILINE)


@pytest.mark.slow
def test_python_of_the_page_on_spectral_conditioning_runs(tmp_path):
    assert "W + C" in run_alone(blocks_of(SPECTRAL), tmp_path)[0]


@pytest.mark.slow
def test_python_of_the_page_on_monitoring_runs(tmp_path):
    *_, printed = run_alone(blocks_of(MONITORING), tmp_path)
    assert len(read_records(tmp_path / "0/conditions.jsonl")) == 3 * 2 * 4
    assert {path.name for path in (tmp_path / "0").iterdir()} == {"conditions.jsonl", "kappa.png", "heads.png"}
    assert printed.startswith("layers.0")


def test_a_block_that_lacks_an_import_is_found(tmp_path):
    with pytest.raises(AssertionError, match=r"block 1:[^@]*NameError: name 'torch' is not defined"):
        run_alone(["import torch", "torch.zeros(2)"], tmp_path)


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


@pytest.mark.slow
def test_python_of_the_page_on_mathematics_runs_and_prints_its_table(tmp_path):
    printed = run_alone(blocks_of(MATHEMATICS), tmp_path)[6].splitlines()
    assert len(printed) == 10
    assert set(printed) <= set(MATHEMATICS.splitlines())


def test_python_of_the_page_on_experiments_runs(tmp_path):
    run_alone(blocks_of(EXPERIMENTS), tmp_path)


def test_python_of_the_page_on_fine_tuning_runs(tmp_path):
    run_alone(blocks_of((ROOT / "docs" / "fine_tuning.md").read_text()), tmp_path)


def test_losses_of_the_page_on_fine_tuning_are_those_measured():
    page = (ROOT / "docs" / "fine_tuning.md").read_text()
    found = read_json(ROOT / "results" / "language" / "start.json")["loss"]
    nouns = found["WordNet's nouns"]
    rows = [line.split("|")[2:4] for line in page.splitlines() if line.startswith("| ") and "`" in line]
    names = [line.split("`")[1] for line in page.splitlines() if line.startswith("| ") and "`" in line]
    assert names == [name for name in nouns if "tokens" not in name]
    for name, cells in zip(names, rows, strict=True):
        assert [float(cell) for cell in cells] == [round(losses[name], 2) for losses in found.values()], name
    for name in ("preconditioned_calibrated, on 128 tokens", "preconditioned_calibrated, on 4096 tokens"):
        assert f"{nouns[name]:.2f}" in page
    assert f"{nouns['spectral']:.2f}" in CONVERSION


def test_every_page_with_python_is_run():
    pages = {page.name for page in (ROOT / "docs").glob("*.md") if blocks_of(page.read_text())}
    here = {"conversion.md", "fine_tuning.md", "spectral.md", "monitoring.md", "mathematics.md", "experiments.md"}
    assert pages == here | {"gallery.md"}  # tests/test_gallery.py


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
    rows = re.findall(r"^\| (`.*?) \|", EXPERIMENTS, re.MULTILINE)
    assert set(VARIANTS) <= {name for row in rows for name in re.findall(r"`(.*?)`", row)}


def test_versions_of_the_page_on_conversion_are_those_supported():
    for package, (first, end) in SUPPORTED.items():
        assert f"| {package} ≥ {first}, < {end} |" in CONVERSION


PAGES = [ROOT / "README.md", ROOT / "results" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = "\n".join(page.read_text() for page in PAGES).replace("\\\n", " ")


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    "line",
    re.findall(r"^(?:conditioned-attention|torchrun .* -m conditioned_attention) (?!.*…)(.*)$", COMMANDS, re.MULTILINE),
)
def test_command_lines_of_the_pages_parse(line):
    import tyro

    from conditioned_attention._command_line import REGISTRY
    from conditioned_attention.cli import CONFIG, commands

    arguments = shlex.split(line, comments=True)
    assert tyro.cli(commands(arguments), args=arguments, config=CONFIG, registry=REGISTRY) is not None


def test_the_costs_are_those_measured():
    """If this fails: ``conditioned-attention bench table results/bench --into docs/cost.md``."""
    _, between, _ = split_at_marks(ROOT / "docs" / "cost.md")
    assert between == readme_text(ROOT / "results" / "bench")
    rows = re.findall(r"^\| (.*?) \| (\S+ \(\S+\) \| \S+) \|$", README, re.MULTILINE)
    assert len(rows) == 4
    for model, costs in rows:
        assert re.search(rf"{model.split(',')[0]}.* preconditioned \| {re.escape(costs)}", between)


def test_the_evidence_of_the_readme_is_that_of_its_page():
    """Every number of the table stands in docs/evidence.md."""
    table = README.replace("**", "").partition("| variant | digits")[2].partition("\n\n")[0]
    numbers = re.findall(r"[+−]\d+\.\d+(?: \[.*?\])?", table)
    assert len(numbers) == 14
    page = (ROOT / "docs" / "evidence.md").read_text().replace("**", "")
    assert all(number in page for number in numbers)


@pytest.mark.parametrize("page", ["evidence.md", pytest.param("answer.md", marks=pytest.mark.slow)])
def test_the_tables_of_the_answer_are_those_of_the_results(page):
    """If this fails: ``python results/matched/answer.py``."""
    pages = runpy.run_path(str(ROOT / "results" / "matched" / "answer.py"))["PAGES"]
    file = ROOT / "docs" / page
    assert split_at_marks(file)[1] == pages[file]()


def test_the_readme_fits_on_a_screen_or_three_and_every_link_leads_somewhere():
    assert len(README.splitlines()) <= 150
    links = re.findall(r"\]\((.*?)\)", README)
    own = [link for link in links if not link.startswith(("https://", "#"))]
    assert len(own) > 20
    assert [link for link in own if not (ROOT / link).exists()] == []
    titles = {title.lower().replace(" ", "-").strip("?") for title in re.findall(r"^## (.*)$", README, re.MULTILINE)}
    assert {link[1:] for link in links if link.startswith("#")} <= titles


def test_a_package_index_gets_links_with_the_address_of_the_repository():
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    address, text = project["project"]["urls"]["Repository"], README
    for rule in project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    assert all(link.startswith(("https://", "#")) for link in re.findall(r"\]\((.*?)\)", text))
    assert text.count(f"]({address}/blob/main/") > 20
    assert text.count(f"]({address}/raw/main/") == README.count("](docs/pictures/") > 0
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"repository-code: {address}\n" in citation
    assert f"version: {__version__}\n" in citation
