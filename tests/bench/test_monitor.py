"""The benchmarks of what watching costs, on sizes that take no time."""

import dataclasses
import math

import pytest
import torch

from conditioned_attention.bench import monitor as monitor_module
from conditioned_attention.bench import spectra as spectra_module
from conditioned_attention.bench.monitor import MonitorRow, MonitorSettings, run_monitor
from conditioned_attention.bench.results import read_rows
from conditioned_attention.bench.spectra import SpectraRow, SpectraSettings, measure_spectra, run_spectra, with_kappa
from tests.bench.tiny import MODEL

QUICK = MonitorSettings(rounds=3, every=10, samples=2)


@pytest.mark.slow
def test_the_share_is_that_of_a_measurement_in_so_many_steps(tmp_path, monkeypatch):
    (row,) = run_monitor([MODEL], QUICK, tmp_path)
    assert row.heads == 12
    ratios = [mine / (10 * step) for mine, step in zip(row.rounds_measurement, row.rounds_step)]
    assert row.share == pytest.approx(sorted(ratios)[1])
    assert row.measurement_peak_bytes > 2 * 197 * 768 * 4, "the heads of two samples"
    (read,) = read_rows(tmp_path / "monitor.csv", MonitorRow)
    assert read.share == pytest.approx(row.share, rel=1e-4)
    monkeypatch.setattr(monitor_module, "measure_monitor", pytest.fail)
    assert [again.share for again in run_monitor([MODEL], QUICK, tmp_path)] == [read.share]
    with pytest.raises(ValueError, match=r"settings\.every: 10 there, 20 now"):
        list(run_monitor([MODEL], dataclasses.replace(QUICK, every=20), tmp_path))
    with pytest.raises(ValueError, match="every and samples must be at least 1"):
        run_monitor([MODEL], MonitorSettings(samples=0), tmp_path / "other")
    with pytest.raises(ValueError, match="variant 'none' is unknown"):  # it was a KeyError
        run_monitor([MODEL], MonitorSettings(variant="none"), tmp_path / "other")


def test_routes_are_judged_by_a_kappa_that_is_known(tmp_path, monkeypatch):
    matrices = with_kappa((3, 20, 8), 1e3)
    sigma = torch.linalg.svdvals(matrices)
    assert (sigma[:, 0] / sigma[:, -1]).tolist() == pytest.approx([1e3] * 3)
    assert not torch.allclose(matrices[0], matrices[1])
    (svd,) = measure_spectra((3, 20, 8), 1e6, rounds=1)
    assert svd.ratio == 1
    assert svd.error < 1e-9
    monkeypatch.setattr(spectra_module, "_LARGE", 8)
    _, estimated = measure_spectra((1, 20, 8), 1e2, rounds=1)
    assert estimated.route == "randomised"
    assert estimated.error < 0.01
    monkeypatch.setattr(spectra_module, "SHAPES", ((2, 9, 4),))
    groups = list(run_spectra(SpectraSettings(rounds=1), tmp_path))
    assert [group[0].kappa for group in groups] == [1e2, 1e4, 1e6]
    assert all(math.isfinite(row.error) for row in read_rows(tmp_path / "spectra.csv", SpectraRow))
