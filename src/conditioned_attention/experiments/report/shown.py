"""The pictures that tasks draw when a run ends, into a page that stands alone."""

from __future__ import annotations

import base64

from conditioned_attention.experiments.report.subjects import Subject


def pictures_of(subject: Subject) -> list[tuple[str, str]]:
    """What each variant's first run with a picture has drawn: a caption, and the picture as an address of its own."""
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
