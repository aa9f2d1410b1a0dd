"""Any model of timm that classifies images."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from conditioned_attention.environment import needs
from conditioned_attention.experiments.models.built import remembered


@dataclass(frozen=True)
class TimmModel:
    """A timm model by its name, with fresh weights.

    Attributes:
        name: its name in timm.
        drop_path: probability of leaving out a residual branch in training; timm lets it grow linearly over the depth
            up to this value, and in XCiT it is the same everywhere.
        dropout: dropout of the outputs of the dense layers after attention and in the MLPs, and of the position
            embeddings; for models that have these, such as ViT and DeiT.
    """

    name: str
    drop_path: float = 0.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("drop_path", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        timm = _timm()
        if not timm.is_model(self.name):
            near = difflib.get_close_matches(self.name, timm.list_models(), n=5)
            raise ValueError(f"timm_model={self.name!r} is unknown to timm {timm.__version__}; near are {near}")

    @remembered
    def build(self, image_size: int, channels: int, classes: int) -> nn.Module:
        """The model; it maps images (B, C, H, W) to logits (B, classes).  Many models of timm take one size only."""
        return self._created(image_size, channels, classes)[0]

    def arguments(self, image_size: int, channels: int, classes: int) -> dict[str, Any]:
        """Returns the arguments with which `build` calls timm's ``create_model``, besides the name."""
        with torch.device("meta"):
            return self._created(image_size, channels, classes)[1]

    def _created(self, image_size: int, channels: int, classes: int) -> tuple[nn.Module, dict[str, Any]]:
        """Returns the model, and the arguments that timm was called with."""
        arguments = {"img_size": image_size, **self._sizes(channels, classes)}
        try:
            return _timm().create_model(self.name, **arguments), arguments
        except TypeError as error:
            if "'img_size'" not in str(error):
                raise
        del arguments["img_size"]  # it takes images of any size
        return _timm().create_model(self.name, **arguments), arguments

    def _sizes(self, channels: int, classes: int) -> dict[str, Any]:
        sizes: dict[str, Any] = {"in_chans": channels, "num_classes": classes}
        if self.drop_path:
            sizes["drop_path_rate"] = self.drop_path
        if self.dropout:
            sizes |= {"proj_drop_rate": self.dropout, "pos_drop_rate": self.dropout}
        return sizes


def _timm() -> Any:
    with needs("timm"):
        import timm
    return timm
