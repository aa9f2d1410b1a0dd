"""Builds a comparison from all the runs in a folder, whether made here or copied from other machines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conditioned_attention.experiments.evidence.comparison import Comparison, calls_of, machines_of
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.evidence.stored import Begun, Table
from conditioned_attention.experiments.evidence.tuning import Tuning, read_tuning
from conditioned_attention.experiments.runs.run import (
    data_of,
    differences_of_sets,
    name_of_run,
    read_run,
    reason_of,
    run_folder,
)
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from conditioned_attention.storage.files import read_json
from conditioned_attention.storage.folder import differences, says_its_data


def gather(folder: Path) -> Comparison | None:
    """Returns the comparison of all finished runs in ``folder/runs``; None if there are none.

    The baseline is the first variant of an earlier report in that folder, or else the first in `VARIANTS` that has
    runs.  Time and memory come from an earlier report, tuning from ``folder/tuning``.

    Raises:
        ValueError: the runs were not all made with the same settings, or not with those in ``settings.json`` if that
            exists, or were not all scored by the same metric; or a run lies in the wrong place.
        FileNotFoundError: the learning rates were tuned, but ``tuning/tuning.json`` is missing.
    """
    found = _results(folder)
    if not found:
        return None
    report = folder / "results.json"
    earlier = read_json(report, Table) if report.exists() else {}
    settings = _check_settings(folder, found)
    tuning = _tuning(folder, settings, found)
    names = {result["variant"] for result in found.values()}
    order = [row["variant"] for row in earlier.get("table", [])] + list(VARIANTS) + sorted(names)
    runs: dict[str, dict[int, Any]] = {name: {} for name in dict.fromkeys(order) if name in names}
    for result in sorted(found.values(), key=lambda result: result["seed"]):
        runs[result["variant"]][result["seed"]] = result["history"]
    metric = Metric(**next(iter(found.values()))["metric"])
    cost = None if any(differences(earlier.get("settings"), settings)) else earlier.get("cost")
    failures = {f"{name}, tuning": reason for name, reason in tuning.failures().items()} if tuning else {}
    failures |= _unfinished(folder)
    results = list(found.values())
    return Comparison(
        runs, metric, failures, settings, cost=cost, machines=machines_of(results), tuning=tuning,
        data=data_of(file.parent for file in found), calls=calls_of(results),
    )  # fmt: skip


def _results(folder: Path) -> dict[Path, dict[str, Any]]:
    """Reads every ``result.json``, by its path."""
    found = {}
    for file in sorted(folder.glob("runs/*/seed-*/result.json")):
        result = read_run(file)
        place = run_folder(folder, result["variant"], result["seed"])
        if place != file.parent:
            raise ValueError(f"{file} is {result['variant']} with seed {result['seed']}, which belongs in {place}")
        found[file] = result
    return found


def _check_settings(folder: Path, found: Mapping[Path, Mapping[str, Any]]) -> Any:
    """Returns the settings of all runs, after checking that they agree with ``settings.json`` or else the first run.

    Earlier versions did not record which data were used; the first settings that do are preferred as the reference.
    """
    there = folder / "settings.json"
    named = {there: read_json(there)} if there.exists() else {}
    named |= {file: result["settings"] for file, result in found.items()}
    first = next((file for file, settings in named.items() if says_its_data(settings)), next(iter(named)))
    settings, scored = named[first], next(iter(found))
    models: dict[str, Path] = {}  # the first run of each variant
    for file, result in found.items():
        model = models.setdefault(result["variant"], file)
        wanted = {
            "settings": settings,
            "variant_settings": found[model].get("variant_settings"),
            "metric": found[scored]["metric"],
        }
        different = differences_of_sets(result, wanted)
        if different:
            other = {"settings": first, "variant_settings": model, "metric": scored}
            text = ", ".join(f"{name}: {one} there, {two} in {other[key]}" for key, name, one, two in different)
            raise ValueError(f"{file} is a run of other settings ({text}); move it away, or report it apart")
    return settings


def _tuning(folder: Path, settings: Any, found: Mapping[Path, Mapping[str, Any]]) -> Tuning | None:
    """Returns how the learning rates were tuned, if they were; raises if the runs were made at other rates."""
    if not isinstance(settings, dict) or "tuning" not in settings:
        return None
    tuning = read_tuning(folder / "tuning")
    if tuning is None:
        raise FileNotFoundError(
            f"{folder / 'tuning' / 'tuning.json'} is missing, and the runs are at tuned learning rates; copy it as well"
        )
    rates = tuning.rates()
    for file, result in found.items():
        made, chosen = (result.get("variant_settings") or {}).get("lr"), rates.get(result["variant"])
        if chosen is None or made != chosen:
            other = folder / "tuning" / "tuning.json"
            raise ValueError(
                f"{file} was made at the learning rate {made}, but {other} has chosen {chosen}; continue the "
                "comparison, which makes such runs again, or move them away"
            )
    return tuning


def _unfinished(folder: Path) -> dict[str, str]:
    """Returns, for each run that was started and has no result, the reason."""
    found = {}
    for file in sorted(folder.glob("runs/*/seed-*/begun.json")):
        if not (file.parent / "result.json").exists():
            begun = read_json(file, Begun)
            found[name_of_run(begun["variant"], begun["seed"])] = reason_of(file.parent) or "not finished"
    return found
