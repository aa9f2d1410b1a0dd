"""What decays, and how the learning rate moves."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from conditioned_attention.experiments.training.settings import Training


def build_optimizer(model: nn.Module, settings: Training) -> torch.optim.Optimizer:
    """AdamW."""
    return torch.optim.AdamW(parameter_groups(model, settings.weight_decay), lr=settings.lr)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; vectors and scalars (biases, norms) do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
