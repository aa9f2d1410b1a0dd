"""The line at the top of a page: what was run, on which data, when, and by which command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conditioned_attention.experiments.report.subjects import Subject


def head_of(subject: Subject) -> dict[str, str]:
    """The known facts by name: a comparison of a user's own loop has no recipe, and an old run has no date."""
    comparison = subject.comparison
    settings = comparison.settings if isinstance(comparison.settings, Mapping) else {}
    seeds = sorted({seed for by_seed in comparison.runs.values() for seed in by_seed})
    days = list(dict.fromkeys(call["date"] for call in comparison.calls))
    found = {
        "recipe": str(settings.get("recipe") or ""),
        "model": _model(settings),
        "data": comparison.data[0] if comparison.data else "",
        "seeds" if len(seeds) > 1 else "seed": _seeds(seeds),
        "date": " to ".join(days[:1] + days[1:][-1:]),
        "command": "; ".join(dict.fromkeys(call["command"] for call in comparison.calls)),
    }
    return {name: text for name, text in found.items() if text}


def _model(settings: Mapping[str, Any]) -> str:
    """The name of a published model, or the size of the model that the settings describe.

    >>> _model({"model": {"backbone": "xcit_small_12_p16_224", "small": [64, 6]}})
    'XCiT, 6 layers, 64 wide'
    """
    model = settings.get("model")
    sizes = model if isinstance(model, Mapping) else {}
    if small := sizes.get("small"):  # a detector's, in place of the backbone
        return f"XCiT, {small[1]} layers, {small[0]} wide"
    for name in (settings.get("timm_model"), sizes.get("backbone"), settings.get("family"), model):
        if isinstance(name, str):
            return name
    units = {"layers": "layers", "heads": "heads", "hidden_size": "wide"}
    return ", ".join(f"{sizes[key]} {unit}" for key, unit in units.items() if key in sizes)


def _seeds(seeds: list[int]) -> str:
    """Writes seeds as text, and more than four consecutive ones as a range.

    >>> _seeds([0, 1, 2]), _seeds(list(range(10)))
    ('0, 1, 2', '0 to 9')
    """
    if len(seeds) > 4 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))
