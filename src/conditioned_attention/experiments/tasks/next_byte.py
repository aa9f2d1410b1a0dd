"""Next-byte language modelling, scored by the mean loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conditioned_attention.experiments.data.text.windows import (
    ByteWindows,
)
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.tasks.task import Evaluator, Task

_PROMPT = 24  # bytes that the sample goes on from


class TextModel(Protocol):
    """Settings of a network that predicts the next token."""

    @property
    def context(self) -> int:
        """Tokens that it sees at most."""

    def build(self) -> nn.Module:
        """The model with fresh weights; it maps ids (B, L) to logits (B, L, V)."""


class NextByte(Task):
    """Cross entropy of the next byte, scored by its mean on held-out text."""

    metric = Metric("loss (nats a byte)", higher_is_better=False)
    causal = True

    def __init__(
        self,
        data: tuple[ByteWindows, ByteWindows],
        model: TextModel,
        eval_windows: int | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self._train, self._eval, self._model, self.notes = *data, model, list(notes)
        self.tokens_per_sample = model.context
        self.about = f"windows of {model.context} bytes"
        if eval_windows is not None and eval_windows < 1:
            raise ValueError(f"eval_windows must be at least 1, or None for all, got {eval_windows}")
        count = min(eval_windows or len(self._eval), len(self._eval))
        chosen = torch.linspace(0, len(self._eval) - 1, count).round().long()  # spread over the text
        self._eval = ByteWindows(self._eval.windows[chosen])

    def build_model(self) -> nn.Module:
        return self._model.build()

    def train_data(self) -> ByteWindows:
        return self._train

    def eval_data(self) -> ByteWindows:
        return self._eval

    def collate(self, items: Any) -> Any:
        return items  # `ByteWindows` hands out batches

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return _losses(model, batch).mean()

    def evaluator(self) -> Evaluator:
        return _MeanLoss()

    def probe(self) -> dict[str, Tensor]:
        return {"input_ids": self._eval.windows[:8, :-1].long()}

    def calibration(self) -> dict[str, Tensor]:
        return {"input_ids": self._train.windows[:8, :-1].long()}

    def finish(self, model: nn.Module) -> dict[str, str]:
        """``sample.txt``: how the model goes on from the beginning of a held-out window, drawn at temperature 0.8."""
        prompt = self._eval[0][: min(_PROMPT, self._model.context // 2)]
        device = next(model.parameters()).device
        ids = model.generate(  # type: ignore[operator]
            prompt[None].to(device),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=device),
            max_length=self._model.context,
            do_sample=True,
            temperature=0.8,
            top_k=0,
            pad_token_id=0,
        )[0]
        shown = [bytes(part.tolist()).decode(errors="replace") for part in (ids[: len(prompt)], ids[len(prompt) :])]
        return {"sample.txt": f"{shown[0]}|{shown[1]}\n"}


class _MeanLoss:
    """The mean loss of a byte, in nats and in bits."""

    def __init__(self) -> None:
        from torchmetrics import MeanMetric

        self.mean = MeanMetric(sync_on_compute=False)

    def update(self, model: nn.Module, batch: Any, gather: Callable[[Any], Any]) -> None:
        self.mean.update(gather(_losses(model, batch).mean(-1).float()).cpu())

    def compute(self) -> dict[str, float]:
        loss = float(self.mean.compute())
        return {"score": loss, "bits_per_byte": loss / math.log(2)}


def _losses(model: nn.Module, batch: Tensor) -> Tensor:
    """The loss of every byte (B, L) of windows (B, L + 1)."""
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().transpose(1, 2), batch[:, 1:], reduction="none")
