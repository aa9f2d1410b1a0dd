"""Hugging Face's vision transformer with the mean of its patch tokens before the classifier.

Imported only when such a model is built, since it needs transformers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import ViTForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput


class MeanPooledViT(ViTForImageClassification):  # type: ignore[no-untyped-call]
    """Like its base class, which reads the class token; but this classifier reads the mean of all other tokens."""

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> ImageClassifierOutput:
        """Maps images (B, C, H, W) to logits (B, classes)."""
        tokens = self.vit(pixel_values, **kwargs).last_hidden_state
        return ImageClassifierOutput(logits=self.classifier(tokens[:, 1:].mean(dim=1)))
