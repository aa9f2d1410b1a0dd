"""Loads the weights of a classifier into the XCiT of a detector, and reports which of them matched."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from conditioned_attention.conversion import apply_conditioning
from conditioned_attention.environment import needs
from conditioned_attention.storage.files import read_json

_WEIGHTS, _RECORD = "model.safetensors", "conditioning.json"  # of a folder of `export`


@dataclass(frozen=True)
class Match:
    """Which of a classifier's weights a model has taken.

    Attributes:
        source: where they come from.
        taken: names of the model's tensors that got them.
        fresh: names of the model's other tensors, such as those of a conversion.
        unused: names of weights that the model has no place for, such as those of class attention and of the classes.
        other_shape: names that both have, with different shapes.
        conditioned: whether they were trained with a conversion.
    """

    source: str
    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    other_shape: tuple[str, ...]
    conditioned: bool = False

    def in_words(self) -> str:
        """Returns the report as a line of text."""
        parts = [f"{len(self.taken)} tensors from {self.source}"]
        for names, what in (
            (self.fresh, "start fresh"), (self.unused, "are not used"), (self.other_shape, "have another shape"),
        ):  # fmt: skip
            kinds = sorted({name.partition(".")[0] for name in names})
            parts += [f"{len(names)} {what} ({', '.join(kinds)})"] * bool(names)
        return "classifier's weights: " + "; ".join(parts)


def load_classification(xcit: nn.Module, source: str, *, convert: bool = True) -> Match:
    """Loads the weights of a classifier into an XCiT, which may lack its last layers.

    Args:
        xcit: the backbone, such as ``model.backbone.xcit`` of `XCiTMaskRCNN`.
        source: a folder that ``conditioned-attention export`` has written; a file of weights (.pth, .safetensors), also
            from XCiT's repository; or the name of a timm model with pretrained weights, such as
            ``"xcit_small_12_p16_384.fb_dist_in1k"``, which timm downloads.
        convert: condition the backbone as an exported model was conditioned; False refuses the weights of such a model.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: no weight fits, or the weights were trained with a conversion and ``convert`` is False.
    """
    weights, record = _read(xcit, source)
    conditioned = bool(record and record.get("transforms"))
    if conditioned and not convert:
        raise ValueError(
            f"the weights in {source} were trained with a conversion, and each variant has to start from its own: name "
            "the runs of the classifier with --start-from, which takes {variant} and {seed} in braces"
        )
    there = xcit.state_dict()
    if not any(name in there and there[name].shape == weight.shape for name, weight in weights.items()):
        raise ValueError(f"no weight of {source} fits {type(xcit).__name__} by name and shape")
    if conditioned:
        apply_conditioning(xcit, record, partial=True)
        there = xcit.state_dict()
    fitting = {name: w for name, w in weights.items() if name in there and there[name].shape == w.shape}
    xcit.load_state_dict(fitting, strict=False)
    return Match(
        source,
        tuple(sorted(fitting)),
        tuple(name for name in there if name not in weights),
        tuple(name for name in weights if name not in there),
        tuple(name for name in weights if name in there and name not in fitting),
        conditioned,
    )


def checksum_of_weights(source: str) -> str | None:
    """CRC-32 of the file or of the exported weights; None for a timm name, which identifies the weights by itself."""
    path = Path(source).expanduser()
    path = path / _WEIGHTS if path.is_dir() else path
    return f"{zlib.crc32(path.read_bytes()):08x}" if path.is_file() else None


def _read(xcit: nn.Module, source: str) -> tuple[Mapping[str, Tensor], Any]:
    """Returns the weights, and the record of how they were conditioned; None if there is no record."""
    path = Path(source).expanduser()
    if (path / _WEIGHTS).is_file():
        from safetensors.torch import load_file

        return load_file(path / _WEIGHTS), read_json(path / _RECORD)
    with needs("timm", "a classifier's weights"):
        import timm
        from timm.models.xcit import checkpoint_filter_fn
    if path.is_file():
        found: Mapping[str, Tensor] = checkpoint_filter_fn(dict(timm.models.load_state_dict(str(path))), xcit)
        return found, None
    if path.exists() or not timm.is_model(source):
        raise FileNotFoundError(
            f"{source!r} is no folder that 'conditioned-attention export' has written, no file and no model of timm"
        )
    return timm.create_model(source, pretrained=True).state_dict(), None
