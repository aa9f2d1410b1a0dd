"""Next-byte language modelling by a small GPT: the recipe ``next_byte``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conditioned_attention._torchvision import make_importable
from conditioned_attention.experiments.data.text.files import read_texts
from conditioned_attention.experiments.data.text.windows import (
    ByteWindows,
    split_windows,
    standard_library_text,
    wordnet_glosses,
)
from conditioned_attention.experiments.tasks.task import Metric, Task
from conditioned_attention.experiments.training.settings import Training

_PROMPT = 24  # bytes that the sample goes on from


@dataclass(frozen=True)
class GPT:
    """Hugging Face's GPT-2 on bytes, with fresh weights.

    Attributes:
        context: bytes that it sees at most, and is trained on at a time.
        hidden_size: width of the tokens.
        layers: number of blocks.
        heads: attention heads a block; they must divide the width.
        dropout: of embeddings, attention weights and what blocks add.
    """

    context: int = 128
    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    dropout: float = 0.0

    def build(self) -> nn.Module:
        """The model; it maps bytes (B, L), int64, to logits (B, L, 256)."""
        if min(self.context, self.hidden_size, self.layers, self.heads) < 1 or self.hidden_size % self.heads:
            raise ValueError(
                "context, hidden_size, layers and heads must be at least 1, and heads divide hidden_size, got "
                f"{self.context}, {self.hidden_size}, {self.layers} and {self.heads}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        make_importable()
        from transformers import GPT2Config, GPT2LMHeadModel

        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=256,
                n_positions=self.context,
                n_embd=self.hidden_size,
                n_layer=self.layers,
                n_head=self.heads,
                resid_pdrop=self.dropout,
                embd_pdrop=self.dropout,
                attn_pdrop=self.dropout,
                bos_token_id=None,
                eos_token_id=None,
            )
        )


class NextByte(Task):
    """Cross entropy of the next byte, scored by its mean on held-out text."""

    metric = Metric("loss (nats a byte)", higher_is_better=False)
    causal = True

    def __init__(
        self,
        data: tuple[ByteWindows, ByteWindows],
        model: GPT,
        eval_windows: int | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self._train, self._eval, self._model, self.notes = *data, model, list(notes)
        self.tokens_per_sample = model.context
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

    def evaluate(self, model: nn.Module, batches: Iterable[Any], gather: Callable[[Any], Any]) -> dict[str, float]:
        from torchmetrics import MeanMetric

        mean = MeanMetric(sync_on_compute=False)
        for batch in batches:
            mean.update(gather(_losses(model, batch).mean(-1).float()).cpu())
        loss = float(mean.compute())
        return {"score": loss, "bits_per_byte": loss / math.log(2)}

    def probe(self) -> dict[str, Tensor]:
        return {"input_ids": self._eval.windows[:8, :-1].long()}

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


def _losses(model: nn.Module, batch: Tensor) -> Tensor:
    """The loss of every byte (B, L) of windows (B, L + 1)."""
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().transpose(1, 2), batch[:, 1:], reduction="none")


@dataclass(frozen=True)
class NextByteRecipe:
    """A byte-level GPT on text; without options on English that every Python brings along.

    Attributes:
        text: ``"topics"`` (0.46 MB, the standard library's help), ``"wordnet"`` (9.3 MB of definitions) or
            ``"files"``.
        path: for ``"wordnet"`` the folder with its files; for ``"files"`` a text file, a folder of them, or a saved
            Hugging Face data set with a column ``text``.
        max_unreadable: of ``"files"``, more than so many that cannot be read are an error.
        eval_windows: score on so many windows, spread over the held-out text; None for all.
        model: the network; the default has 0.8 million parameters.
        training: how it is trained.
    """

    text: Literal["topics", "wordnet", "files"] = "topics"
    path: Path | None = None
    max_unreadable: int = 10
    eval_windows: int | None = None
    model: GPT = field(default_factory=GPT)
    training: Training = field(default_factory=lambda: Training(epochs=8, batch_size=32, lr=2e-3, weight_decay=0.1))

    def task(self, *, tuning: bool = False) -> Task:
        notes: list[str] = []
        data = split_windows(self._read(notes), self.model.context, tuning=tuning)
        return NextByte(data, self.model, self.eval_windows, notes)

    def _read(self, notes: list[str]) -> bytes:
        if self.text == "wordnet":
            return wordnet_glosses(self.path or Path("/usr/share/wordnet"))
        if self.text == "files":
            if self.path is None:
                raise ValueError("text='files' needs a path: a text file, a folder of them or a saved data set")
            texts = read_texts(self.path, self.max_unreadable, notes=notes)
            return b"\n\n".join(data for _, data in texts)
        if self.path is not None:
            raise ValueError(f"path={str(self.path)!r} needs text='wordnet' or text='files'")
        return standard_library_text()
