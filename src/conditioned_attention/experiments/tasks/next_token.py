"""Prediction of the next byte or token, scored by the mean loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conditioned_attention.experiments.data.text.byte_pairs import bytes_of_tokens
from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.tasks.task import Evaluator, Task
from conditioned_attention.sites.transformers.packed import register_packed

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_PROMPT, _SAMPLE = 24, 256  # tokens of the prompt that the sample continues, and of both together at most


class TextModel(Protocol):
    """Settings of a network that predicts the next token."""

    @property
    def context(self) -> int:
        """The largest number of tokens that it sees."""

    def build(self, vocabulary: int) -> nn.Module:
        """The model; it maps ids (B, L) to logits (B, L, V) with V at least ``vocabulary``."""


class NextToken(Task):
    """Prediction of the next token by cross entropy, scored by its mean on held-out text.

    With bytes, or a byte-level tokenizer, an evaluation also has the loss per byte, in nats and in bits: it can be
    compared between vocabularies, while the loss per token cannot.

    Args:
        data: training and evaluation set, whose sequences are one token longer than the model sees; `ByteWindows` or
            `Blocks`.
        model: what is trained.
        eval_count: score on this many sequences, spread over the held-out text; None for all.
        notes: what a report should say about the data.
        tokenizer: the tokenizer that made the tokens, which is saved in the folder of a finished run; None for bytes.
        end: the token after which another document begins, which does not see the one before; None if documents are
            not kept apart.
    """

    causal = True

    def __init__(
        self,
        data: tuple[Any, Any],
        model: TextModel,
        eval_count: int | None = None,
        notes: Sequence[str] = (),
        tokenizer: Tokenizer | None = None,
        *,
        end: int | None = None,
    ) -> None:
        self._train, held = data
        self._model, self._tokenizer, self.notes = model, tokenizer, list(notes)
        self._end = end
        self._eval = held.part(spread(len(held), eval_count, "eval_windows" if tokenizer is None else "eval_blocks"))
        self.tokens_per_sample = model.context
        unit, kinds = ("byte", "") if tokenizer is None else ("token", f" of {self._train.vocabulary:,}")
        self.metric = Metric(f"loss (nats a {unit})", higher_is_better=False)
        self.about = f"{'windows' if tokenizer is None else 'blocks'} of {model.context} {unit}s{kinds}"
        sizes = np.ones(256, np.int64) if tokenizer is None else bytes_of_tokens(tokenizer)
        self._sizes = None if sizes is None else torch.from_numpy(sizes)

    def build_model(self) -> nn.Module:
        model: Any = self._model.build(self._train.vocabulary)
        if self._end is not None:
            model.set_attn_implementation(register_packed())
        return model  # type: ignore[no-any-return]

    def train_data(self) -> Any:
        return self._train

    def eval_data(self) -> Any:
        return self._eval

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return _losses(model, batch, self._end).mean()

    def evaluator(self) -> Evaluator:
        return _MeanLoss(self._sizes, self._end)

    def probe(self) -> dict[str, Tensor]:
        return _first(self._eval)

    def calibration(self) -> dict[str, Tensor]:
        return _first(self._train)

    def finish(self, model: nn.Module) -> dict[str, str]:
        """Gives a sample of the model, and its tokenizer if there is one.

        ``sample.txt`` is how the model continues the beginning of a held-out text, drawn at temperature 0.8; without
        ``tokenizer.json`` the model could not be used.
        """
        prompt = self._eval[0][: min(_PROMPT, self._model.context // 2)]
        device = next(model.parameters()).device
        ids = model.generate(  # type: ignore[operator]
            prompt[None].to(device),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=device),
            max_length=min(self._model.context, _SAMPLE),
            do_sample=True,
            temperature=0.8,
            top_k=0,
            pad_token_id=0,
        )[0]
        shown = [self._text(part.tolist()) for part in (ids[: len(prompt)], ids[len(prompt) :])]
        tokenizer = {} if self._tokenizer is None else {"tokenizer.json": self._tokenizer.to_str()}
        return {"sample.txt": f"{shown[0]}|{shown[1]}\n", **tokenizer}

    def _text(self, ids: list[int]) -> str:
        if self._tokenizer is None:
            return bytes(ids).decode(errors="replace")
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))


def spread(available: int, wanted: int | None, name: str) -> np.ndarray[Any, Any]:
    """Evenly spaced places from first to last, ``wanted`` of them or all; ``name`` is the setting's, for errors.

    Raises:
        ValueError: fewer than one is wanted.
    """
    if wanted is not None and wanted < 1:
        raise ValueError(f"{name} must be at least 1, or None for all, got {wanted}")
    count = min(wanted or available, available)
    exact = torch.float32 if available <= 2**24 else torch.float64  # float32 gives the places of earlier runs
    return torch.linspace(0, available - 1, count, dtype=exact).round().long().numpy()


def _first(data: Any) -> dict[str, Tensor]:
    """The inputs of the model for the first few sequences."""
    return {"input_ids": data.__getitems__(range(min(8, len(data))))[:, :-1]}


class _MeanLoss:
    """The mean loss of a token, in nats, and of a byte, in nats and bits, if ``sizes`` gives the bytes of tokens."""

    def __init__(self, sizes: Tensor | None, end: int | None) -> None:
        from torchmetrics import MeanMetric

        self.sizes, self.end, self.mean = sizes, end, MeanMetric(sync_on_compute=False)
        self.tokens, self.bytes = 0, 0

    def update(self, model: nn.Module, batch: Any, gather: Callable[[Any], Any]) -> None:
        self.mean.update(gather(_losses(model, batch, self.end).mean(-1).float()).cpu())
        if self.sizes is not None:
            sizes = gather(self.sizes.to(batch.device)[batch[:, 1:]].sum(-1))
            self.tokens += sizes.numel() * (batch.shape[1] - 1)
            self.bytes += int(sizes.sum())

    def compute(self) -> dict[str, float]:
        loss = float(self.mean.compute())
        if not self.bytes:
            return {"score": loss}
        of_byte = loss * self.tokens / self.bytes
        per_byte = {} if self.tokens == self.bytes else {"nats_per_byte": of_byte}
        return {"score": loss, **per_byte, "bits_per_byte": of_byte / math.log(2)}


def _losses(model: nn.Module, batch: Tensor, end: int | None) -> Tensor:
    """The loss of every token (B, L) of sequences (B, L + 1)."""
    ids = batch[:, :-1]
    if end is None:
        logits = model(input_ids=ids, use_cache=False).logits
    else:
        logits = model(**in_one_row(ids, end), use_cache=False).logits.view(*ids.shape, -1)
    return F.cross_entropy(logits.float().transpose(1, 2), batch[:, 1:], reduction="none")


def in_one_row(ids: Tensor, end: int) -> dict[str, Any]:
    """Puts blocks (B, L) into one row (1, B · L) of documents, which begin with each block and after every ``end``.

    >>> row = in_one_row(torch.tensor([[5, 0, 6, 7], [8, 9, 0, 0]]), end=0)
    >>> row["cu_seq_lens_q"].tolist(), row["position_ids"].tolist(), row["max_length_q"]
    ([0, 2, 4, 7, 8], [[0, 1, 0, 1, 0, 1, 2, 0]], 3)
    """
    first = F.pad(ids[:, :-1] == end, (1, 0), value=True).flatten()
    starts = first.nonzero().flatten()
    positions = torch.arange(ids.numel(), device=ids.device) - starts[first.cumsum(0) - 1]
    bounds = F.pad(starts, (0, 1), value=ids.numel()).int()
    longest = int(bounds.diff().max())
    found = {"input_ids": ids.reshape(1, -1), "position_ids": positions[None]}
    found |= dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), bounds)
    return {**found, **dict.fromkeys(("max_length_q", "max_length_k"), longest)}
