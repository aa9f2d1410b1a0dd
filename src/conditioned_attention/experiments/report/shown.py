"""Embeds the pictures that tasks draw at the end of a run in a self-contained page."""

from __future__ import annotations

import base64

from conditioned_attention.experiments.report.subjects import Subject


def pictures_of(subject: Subject) -> list[tuple[str, str]]:
    """The pictures of each variant's first run that has any: a caption, and the picture as a data URL."""
    found = []
    for variant, by_seed in subject.folders.items():
        for seed, folder in sorted(by_seed.items()):
            files = sorted(folder.glob("*.png"))
            for file in files:
                caption = f"{file.stem.replace('_', ' ')}, {variant}, seed {seed}"
                data = base64.b64encode(file.read_bytes()).decode()
                found.append((caption, f"data:image/png;base64,{data}"))
            if files:
                break
    return found
